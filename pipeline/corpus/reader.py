"""Units become tables: the rows that can be read and that the filter keeps, and what is told of the others.

    UnitReader(plan).read(unit, fragments)
    ReadUnit(table=…, problems=[Problem(row=3, …, reason=PARTITION_CONTRADICTS)], lost=[Lost("b.parquet", 0, 1024,
             DAMAGED_ROW_GROUP, …)], rows_read=4096, rows_filtered=17)

The table has the wanted columns in the corpus's common types, then `_file` and `_row`.
"""

import posixpath
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq

from pipeline.corpus.fragments import DECODE_ERRORS, UnreadableFileError, check_names, open_parquet, row_groups_of
from pipeline.corpus.identity import IDENTITY
from pipeline.corpus.listing import ListedFile, first_line, look
from pipeline.corpus.plan import Fragment, Span, Unit
from pipeline.corpus.row_filter import RowFilter
from pipeline.corpus.rowgroup import Piece, pieces_of, ranges_of
from pipeline.corpus.rows import RowReader, Rows
from pipeline.errors import CorpusError
from pipeline.quarantine import Lost, Problem, Reason

FOOTERS_KEPT = 4
"""Parsed footers that a process keeps: a file of 2,000 row groups is read by one unit after the other."""


@dataclass(frozen=True, slots=True)
class _Footer:
    """A parsed footer; `ends_G`: behind the last row of each of its G row groups."""

    metadata: pq.FileMetaData
    ends_G: tuple[int, ...]


_footers: OrderedDict[tuple[str, str, str], _Footer] = OrderedDict()


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What all units of a run are read by; small and picklable."""

    filesystem: fs.FileSystem
    root: str
    schema: pa.Schema  # of the whole corpus
    columns: tuple[str, ...]  # to read; partition columns may be among them
    filter: str | None  # SQL
    partition: tuple[str, ...]  # names of the partition columns
    identity_carried: bool  # the corpus has `_file` and `_row` of its own


@dataclass(slots=True)
class ReadUnit:
    """One unit as it was read. rows_read = rows_filtered + rows of the table + lost rows of known number."""

    table: pa.Table
    problems: list[Problem]
    lost: list[Lost]
    rows_read: int
    rows_filtered: int
    spans: list[tuple[str, int, int]] | None = None
    """(file, first row, rows) of all that was covered, where a file could be read that the plan has no rows of."""


@dataclass(slots=True)
class _Collected:
    """What the spans of a unit gave so far."""

    tables: list[pa.Table]
    problems: list[Problem] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    covered: list[tuple[str, int, int]] = field(default_factory=list)
    rows: int = 0
    filtered: int = 0

    def add(self, table: pa.Table, rows: Rows) -> None:
        """Rows that could be read."""
        self.problems += [Problem(self.rows + row, None, reason, detail) for row, reason, detail in rows.faults]
        self.tables.append(table)
        self.rows += table.num_rows
        self.filtered += rows.filtered

    def lose(self, file: str, rows: Sequence[int] | None, reason: Reason, detail: str) -> None:
        """Rows that could not, by their ascending file positions; None where nobody knows how many."""
        if rows is None:
            self.lost.append(Lost(file, None, None, reason, detail))
        else:
            self.lost += [Lost(file, first, count, reason, detail) for first, count in ranges_of(rows)]


@lru_cache(maxsize=4)
def _parsed(sql: str, schema: pa.Schema) -> RowFilter:
    """A run's filter, parsed once in each process."""
    from pipeline.corpus.filter import parse_filter  # most jobs have no predicate

    return parse_filter(sql, schema)


class UnitReader:
    """Reads units of one plan. Nothing that is wrong with a file or a row raises: it is told in the `ReadUnit`."""

    def __init__(self, plan: ReadPlan) -> None:
        """Parse the plan's filter."""
        self._plan = plan
        identity = [plan.schema.field(each.name) if plan.identity_carried else each for each in IDENTITY]
        names = [name for name in plan.columns if name not in {each.name for each in identity}]
        fields = [plan.schema.field(name) for name in names]
        self._schema = pa.schema([*fields, *identity], metadata=plan.schema.metadata)
        row_filter = None if plan.filter is None else _parsed(plan.filter, plan.schema)
        read = self._schema.names if plan.identity_carried else names
        self._rows = RowReader(plan.schema, read, plan.partition, row_filter)

    def empty(self) -> pa.Table:
        """A unit's table without rows."""
        return self._schema.empty_table()

    def read(self, unit: Unit, fragments: Mapping[int, Fragment], accept_changed: bool = False) -> ReadUnit:
        """Read a unit.

        With `accept_changed`, files are taken as they stand now: planned rows by their positions in the file, and
        files that could not be read when they were planned as a whole.
        """
        collected = _Collected([self.empty()])
        for span in unit.spans:
            fragment = fragments[span.fragment]
            if fragment.problem is not None and not accept_changed:
                collected.lose(fragment.path, None, *fragment.problem)
            else:
                self._span(span, fragment, accept_changed, collected)
        unknown = any(fragments[span.fragment].problem is not None for span in unit.spans)
        return ReadUnit(
            # One dictionary a column: what writes the rows need not know how they were read.
            table=pa.concat_tables(collected.tables).unify_dictionaries(),
            problems=collected.problems,
            lost=collected.lost,
            rows_read=collected.filtered + collected.rows + sum(lost.rows or 0 for lost in collected.lost),
            rows_filtered=collected.filtered,
            spans=collected.covered if unknown and collected.covered else None,
        )

    def _span(self, span: Span, fragment: Fragment, accept_changed: bool, collected: _Collected) -> None:
        """Read one span, or tell why not."""
        wanted = _wanted(span, fragment)
        path = posixpath.join(self._plan.root, fragment.path)
        listed = look(self._plan.filesystem, path)
        problem = _gone(listed) if accept_changed else _gone(listed) or _changed(listed, fragment)
        if problem is None:
            try:
                parquet, ends_G = self._open(path, listed)
                with parquet:
                    self._file(parquet, ends_G, span, fragment, listed, collected)
                return
            except UnreadableFileError as error:
                problem = error.reason, error.detail
            except CorpusError as error:  # a doubled column
                problem = Reason.FILE_CHANGED, str(error)
        collected.lose(fragment.path, wanted, *problem)

    def _open(self, path: str, listed: ListedFile) -> tuple[pq.ParquetFile, tuple[int, ...]]:
        """The open file, and where its row groups end."""
        key = (self._plan.filesystem.type_name, path, listed.fingerprint)
        known = _footers.get(key)
        parquet = open_parquet(self._plan.filesystem, path, known and known.metadata, checked=True)
        if known is None:
            check_names(parquet.schema_arrow, path)
            groups = row_groups_of(parquet.metadata)
            known = _Footer(parquet.metadata, tuple(accumulate(group.rows for group in groups)))
        _footers[key] = known
        _footers.move_to_end(key)
        while len(_footers) > FOOTERS_KEPT:
            _footers.popitem(last=False)
        return parquet, known.ends_G

    def _file(
        self,
        parquet: pq.ParquetFile,
        ends_G: tuple[int, ...],
        span: Span,
        fragment: Fragment,
        listed: ListedFile,
        collected: _Collected,
    ) -> None:
        """The rows of a span from its open file."""
        rows = ends_G[-1] if ends_G else 0
        wanted = _wanted(span, fragment)
        if wanted is None:
            wanted = range(rows)
        for piece in pieces_of(ends_G, wanted):
            self._piece(parquet, piece, fragment, listed, collected)
        beyond = wanted[bisect_left(wanted, rows) :]
        collected.lose(fragment.path, beyond, Reason.FILE_CHANGED, f"the file has only {rows} rows now")
        collected.covered += [(fragment.path, first, count) for first, count in ranges_of(wanted)]

    def _piece(
        self, parquet: pq.ParquetFile, piece: Piece, fragment: Fragment, listed: ListedFile, collected: _Collected
    ) -> None:
        """The rows of one row group, or why they are lost."""
        rows: Rows | None = None
        problem = Reason.DAMAGED_ROW_GROUP, ""
        try:
            rows = self._rows.read(parquet, piece, fragment.partition)
        except DECODE_ERRORS as error:
            incompatible = isinstance(error, pa.ArrowNotImplementedError) and listed.fingerprint != fragment.fingerprint
            reason = Reason.FILE_CHANGED if incompatible else Reason.DAMAGED_ROW_GROUP
            problem = reason, f"row group {piece.group}: {first_line(error)}"
        # A file that is rewritten in place while it is read gives damage, or rows of two times.
        now = look(self._plan.filesystem, posixpath.join(self._plan.root, fragment.path))
        changed = _gone(now) or _changed(now, listed)
        if rows is None or changed is not None:
            collected.lose(fragment.path, piece.positions, *(changed or problem))
        else:
            collected.add(self._identified(rows, fragment), rows)

    def _identified(self, rows: Rows, fragment: Fragment) -> pa.Table:
        """The rows as the plan's schema has them, each with its place of origin."""
        columns = rows.table.columns
        if not self._plan.identity_carried:
            file, row = IDENTITY
            columns += [
                pa.repeat(pa.scalar(fragment.path, file.type), len(rows.positions_R)),
                pa.array(rows.positions_R, row.type),
            ]
        return pa.Table.from_arrays(columns, schema=self._schema)


def _wanted(span: Span, fragment: Fragment) -> Sequence[int] | None:
    """The file positions that a span stands for; None where the plan does not know the file's rows."""
    if fragment.problem is not None or span.row_group is None:
        return None
    first = sum(group.rows for group in fragment.row_groups[: span.row_group])
    return range(first + span.start, first + span.stop) if span.selected is None else span.selected


def _gone(now: ListedFile) -> tuple[Reason, str] | None:
    """Why there is nothing to open."""
    return now.problem if now.problem is not None and not now.fingerprint else None


def _changed(now: ListedFile, before: ListedFile | Fragment) -> tuple[Reason, str] | None:
    """Whether a file is another than it was."""
    if now.fingerprint == before.fingerprint:
        return None
    if now.size == before.size:
        return Reason.FILE_CHANGED, f"it was written again since it was planned, with {now.size} bytes as before"
    return Reason.FILE_CHANGED, f"it had {before.size} bytes when it was planned, and has {now.size} now"
