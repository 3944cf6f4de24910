"""The driver's side of `--profile`: it takes in what the processes tell, and leaves a trace and a picture.

    profiling = Profiling(watcher, began)          # its `phases` take the watcher's place
    profiling.took(told)                           # of each unit
    profiling.written(store, …) -> {"trace": "out/topics/metadata/profile.json", "seconds": {"actors": …}, …}

metadata/profile.json   trace events: ui.perfetto.dev and chrome://tracing open it
metadata/profile.png    the same over time, and the share of each stage of the actors' time
"""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import JobError
from pipeline.output.layout import PROFILE, PROFILE_PICTURE
from pipeline.output.storage import Store
from pipeline.profile import Profile, Span, as_told
from pipeline.progress import Snapshot, Watcher

_CLOCKS = "each process is shown by the clock of its own node; those of several nodes may differ"


class Phases:
    """A watcher that notes each phase as a span of the driver, and hands all on to another."""

    def __init__(self, watcher: Watcher, name: str, began: float) -> None:
        """The first phase, `name`, began before anybody looked on: seconds since 1970."""
        self._watcher = watcher
        self._name, self._began = name, began
        self.spans: list[Span] = []

    def phase(self, text: str) -> None:
        """The phase before has ended."""
        self.ended()
        self._name = text
        self._watcher.phase(text)

    def ended(self) -> None:
        """So has the last one."""
        now = time.time()
        self.spans.append(Span(self._name, self._began, now - self._began))
        self._began = now

    def advance(self, snapshot: Snapshot) -> None:
        """As it comes."""
        self._watcher.advance(snapshot)

    def note(self, text: str) -> None:
        """As it comes."""
        self._watcher.note(text)


class Profiling:
    """Where the time of one execution goes, as far as its units come to an end."""

    def __init__(self, watcher: Watcher, began: float) -> None:
        """`began` is the monotonic second at which this process started."""
        started = time.time() - (time.monotonic() - began)
        self.phases = Phases(watcher, "imports", started)
        self._profile = Profile(started)
        self._last = started  # word of a unit

    def took(self, told: Mapping[str, Any]) -> None:
        """What the processes told of themselves with one unit."""
        for each in told.get("profile") or ():
            self._profile.took(each)
        self._last = time.time()

    def written(self, store: Store, run_id: str, units: int, units_before: int) -> dict[str, Any] | None:
        """Leave the trace, and the picture where it can be drawn; returns what the summary tells.

        `units` are of this execution, `units_before` were committed by earlier ones, whose time is not in it. Where
        none was annotated, an earlier execution's profile stays.
        """
        if not units:
            self.phases.note("no unit was annotated: this execution has no profile")
            return None
        self.phases.ended()
        self._profile.took(as_told("driver", self.phases.spans))
        seconds = self._profile.sums(self._last)
        about = {
            "run_id": run_id,
            "output": store.root,
            "began": datetime.fromtimestamp(self._profile.began, UTC).isoformat(timespec="milliseconds"),
            "units": units,
            "units_before": units_before,
            "shows": f"this execution alone: {units} units; {units_before} were committed before it",
            "clocks": _CLOCKS,
            "spans_left_out": self._profile.left_out,
            "seconds": seconds,
        }
        store.write(PROFILE, json.dumps(self._profile.trace(about), allow_nan=False).encode())
        return {
            "trace": str(store.full(PROFILE)),
            "picture": self._drawn(store, f"{units:,} units of run {run_id}"),
            "units": units,
            "units_before": units_before,
            "actors": self._profile.actors,
            "seconds": seconds,
        }

    def _drawn(self, store: Store, title: str) -> str | None:
        from pipeline.metrics.timeline import timeline  # numpy and more, of no use to a run without a profile

        try:
            picture = timeline(self._profile, self._last, title)
        except JobError as error:
            self.phases.note(f"there is no {PROFILE_PICTURE}: {error}")
            store.delete(PROFILE_PICTURE)  # an earlier execution's
            return None
        store.write(PROFILE_PICTURE, picture)
        return str(store.full(PROFILE_PICTURE))
