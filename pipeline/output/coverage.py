"""Which rows a unit must account for, and whether it does: pure, on arrays of row numbers.

cover = Cover.of(plan, unit, receipt)       # a.parquet: rows 0-4095, b.parquet: rows 3, 17, 21
cover.ordinals(files, rows)                 # -> the place of each row among all rows of the unit, -1 for a strange one
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.plan import Fragment, Span, Unit
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt
from pipeline.output.rejects import printable

Rows = npt.NDArray[np.int64]


def file_positions(fragment: Fragment, span: Span) -> Rows:
    """The file positions of a span's R rows, ascending."""
    if span.selected is not None:
        return np.array(span.selected, np.int64)
    if span.row_group is None:
        return np.empty(0, np.int64)
    before = sum(group.rows for group in fragment.row_groups[: span.row_group])
    return np.arange(before + span.start, before + span.stop, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Cover:
    """The rows of one unit: file names, and for each the ascending positions."""

    files: tuple[str, ...]
    rows: tuple[Rows, ...]
    unknown: tuple[str, ...]  # files whose rows nobody could count

    @classmethod
    def of(cls, plan: Plan, unit: Unit, receipt: Receipt) -> "Cover":
        """What the plan says, or the receipt where the plan could not know."""
        rows: dict[str, list[Rows]] = {}
        if receipt.spans is not None:
            for file, first, count in receipt.spans:
                rows.setdefault(printable(file), []).append(np.arange(first, first + count, dtype=np.int64))
        else:
            for span in unit.spans:
                fragment = plan.fragments[span.fragment]
                rows.setdefault(printable(fragment.path), []).append(file_positions(fragment, span))
        unknown = [plan.fragments[span.fragment].path for span in unit.spans if span.row_group is None]
        return cls(
            files=tuple(rows),
            rows=tuple(np.sort(np.concatenate(pieces)) for pieces in rows.values()),
            unknown=() if receipt.spans is not None else tuple(printable(path) for path in unknown),
        )

    @property
    def total(self) -> int:
        """Rows that the unit stands for."""
        return sum(len(rows) for rows in self.rows)

    def ordinals(self, files: pa.ChunkedArray, rows: pa.ChunkedArray) -> Rows:
        """The place of each of R rows among the rows of the unit, in input order; -1 for one that is not of it."""
        codes_R = pc.fill_null(pc.index_in(files, value_set=pa.array(self.files, files.type)), -1).to_numpy()
        rows_R = pc.fill_null(rows, -1).to_numpy()
        ordinals_R = np.full(len(rows_R), -1, np.int64)
        base = 0
        for code, expected in enumerate(self.rows):
            here = np.flatnonzero(codes_R == code)
            if len(here) and len(expected):
                places = np.minimum(np.searchsorted(expected, rows_R[here]), len(expected) - 1)
                found = expected[places] == rows_R[here]
                ordinals_R[here[found]] = base + places[found]
            base += len(expected)
        return ordinals_R

    def named(self, ordinal: int) -> str:
        """`row 17 of a.parquet`."""
        for file, rows in zip(self.files, self.rows, strict=True):
            if ordinal < len(rows):
                return f"row {rows[ordinal]} of {file}"
            ordinal -= len(rows)
        raise IndexError(ordinal)


def overlaps(plan: Plan) -> list[str]:
    """Files of which two spans claim the same rows."""
    claimed: dict[int, list[tuple[int, int]]] = {}
    for unit in plan.units:
        for span in unit.spans:
            rows_R = file_positions(plan.fragments[span.fragment], span)
            if len(rows_R):
                claimed.setdefault(span.fragment, []).append((int(rows_R[0]), int(rows_R[-1])))
    return [plan.fragments[fragment].path for fragment, spans in claimed.items() if _overlap(sorted(spans))]


def _overlap(spans: list[tuple[int, int]]) -> bool:
    return any(first <= last for (_, last), (first, _) in pairwise(spans))


_BLOCK_BITS = 13


@dataclass(slots=True)
class Seen:
    """Rows seen so far over many units, one bit each, for corpora whose rows brought their identity along."""

    _blocks: dict[tuple[str, int], npt.NDArray[np.uint8]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, files: Iterable[str], rows_R: Rows) -> list[tuple[str, int]]:
        """Note (file, row) pairs; those that were there already, or come twice now."""
        twice: list[tuple[str, int]] = []
        names, codes_R = np.unique(np.array(list(files), object).astype(str), return_inverse=True)
        with self._lock:
            for code, name in enumerate(names):
                numbers, counts = np.unique(rows_R[codes_R == code], return_counts=True)
                twice += [(str(name), int(row)) for row in numbers[counts > 1]]
                for block in np.unique(numbers >> _BLOCK_BITS):
                    inside = numbers[numbers >> _BLOCK_BITS == block] & ((1 << _BLOCK_BITS) - 1)
                    twice += self._add_block(str(name), int(block), inside)
        return twice

    def _add_block(self, file: str, block: int, inside: Rows) -> list[tuple[str, int]]:
        """Note rows of one block of 8,192."""
        bits = np.zeros(1 << _BLOCK_BITS, np.bool_)
        bits[inside] = True
        packed = np.packbits(bits)
        standing = self._blocks.setdefault((file, block), np.zeros_like(packed))
        again = np.flatnonzero(np.unpackbits(standing & packed))
        standing |= packed
        return [(file, (block << _BLOCK_BITS) + int(row)) for row in again]
