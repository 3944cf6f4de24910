"""Where a run's time went: spans of each process, their sums, and what trace viewers open. Without Ray or files.

    with recorded() as spans, timed("unit", unit="6f1c…"), timed("annotate", annotation="topic"), timed("forward"):
        …
    spans -> [Span("forward", began=1767322984.1, seconds=1.92, depth=2), Span("annotate", …), Span("unit", …, depth=0)]

    profile = Profile(began=1767322980.0)                            # the driver's
    profile.took(as_told("actor", spans))                            # what a process told, as it travels
    profile.sums(ended)["actors"] -> {"forward topic": 1.92, "rest": 0.03, "waiting": 0.41}
    profile.trace({"run_id": …}) -> {"traceEvents": […], …}          # Perfetto and chrome://tracing open it

A span is recorded only where somebody asked for it in this process; elsewhere it costs a look at a variable. Times are
seconds since 1970 by the clock of each node, which may differ.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ROLES = ("driver", "reader", "actor", "commit")
"""What a process does; one that reads and commits has a lane for each."""

MOST_SPANS = 200_000
"""That a trace holds: 40 MB. What comes later counts in the sums alone."""

WAITING = "waiting"
WAITING_FOR_GPU = "waiting for the GPU"
FIRST_PASS = "first pass"

_STAGES = {"annotate": "decode", "unit": "rest"}
"""What is left of a span after those inside it: a task's own work around its model, and ours around the tasks."""


class Span(NamedTuple):
    """What a process did for a while; those inside it end before it and are one deeper."""

    name: str
    began: float
    seconds: float
    depth: int = 0
    about: Mapping[str, Any] = {}


@dataclass(slots=True)
class _Recorder:
    spans: list[Span] = field(default_factory=list)
    depth: int = 0


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recorded(wanted: bool = True) -> Iterator[list[Span]]:
    """The spans inside the block, in the order in which they end; none where they are not `wanted`."""
    if not wanted:
        yield []
        return
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        yield recorder.spans
    finally:
        _recorder.reset(token)


@contextmanager
def timed(name: str, **about: Any) -> Iterator[None]:
    """The block is a span of that name, where spans are recorded; `about` is JSON."""
    if (recorder := _recorder.get()) is None:
        yield
        return
    began, clock, depth = time.time(), time.perf_counter(), recorder.depth
    recorder.depth += 1
    try:
        yield
    finally:
        recorder.depth = depth
        recorder.spans.append(Span(name, began, time.perf_counter() - clock, depth, about))


def as_told(role: str, spans: Sequence[Span], hand: int = 0) -> dict[str, Any]:
    """The spans of this process as JSON, on their way to the driver; of one that does two things at once, a hand's."""
    process = f"{socket.gethostname()}:{os.getpid()}{f'+{hand}' if hand else ''}"
    return {"role": role, "process": process, "spans": [list(each) for each in spans]}


def stages(spans: Sequence[Span]) -> list[tuple[str, float]]:
    """Each span's stage, and its seconds without those of the spans inside it; all of them whole, as they ended."""
    own, names = [each.seconds for each in spans], [_STAGES.get(each.name, each.name) for each in spans]
    path: list[int] = []  # from the outermost span down to this one
    for place in range(len(spans) - 1, -1, -1):  # a span stands behind all that are inside it
        del path[spans[place].depth :]
        if path:
            own[path[-1]] -= spans[place].seconds
        path.append(place)
        annotations = [spans[each].about["annotation"] for each in path if "annotation" in spans[each].about]
        if names[place] == "forward" and annotations:
            names[place] = f"forward {annotations[-1]}"
        elif any(spans[each].name == FIRST_PASS for each in path):  # zero_shot embeds its labels then
            names[place] = FIRST_PASS
    return [(name, max(0.0, seconds)) for name, seconds in zip(names, own, strict=True)]


@dataclass(slots=True)
class Lane:
    """What is known of one process in one role."""

    role: str
    process: str  # `node-1:4711`, and its second hand `node-1:4711+1`
    first: float = float("inf")  # when its first span began
    busy: float = 0.0  # seconds in its outermost spans
    stages: dict[str, float] = field(default_factory=dict)
    spans: list[tuple[str, Span]] = field(default_factory=list)  # with the stage of each

    def took(self, spans: Sequence[Span], kept: int) -> None:
        """Spans of a few units, whole ones; the first so many are kept."""
        for each in spans:
            if not each.depth:
                self.first, self.busy = min(self.first, each.began), self.busy + each.seconds
        found = stages(spans)
        for stage, seconds in found:
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.spans += [(stage, each) for (stage, _), each in zip(found[:kept], spans[:kept], strict=True)]


class Profile:
    """The spans of all processes of one execution, as they come."""

    def __init__(self, began: float) -> None:
        """`began`: when the process of the driver started."""
        self.began = began
        self.left_out = 0  # spans that the trace has no room for
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._kept = 0

    def took(self, told: Mapping[str, Any]) -> None:
        """What one process told of itself (see `as_told`)."""
        key = (str(told["role"]), str(told["process"]))
        spans = [Span(*each) for each in told["spans"]]
        kept = min(len(spans), MOST_SPANS - self._kept)
        self._kept += kept
        self.left_out += len(spans) - kept
        self._lanes.setdefault(key, Lane(*key)).took(spans, kept)

    @property
    def lanes(self) -> list[Lane]:
        """The processes: the driver, readers, actors, commit tasks; of each, the earliest first."""
        return sorted(self._lanes.values(), key=lambda lane: (ROLES.index(lane.role), lane.first, lane.process))

    @property
    def actors(self) -> int:
        """Processes that annotated."""
        return len({lane.process.partition("+")[0] for lane in self._lanes.values() if lane.role == "actor"})

    def sums(self, ended: float) -> dict[str, dict[str, float]]:
        """Seconds of each stage, the longest first, of all processes of a role together: "actors", "readers" ….

        An actor waits (for a unit, or for Ray to bring it) where it does nothing else until `ended`.
        """
        found: dict[str, dict[str, float]] = {}
        for lane in self.lanes:
            sums = found.setdefault("driver" if lane.role == "driver" else f"{lane.role}s", {})
            for stage, seconds in lane.stages.items():
                sums[stage] = sums.get(stage, 0.0) + seconds
            if lane.role == "actor":
                sums[WAITING] = sums.get(WAITING, 0.0) + max(0.0, ended - lane.first - lane.busy)
        return {
            role: {stage: round(seconds, 3) for stage, seconds in sorted(sums.items(), key=lambda pair: -pair[1])}
            for role, sums in found.items()
        }

    def trace(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """The trace-event format: one process for each lane, times in microseconds since the driver began."""
        events: list[dict[str, Any]] = []
        for number, lane in enumerate(self.lanes):
            of_lane = {"pid": number, "tid": 0}
            named = {"name": f"{lane.role} {lane.process}"}
            events.append({"ph": "M", "name": "process_name", **of_lane, "args": named})
            events.append({"ph": "M", "name": "process_sort_index", **of_lane, "args": {"sort_index": number}})
            for _, each in lane.spans:
                name = " ".join([each.name, *([each.about["annotation"]] if "annotation" in each.about else [])])
                times = {"ts": round((each.began - self.began) * 1e6, 1), "dur": round(each.seconds * 1e6, 1)}
                events.append({"ph": "X", "name": name, "cat": lane.role, **of_lane, **times, "args": each.about})
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": dict(about)}
