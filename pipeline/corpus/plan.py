"""Fragments become units: pure, without files, Ray or torch.

Fragment(path="section=games/a.parquet", size=91532, fingerprint="91532-1763…", partition=(("section", "games"),),
         row_groups=(RowGroup(rows=4096, bytes=1_532_112), RowGroup(rows=17, bytes=6_101)))
Unit(id="6f1c…", folder="section=games", spans=(Span(fragment=0, row_group=0, start=0, stop=2048),))
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from pipeline.quarantine import Reason
from pipeline.workers import Device


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of a file: its rows, and the uncompressed bytes of the columns that will be read."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """One input file as it stood when it was planned.

    `path` is relative to the corpus root with `/` between folders; `partition` holds the hive keys and raw
    (still quoted) values of its folders, in path order. A file whose footer cannot be read has a `problem`, no row
    groups, and an unknown number of rows.
    """

    path: str
    size: int
    fingerprint: str  # size and modification time, or etag
    partition: tuple[tuple[str, str], ...]
    row_groups: tuple[RowGroup, ...]
    problem: tuple[Reason, str] | None = None

    @property
    def rows(self) -> int:
        """Rows in the whole file; 0 where the footer is unreadable."""
        return sum(group.rows for group in self.row_groups)

    @property
    def folder(self) -> str:
        """The hive folders of the file: `section=games/lang=en`, or nothing."""
        return "/".join(f"{key}={value}" for key, value in self.partition)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of one row group of one fragment, counted within the group.

    `selected` names a sample of them by their positions in the file, sorted. Without a row group the span stands for
    a whole file whose footer cannot be read: no rows that are known of.
    """

    fragment: int
    row_group: int | None
    start: int
    stop: int
    selected: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows that the span stands for."""
        return self.stop - self.start if self.selected is None else len(self.selected)


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows of one hive partition: read, annotated and committed together."""

    id: str
    folder: str
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Rows planned: all that are read, before the filter."""
        return sum(span.rows for span in self.spans)


UNIT_BYTES = 64 * 2**20

_CPU_UNIT_BYTES = 8 * 2**20
"""Still seconds of an actor's work. Of 26 million characters MiniLM's held 37 MB as strings and 35 MB as tokens, beside
what lay in Ray's store."""


@dataclass(frozen=True, slots=True)
class UnitBounds:
    """How large a unit may be, and how many there should be."""

    rows: int = 4096
    bytes: int = UNIT_BYTES  # uncompressed, of the columns that are read
    ranges_per_group: int = 32  # each range decodes its row group up to its end, so this wins over rows and bytes
    min_units: int = 4  # smaller units where the corpus would give fewer
    least_rows: int = 64  # none is smaller for having more of them
    actors: int = 1  # the last units are smaller where there are several: none idles long while another does its last
    first_rows: int | None = None  # of each actor's first unit, whose receipt tells soon that all is well

    @classmethod
    def for_device(cls, device: Device, actors: int, store_bytes: int | None = None, readers: int = 0) -> "UnitBounds":
        """Larger units where rows go by faster, at least four for each actor and for each process that tokenises.

        Those that are read, wait, are annotated and are committed at once have to fit an object store that is small.
        """
        at_once = _UNITS_AT_ONCE * max(2, actors) + 2 * readers
        most = UNIT_BYTES if device == "cuda" else _CPU_UNIT_BYTES
        size = most if store_bytes is None else min(most, store_bytes // at_once)
        rows, least_rows, first_rows = (65_536, 1024, 1024) if device == "cuda" else (4096, 64, 16)
        return cls(
            rows, size, min_units=4 * max(actors, readers), least_rows=least_rows, actors=actors, first_rows=first_rows
        )

    def rows_of(self, total_rows: int) -> int:
        """Rows of one unit where a corpus has so many; the last ones may have fewer."""
        units = max(self.min_units, -(-total_rows // self.rows))
        return min(self.rows, max(self.least_rows, -(-total_rows // units)))

    def rows_of_next(self, most_rows: int, total_rows: int, rows_left: int) -> int:
        """Rows of the next unit where at most so many are in one, and so many of all rows have no unit yet.

        Each actor begins with a small one, where there are rows for larger ones afterwards. Several come to their end
        at different times, at worst a unit apart: so each unit takes a share of what is left, half of an actor's, down
        to an eighth of a whole unit, for smaller ones have more padding (guided self-scheduling, Polychronopoulos and
        Kuck 1987).
        """
        few = total_rows < self.actors * self.least_rows
        if self.first_rows is not None and not few and total_rows - rows_left < self.actors * self.first_rows:
            return min(most_rows, self.first_rows)
        if self.actors == 1:
            return most_rows
        least_rows = min(most_rows, max(_SMALLEST_TAPERED_ROWS, self.least_rows, most_rows // 8))
        return max(least_rows, min(most_rows, rows_left // (2 * self.actors)))


def plan_units(
    fragments: Sequence[Fragment],
    kept: Mapping[int, Sequence[int]] | None,
    selection: Mapping[int, Sequence[int]] | None,
    bounds: UnitBounds,
) -> tuple[Unit, ...]:
    """Cut and join the rows of a corpus into units, in order of folder and path.

    `kept`: by fragment index, the row groups that the filter may match; a fragment that it lacks has none. `selection`:
    by fragment index, the sampled file positions, sorted; a fragment that it lacks has none. None means all. Every
    row of every kept group (that is selected) stands in exactly one span. A fragment with a problem is a unit of its
    own, whatever the filter and the sample say: it owes a receipt. The order of `fragments` changes no unit's id.
    """
    pieces = [list(_pieces(index, fragment, kept, selection)) for index, fragment in enumerate(fragments)]
    rows_left = total_rows = sum(piece.span.rows for of_fragment in pieces for piece in of_fragment)
    next_rows = partial(bounds.rows_of_next, bounds.rows_of(total_rows), total_rows)
    units: list[Unit] = []
    folders = [fragment.folder for fragment in fragments]
    unit = _Joined(fragments, "", bounds.bytes)
    for index in sorted(range(len(fragments)), key=lambda index: (folders[index], fragments[index].path)):
        if fragments[index].problem is not None:
            units.append(_unit(fragments, folders[index], (Span(index, None, 0, 0),)))
            continue
        if folders[index] != unit.folder:
            units.extend(unit.close())
            unit = _Joined(fragments, folders[index], bounds.bytes)
        for piece in pieces[index]:
            for part in piece.divided(bounds, unit.room, rows_left, next_rows):
                units.extend(unit.add(part, next_rows(rows_left)))
                rows_left -= part.span.rows
    units.extend(unit.close())
    return tuple(units)


_SMALLEST_TAPERED_ROWS = 128
_UNITS_AT_ONCE = 8  # for each actor


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one row group on their way into a unit, and the place of the group in its file."""

    span: Span
    bytes: float
    first: int  # file position of the group's row 0

    def divided(
        self, bounds: UnitBounds, room: int, rows_left: int, next_rows: Callable[[int], int]
    ) -> Iterator["_Piece"]:
        """Ranges that fill the unit before (which has `room` rows left), then units of their own.

        `next_rows` tells how many rows such a unit has, of those that no unit has yet; `rows_left` are these now. A
        row group that would need more ranges than it may have is divided evenly into as many as it may.
        """
        rows = self.span.rows
        fitting = max(1, int(bounds.bytes * rows / self.bytes)) if self.bytes else rows
        cuts = [0]
        while cuts[-1] < rows and len(cuts) <= bounds.ranges_per_group + 1:
            wanted = room if room > 0 and len(cuts) == 1 else next_rows(rows_left - cuts[-1])
            cuts.append(min(rows, cuts[-1] + min(wanted, fitting)))
        if len(cuts) - 1 > bounds.ranges_per_group:
            ranges = bounds.ranges_per_group
            cuts = [rows * part // ranges for part in range(ranges + 1)]
        for start, stop in pairwise(cuts):
            yield _Piece(self._range(start, stop), self.bytes * (stop - start) / rows, self.first)

    def _range(self, start: int, stop: int) -> Span:
        """The start-th to the stop-th row of the span."""
        span = self.span
        if span.selected is None:
            return Span(span.fragment, span.row_group, span.start + start, span.start + stop)
        selected = span.selected[start:stop]
        first, last = selected[0] - self.first, selected[-1] - self.first
        return Span(span.fragment, span.row_group, first, last + 1, selected)


def _pieces(
    index: int,
    fragment: Fragment,
    kept: Mapping[int, Sequence[int]] | None,
    selection: Mapping[int, Sequence[int]] | None,
) -> Iterator[_Piece]:
    """Each row group of a fragment that has rows to read, whole."""
    wanted = None if kept is None else frozenset(kept.get(index, ()))
    positions = None if selection is None else selection.get(index, ())
    stop = 0
    for number, group in enumerate(fragment.row_groups):
        first, stop = stop, stop + group.rows
        if group.rows == 0 or (wanted is not None and number not in wanted):
            continue
        if positions is None:
            yield _Piece(Span(index, number, 0, group.rows), group.bytes, first)
            continue
        selected = tuple(int(row) for row in positions[bisect_left(positions, first) : bisect_left(positions, stop)])
        if selected:
            span = Span(index, number, selected[0] - first, selected[-1] - first + 1, selected)
            yield _Piece(span, group.bytes * len(selected) / group.rows, first)


class _Joined:
    """The unit that is being filled: pieces of one folder, while they stay within the bounds."""

    def __init__(self, fragments: Sequence[Fragment], folder: str, bound_bytes: int) -> None:
        self.folder = folder
        self._fragments = fragments
        self._bound_rows = 0
        self._bound_bytes = bound_bytes
        self._spans: list[Span] = []
        self._rows = 0
        self._bytes = 0.0

    @property
    def room(self) -> int:
        """Rows that it can still take; none while it is empty."""
        return self._bound_rows - self._rows

    def add(self, piece: _Piece, bound_rows: int) -> list[Unit]:
        """Take a piece; where it does not fit, what was there before is a unit, and the next may have so many rows."""
        rows, size = self._rows + piece.span.rows, self._bytes + piece.bytes
        closed = self.close() if rows > self._bound_rows or size > self._bound_bytes else []
        if not self._spans:
            self._bound_rows = bound_rows
        self._spans.append(piece.span)
        self._rows += piece.span.rows
        self._bytes += piece.bytes
        return closed

    def close(self) -> list[Unit]:
        """The unit that the pieces so far make, if there are any."""
        spans, self._spans, self._bound_rows, self._rows, self._bytes = tuple(self._spans), [], 0, 0, 0.0
        return [_unit(self._fragments, self.folder, spans)] if spans else []


def _unit(fragments: Sequence[Fragment], folder: str, spans: tuple[Span, ...]) -> Unit:
    """A unit and its id: the same files and rows have the same id in every plan."""
    rows = [
        (fragments[span.fragment].path, fragments[span.fragment].fingerprint, span.row_group, span.start, span.stop)
        + ((span.selected,) if span.selected is not None else ())
        for span in spans
    ]
    return Unit(hashlib.sha256(json.dumps([folder, rows]).encode()).hexdigest()[:16], folder, spans)
