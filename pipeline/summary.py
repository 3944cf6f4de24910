"""The numbers of a run: pure, from receipts and from when they came.

Pace(actors=2).took(arrived=71.2, seconds=1.9, since_ready={"node-1:4711": 12.5}, tokens=41_022)
-> tokens_per_second: steady state, from the moment all actors held their models to the last receipt
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.plan import Fragment
from pipeline.job import Limits
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt
from pipeline.progress import Snapshot


@dataclass(slots=True)
class Pace:
    """How fast receipts come. All times are seconds of one monotonic clock, the driver's."""

    actors: int  # of all pools
    _done: list[tuple[float, float, int]] = field(default_factory=list)  # (began, ended, tokens)
    _ready: dict[str, float] = field(default_factory=dict)  # by actor, when it held its models
    _start: float | None = None  # of the steady state
    _tokens: float = 0.0  # since then
    first: float | None = None
    last: float | None = None

    def took(self, arrived: float, seconds: float, since_ready: Mapping[str, float], tokens: int) -> None:
        """A unit took its actors (one of each pool) `seconds` together.

        It was done `since_ready` seconds after they held their models, by actor.
        """
        for actor, since in since_ready.items():
            self._ready[actor] = min(self._ready.get(actor, arrived), arrived - since)
        ended = min(self._ready[actor] + since for actor, since in since_ready.items())
        self._done.append((ended - seconds, ended, tokens))
        self.first = arrived if self.first is None else self.first
        self.last = arrived
        # An actor that came in place of a dead one, or alone for a suspect, is no reason to begin again.
        start = sorted(self._ready.values())[: self.actors][-1]
        if start == self._start:
            self._tokens += _share_after(start, *self._done[-1][:2]) * tokens
        else:  # seldom after the first receipts: a unit must not cost more the more came before it
            self._start = start
            self._tokens = sum(_share_after(start, began, ended) * tokens for began, ended, tokens in self._done)

    def tokens_per_second(self) -> float | None:
        """Steady state; a unit that began before the last actor was ready counts with the share that came after."""
        if self.last is None or self._start is None or self.last <= self._start:
            return None
        return self._tokens / (self.last - self._start)


def _share_after(start: float, began: float, ended: float) -> float:
    if ended <= began:
        return float(began >= start)
    return min(1.0, max(0.0, (ended - max(began, start)) / (ended - began)))


@dataclass(slots=True)
class Startup:
    """What a run did before its first receipt. Seconds of one monotonic clock, the driver's."""

    began: float
    epoch: float  # that clock's 0 in seconds since 1970
    planned: float | None = None  # when Ray was about to start
    connected: float | None = None  # when it ran
    chosen: float | None = None  # when engines were tried out, where a trial was worth it
    _first: dict[str, float] | None = None

    def came(self, arrived: float, told: Mapping[str, Any]) -> None:
        """A unit came; the first one ends the start-up. Of its actors, it waited for the one that was ready last."""
        if self._first is not None or self.planned is None or self.connected is None or not told.get("loaded"):
            return
        chosen = self.chosen or self.connected
        last = max(told["loaded"].values(), key=lambda each: float(each["at"]))
        # The clock of the actor's node may differ: it was ready after Ray ran, and before it had computed the unit.
        ready = min(max(last["at"] - self.epoch, chosen), arrived - min(told["since_ready"].values()))
        self._first = {
            "planning": self.planned - self.began,
            "ray": self.connected - self.planned,
            "trial": chosen - self.connected,
            "actors": max(0.0, ready - chosen - last["imports"] - last["models"]),
            "imports": last["imports"],
            "models": last["models"],
            "first_unit": arrived - ready,
        }

    def seconds(self) -> dict[str, float] | None:
        """One after the other, as the driver waited: planning; starting Ray, until its workers run; trials (of engines,
        of int8); until the actor begins; its imports of torch and transformers; its models; its first unit, from the
        wait for it to its receipt. Where workers are forked, what they import is imported beside the planning, and what
        that takes longer stands in `ray`. None before the first receipt.
        """
        return None if self._first is None else {name: round(seconds, 3) for name, seconds in self._first.items()}


class Quarantine:
    """How many rows are set aside, receipt by receipt, and whether that is more than the job allows.

    A file of unknown length, unreadable to this day, counts with the rows that its size lets expect.
    """

    def __init__(self, limits: Limits, plan: Plan) -> None:
        """Nothing is set aside yet."""
        self._allowed = limits.max_quarantined
        self._planned = plan.rows
        of_unit = {unit.id: unit.spans[0].fragment for unit in plan.units if unit.spans[0].row_group is None}
        expected = _rows_expected(plan.fragments, [plan.fragments[fragment] for fragment in of_unit.values()])
        self._expected = dict(zip(of_unit, expected, strict=True))  # by unit
        self.rows = 0
        self._unknown = 0

    def add(self, receipt: Receipt) -> None:
        """A receipt that stands."""
        self.rows += receipt.rows_quarantined
        if receipt.spans is None:
            self._unknown += self._expected.get(receipt.unit, 0)

    @property
    def over_limit(self) -> bool:
        """Whether limits.max_quarantined is broken; what comes later cannot mend it."""
        quarantined = self.rows + self._unknown
        if isinstance(self._allowed, int):
            return quarantined > self._allowed
        planned = self._planned + self._unknown
        return planned > 0 and quarantined / planned > self._allowed


def over_limit(limits: Limits, receipts: Iterable[Receipt], plan: Plan) -> bool:
    """Whether more is quarantined than the job allows."""
    quarantine = Quarantine(limits, plan)
    for receipt in receipts:
        quarantine.add(receipt)
    return quarantine.over_limit


def _rows_expected(known: Iterable[Fragment], unreadable: Iterable[Fragment]) -> list[int]:
    """Rows that each unreadable file probably holds: as many a byte as the others, at least one."""
    readable = [fragment for fragment in known if fragment.problem is None]
    rows, size = sum(fragment.rows for fragment in readable), sum(fragment.size for fragment in readable)
    return [max(1, round(fragment.size * rows / size)) if size else 1 for fragment in unreadable]


def lowered_budgets(receipts: Iterable[Receipt], plan: Plan) -> dict[str, tuple[int, int]]:
    """Where memory ran out: the fewest padded tokens of a micro-batch, and of how many units, by annotation."""
    found: dict[str, tuple[int, int]] = {}
    for receipt in receipts:
        for name, tokens in receipt.token_budget.items():
            if tokens < plan.annotations[name].token_budget:
                least, units = found.get(name, (tokens, 0))
                found[name] = (min(least, tokens), units + 1)
    return found


@dataclass(slots=True)
class Tally:
    """Receipts as they come in: of earlier runs, then of this one."""

    units_total: int
    rows_total: int
    began: float  # when the first unit could start, by the driver's monotonic clock
    quarantine: Quarantine
    pace: Pace
    startup: Startup | None = None
    units_done: int = 0
    rows_done: int = 0
    rows_before: int = 0
    rows_first: int = 0  # of this run's first receipt
    tokens: int = 0
    padding_tokens: int = 0
    tokens_by_annotation: dict[str, int] = field(default_factory=dict)
    seconds_by_annotation: dict[str, float] = field(default_factory=dict)  # in models, of all actors together
    repeated_by_annotation: dict[str, int] = field(default_factory=dict)  # texts of which it was known already

    def stands(self, receipts: Iterable[Receipt]) -> None:
        """Receipts that earlier runs wrote."""
        for receipt in receipts:
            self.units_done += 1
            self.rows_before += receipt.rows_read
            self.quarantine.add(receipt)
        self.rows_done = self.rows_before

    def came(self, receipt: Receipt, previous: Receipt | None, arrived: float, told: Mapping[str, Any]) -> None:
        """A receipt of this run; a retry's holds the tokens of the `previous` one too."""
        tokens = receipt.tokens - (previous.tokens if previous else 0)
        self.units_done += 1
        self.rows_done += receipt.rows_read
        self.quarantine.add(receipt)
        self.tokens += tokens
        self.padding_tokens += receipt.padding_tokens - (previous.padding_tokens if previous else 0)
        for name, count in receipt.tokens_by_annotation.items():
            before = previous.tokens_by_annotation.get(name, 0) if previous else 0
            self.tokens_by_annotation[name] = self.tokens_by_annotation.get(name, 0) + count - before
        for name, model_seconds in dict(told.get("seconds_by_annotation") or {}).items():
            self.seconds_by_annotation[name] = self.seconds_by_annotation.get(name, 0.0) + model_seconds
        for name, texts in dict(told.get("repeated_by_annotation") or {}).items():
            self.repeated_by_annotation[name] = self.repeated_by_annotation.get(name, 0) + texts
        if told.get("since_ready"):
            if self.pace.first is None:
                self.rows_first = receipt.rows_read
            if self.startup is not None:
                self.startup.came(arrived, told)
            self.pace.took(arrived, told["seconds"], told["since_ready"], tokens)

    def _eta(self, now: float) -> float | None:
        """By the rows since the first receipt: what came before was starting up. By all of this run's until then."""
        rows, seconds = self.rows_done - self.rows_before, now - self.began
        if self.pace.first is not None and rows > self.rows_first:
            rows, seconds = rows - self.rows_first, now - self.pace.first
        return max(0, self.rows_total - self.rows_done) * seconds / rows if rows else None

    def snapshot(self, now: float) -> Snapshot:
        """How far the run is."""
        return Snapshot(
            units_done=self.units_done,
            units_total=self.units_total,
            rows_done=self.rows_done,
            rows_total=self.rows_total,
            rows_quarantined=self.quarantine.rows,
            tokens=self.tokens,
            padding_tokens=self.padding_tokens,
            tokens_per_second=self.pace.tokens_per_second(),
            eta_seconds=self._eta(now),
        )
