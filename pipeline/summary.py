"""The numbers of a run: pure, from receipts and from when they came.

Pace().took(arrived=71.2, actor="4711", seconds=1.9, since_ready=12.5, tokens=41_022)
-> tokens_per_second: steady state, from the moment all actors held their models to the last receipt
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.corpus.plan import Fragment
from pipeline.job import Limits
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt
from pipeline.progress import Snapshot


@dataclass(slots=True)
class Pace:
    """How fast receipts come. All times are seconds of one monotonic clock, the driver's."""

    _done: list[tuple[float, float, int]] = field(default_factory=list)  # (began, ended, tokens)
    _ready: dict[str, float] = field(default_factory=dict)  # by actor, when it held its models
    first: float | None = None
    last: float | None = None

    def took(self, arrived: float, actor: str, seconds: float, since_ready: float, tokens: int) -> None:
        """A unit took an actor `seconds`, and was done `since_ready` seconds after the actor held its models."""
        self._ready[actor] = min(self._ready.get(actor, arrived), arrived - since_ready)
        ended = self._ready[actor] + since_ready
        self._done.append((ended - seconds, ended, tokens))
        self.first = arrived if self.first is None else self.first
        self.last = arrived

    def tokens_per_second(self) -> float | None:
        """Steady state; a unit that began before the last actor was ready counts with the share that came after."""
        if self.last is None:
            return None
        start = max(self._ready.values())
        tokens = sum(_share_after(start, began, ended) * tokens for began, ended, tokens in self._done)
        return tokens / (self.last - start) if self.last > start else None


def _share_after(start: float, began: float, ended: float) -> float:
    if ended <= began:
        return float(began >= start)
    return min(1.0, max(0.0, (ended - max(began, start)) / (ended - began)))


@dataclass(slots=True)
class Tally:
    """Receipts as they come in: of earlier runs, then of this one."""

    units_total: int
    rows_total: int
    began: float  # when the first unit could start, by the driver's monotonic clock
    pace: Pace = field(default_factory=Pace)
    units_done: int = 0
    rows_done: int = 0
    rows_before: int = 0
    rows_first: int = 0  # of this run's first receipt
    rows_quarantined: int = 0
    tokens: int = 0
    padding_tokens: int = 0

    def stands(self, receipts: Iterable[Receipt]) -> None:
        """Receipts that earlier runs wrote."""
        for receipt in receipts:
            self.units_done += 1
            self.rows_before += receipt.rows_read
            self.rows_quarantined += receipt.rows_quarantined
        self.rows_done = self.rows_before

    def came(self, receipt: Receipt, arrived: float, told: Mapping[str, object]) -> None:
        """A receipt of this run."""
        self.units_done += 1
        self.rows_done += receipt.rows_read
        self.rows_quarantined += receipt.rows_quarantined
        self.tokens += receipt.tokens
        self.padding_tokens += receipt.padding_tokens
        if told.get("actor") is not None:
            seconds, since_ready = float(str(told["seconds"])), float(str(told["since_ready"]))
            if self.pace.first is None:
                self.rows_first = receipt.rows_read
            self.pace.took(arrived, str(told["actor"]), seconds, since_ready, receipt.tokens)

    def _eta(self, now: float) -> float | None:
        """By the rows since the first receipt: what came before was starting up. By all of this run's until then."""
        rows, seconds = self.rows_done - self.rows_before, now - self.began
        if self.pace.first is not None and rows > self.rows_first:
            rows, seconds = rows - self.rows_first, now - self.pace.first
        return (self.rows_total - self.rows_done) * seconds / rows if rows else None

    def snapshot(self, now: float) -> Snapshot:
        """How far the run is."""
        return Snapshot(
            units_done=self.units_done,
            units_total=self.units_total,
            rows_done=self.rows_done,
            rows_total=self.rows_total,
            rows_quarantined=self.rows_quarantined,
            tokens=self.tokens,
            padding_tokens=self.padding_tokens,
            tokens_per_second=self.pace.tokens_per_second(),
            eta_seconds=self._eta(now),
        )


def over_limit(limits: Limits, receipts: Mapping[str, Receipt], plan: Plan) -> bool:
    """Whether more is quarantined than the job allows.

    A file of unknown length, unreadable to this day, counts with the rows that its size lets expect.
    """
    unreadable = [
        plan.fragments[unit.spans[0].fragment]
        for unit in plan.units
        if unit.spans[0].row_group is None and unit.id in receipts and receipts[unit.id].spans is None
    ]
    unknown = _rows_expected(plan.fragments, unreadable)
    quarantined = sum(receipt.rows_quarantined for receipt in receipts.values()) + unknown
    if isinstance(limits.max_quarantined, int):
        return quarantined > limits.max_quarantined
    planned = plan.rows + unknown
    return planned > 0 and quarantined / planned > limits.max_quarantined


def _rows_expected(known: Iterable[Fragment], unreadable: Iterable[Fragment]) -> int:
    """Rows that unreadable files probably hold: as many a byte as the others, at least one each."""
    rows = sum(fragment.rows for fragment in known)
    size = sum(fragment.size for fragment in known if fragment.problem is None)
    return sum(max(1, round(fragment.size * rows / size) if size else 0) for fragment in unreadable)
