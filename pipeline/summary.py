"""The numbers of a run: pure, from receipts and from when they came.

Pace().took(arrived=71.2, actor="4711", seconds=1.9, since_ready=12.5, tokens=41_022)
-> tokens_per_second: steady state, from the moment all actors held their models to the last receipt
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.corpus.plan import Fragment
from pipeline.job import Limits
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
            self.pace.took(arrived, str(told["actor"]), seconds, since_ready, receipt.tokens)

    def snapshot(self, now: float) -> Snapshot:
        """How far the run is."""
        worked, seconds = self.rows_done - self.rows_before, now - self.began
        left = self.rows_total - self.rows_done
        return Snapshot(
            units_done=self.units_done,
            units_total=self.units_total,
            rows_done=self.rows_done,
            rows_total=self.rows_total,
            rows_quarantined=self.rows_quarantined,
            tokens=self.tokens,
            padding_tokens=self.padding_tokens,
            tokens_per_second=self.pace.tokens_per_second(),
            eta_seconds=left * seconds / worked if worked else None,
        )


def over_limit(limits: Limits, receipts: Iterable[Receipt], fragments: Iterable[Fragment], rows_planned: int) -> bool:
    """Whether more is quarantined than the job allows.

    A file of unknown length counts with the rows that its size lets expect.
    """
    quarantined = sum(receipt.rows_quarantined for receipt in receipts)
    unknown = _rows_expected(fragments)
    if isinstance(limits.max_quarantined, int):
        return quarantined + unknown > limits.max_quarantined
    planned = rows_planned + unknown
    return planned > 0 and (quarantined + unknown) / planned > limits.max_quarantined


def _rows_expected(fragments: Iterable[Fragment]) -> int:
    """Rows that files with unreadable footers probably hold: as many a byte as their neighbours, at least one each."""
    known_rows = known_bytes = 0
    unreadable: list[int] = []
    for fragment in fragments:
        if fragment.problem is None:
            known_rows, known_bytes = known_rows + fragment.rows, known_bytes + fragment.size
        else:
            unreadable.append(fragment.size)
    rate = known_rows / known_bytes if known_bytes else 0.0
    return sum(max(1, round(size * rate)) for size in unreadable)
