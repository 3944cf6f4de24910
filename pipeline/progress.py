"""What a running job tells of itself. Pure values; `jobs.display` shows them."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a run is, from the receipts alone."""

    units_done: int
    units_total: int
    rows_done: int  # read, with those of units that an earlier run committed
    rows_total: int
    rows_quarantined: int
    tokens: int  # real ones, this run
    padding_tokens: int
    tokens_per_second: float | None  # steady state; None before the first receipt
    eta_seconds: float | None

    @property
    def padding_share(self) -> float:
        """Padding among all tokens that went through the models, 0 to 1."""
        every = self.tokens + self.padding_tokens
        return self.padding_tokens / every if every else 0.0


class Watcher(Protocol):
    """Somebody who looks on."""

    def phase(self, text: str) -> None:
        """A new phase begins: "planning", "starting 2 actors" …"""
        ...

    def advance(self, snapshot: Snapshot) -> None:
        """Receipts came in."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know, once."""
        ...


class Silent:
    """A watcher for tests and for Python callers."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def advance(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
