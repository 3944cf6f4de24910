"""Whose fault is a worker's death? The unit that was running; and, with a journal, the row.

An actor that begins a unit leaves a mark in `metadata/tmp/attempts-<epoch>/`, and takes it away at the end. Who finds
a mark of an earlier attempt at the same unit knows that a process died over it:

    6f1c….annotate.0   {"phase": "stream", "rows": null}        the first attempt died; which row, nobody knows
    6f1c….annotate.1   {"phase": "stream", "rows": [7, 41]}     the second kept a journal of its micro-batches
    6f1c….annotate.2   {"phase": "trial", "rows": [41]}         alone, row by row: row 41 it is

The epoch is the run's own, so the death of a driver never counts. Nothing is synced to disk: the marks have to outlive
a process, not the machine.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.output.storage import Store

Stage = str
"""`read`, `annotate`, and where annotations have pools of their own `annotate-<pool>`."""

Phase = Literal["stream", "trial", "whole"]
"""stream: beside other units; trial: alone, one row at a time; whole: alone, all rows that survived the trial."""

DEATHS_BESIDE_OTHERS = 2
"""After so many deaths the next attempt at a unit is made with nothing beside it."""

DEATHS_AT_MOST = 16
"""A unit that goes on killing processes after so many deaths is quarantined whole."""


@dataclass(frozen=True, slots=True)
class Death:
    """One attempt that did not come to its end; `rows` of the unit were in flight (None: not known)."""

    phase: Phase
    rows: tuple[int, ...] | None


def blamed_rows(deaths: Iterable[Death], rows: int) -> set[int]:
    """Rows (of `rows`) that are known to kill: they died alone, or their micro-batch did after its trial."""
    killers: set[int] = set()
    for death in deaths:
        if death.phase != "stream":
            killers |= set(range(rows) if death.rows is None else death.rows)
    return killers


def suspected_rows(deaths: Sequence[Death], rows: int) -> list[int]:
    """Rows to try one at a time: those in flight at the last death beside others (all, where it kept no journal)."""
    in_company = [death for death in deaths if death.phase == "stream"]
    if not in_company:
        return []
    in_flight = in_company[-1].rows
    return sorted(set(range(rows) if in_flight is None else in_flight) - blamed_rows(deaths, rows))


class Attempt:
    """One attempt at one stage of a unit: a mark from its beginning to its end."""

    def __init__(self, store: Store, epoch: int, unit: str, stage: Stage) -> None:
        """Read the deaths before this attempt, and leave its own mark."""
        self._store = store
        self._prefix = f"metadata/tmp/attempts-{epoch}/{unit}.{stage}."
        self.deaths: list[Death] = []
        while (death := self._death(len(self.deaths))) is not None:
            self.deaths.append(death)
        self.running("stream", None)

    def _death(self, number: int) -> Death | None:
        data = self._store.find(f"{self._prefix}{number}")
        if data is None:
            return None
        try:
            mark = json.loads(data)
        except ValueError:  # it died while it wrote the mark itself
            return Death("stream", None)
        return Death(mark["phase"], None if mark["rows"] is None else tuple(mark["rows"]))

    def running(self, phase: Phase, rows: Sequence[int] | None) -> None:
        """Say which rows are in flight from now on."""
        mark = json.dumps({"phase": phase, "rows": None if rows is None else [int(row) for row in rows]})
        self._store.mark(f"{self._prefix}{len(self.deaths)}", mark.encode())

    def withdraw(self) -> None:
        """This attempt is not made after all; the deaths before it stay known."""
        self._store.delete(f"{self._prefix}{len(self.deaths)}")

    def end(self) -> None:
        """The attempt came to its end, well or with a told error: nobody died."""
        for number in range(len(self.deaths), -1, -1):
            self._store.delete(f"{self._prefix}{number}")
