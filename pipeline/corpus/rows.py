"""From a piece of a file to rows of the corpus: filtered, in the common types, with their partition's values.

    Rows(table=…, positions_R=[4096 4099 …], faults=[(1, Reason.CAST_FAILED, "column 'at': …")], filtered=2)

The filter's columns are read first; where no row matches, the others are never decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.acero import Declaration, ProjectNodeOptions, TableSourceNodeOptions

from pipeline.corpus.hive import Partition, scalar_of, value_of
from pipeline.corpus.listing import first_line
from pipeline.corpus.row_filter import RowFilter
from pipeline.corpus.rowgroup import Piece, read_columns
from pipeline.corpus.schema import cast
from pipeline.corpus.selection import take_rows
from pipeline.quarantine import Reason

Fault = tuple[int, Reason, str]
"""A row of a table, and what is wrong with it."""


@dataclass(slots=True)
class Rows:
    """R rows of one piece that the filter left, in input order."""

    table: pa.Table
    positions_R: npt.NDArray[np.int64]  # in the file
    faults: list[Fault]
    filtered: int


class RowReader:
    """Reads pieces of the files of one corpus."""

    def __init__(
        self, schema: pa.Schema, columns: Sequence[str], partition: Sequence[str], row_filter: RowFilter | None
    ) -> None:
        """`columns` of the corpus's `schema` will be in each table, in that order."""
        self._schema = pa.schema([schema.field(name) for name in columns])
        self._filter = row_filter
        self._filter_schema = pa.schema([schema.field(name) for name in (row_filter.columns if row_filter else ())])
        self._partition = [schema.field(name) for name in partition]

    def read(self, parquet: pq.ParquetFile, piece: Piece, partition: Partition) -> Rows:
        """Rows of one piece of a file in this partition.

        Raises one of `fragments.DECODE_ERRORS` where the bytes are damaged or a column cannot become the corpus's.
        """
        asked, faults = self._columns(parquet, piece, partition, self._filter_schema)
        kept_R = np.arange(piece.rows) if self._filter is None else matching_rows(asked, self._filter)
        if faults:  # whether the filter wants such a row cannot be told, so it is not left out
            kept_R = np.union1d(kept_R, [row for row, _, _ in faults])
        filtered = piece.rows - len(kept_R)
        if len(kept_R) == 0:
            return Rows(self._schema.empty_table(), kept_R.astype(np.int64), [], filtered)
        others = [field for field in self._schema if field.name not in asked.schema.names]
        rest, more = self._columns(parquet, piece, partition, pa.schema(others))
        faults += more + self._contradictions(parquet, piece, partition)
        columns = [(asked if field.name in asked.schema.names else rest).column(field.name) for field in self._schema]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        if filtered:
            table = take_rows(table, kept_R)
            place_of = {int(row): place for place, row in enumerate(kept_R)}
            faults = [(place_of[row], reason, detail) for row, reason, detail in faults if row in place_of]
        return Rows(table, piece.position_array[kept_R], faults, filtered)

    def _columns(
        self, parquet: pq.ParquetFile, piece: Piece, partition: Partition, schema: pa.Schema
    ) -> tuple[pa.Table, list[Fault]]:
        """All rows of the piece with the columns of `schema`; a value that its type cannot hold is null and a fault."""
        constant = {field.name for field in self._partition}
        found = read_columns(parquet, piece, [name for name in schema.names if name not in constant])
        columns, faults = [], []
        for field in schema:
            if field.name in constant:
                column = pa.chunked_array([pa.repeat(scalar_of(partition, field), piece.rows)], field.type)
            elif field.name in found.schema.names:
                column, unfit = _fitted(found.column(field.name), field)
                faults += unfit
            else:
                column = pa.chunked_array([pa.nulls(piece.rows, field.type)], field.type)
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=schema), faults

    def _contradictions(self, parquet: pq.ParquetFile, piece: Piece, partition: Partition) -> list[Fault]:
        """Rows that say otherwise than their path, where the file has a hive key as a column too."""
        found = read_columns(parquet, piece, [field.name for field in self._partition])
        faults: list[Fault] = []
        for field in self._partition:
            if field.name in found.schema.names:
                column, value = found.column(field.name), value_of(partition, field.name)
                for row in contradicting_rows(column, value):
                    detail = f"the path says {field.name}={value}, the row says {column[row].as_py()!r}"
                    faults.append((row, Reason.PARTITION_CONTRADICTS, detail))
        return faults


def matching_rows(table: pa.Table, row_filter: RowFilter) -> npt.NDArray[np.int64]:
    """The rows, ascending, for which the filter is true: neither false nor null."""
    # Not `Table.filter`: it would copy the rows too, and has no kernel for some types. One thread keeps the order.
    plan = Declaration.from_sequence(
        [
            Declaration("table_source", TableSourceNodeOptions(table)),
            Declaration("project", ProjectNodeOptions([row_filter.expression], ["wanted"])),
        ]
    )
    wanted = plan.to_table(use_threads=False).column("wanted")
    return np.flatnonzero(pc.fill_null(wanted, False).to_numpy())


def contradicting_rows(column: pa.ChunkedArray, value: str | None) -> list[int]:
    """Rows whose own value is another than the path's; a null contradicts nothing, and a null path every value."""
    if value is None:
        differs = pc.is_valid(column)
    else:
        if pa.types.is_dictionary(column.type):
            column = pc.cast(column, column.type.value_type)
        try:
            differs = pc.not_equal(column, pa.scalar(value).cast(column.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # the path's value is none of the column's type
            differs = pc.is_valid(column)
    return [int(row) for row in np.flatnonzero(pc.fill_null(differs, False).to_numpy(zero_copy_only=False))]


def _fitted(column: pa.ChunkedArray, field: pa.Field) -> tuple[pa.ChunkedArray, list[Fault]]:
    """The column in the field's type. Where a value does not fit, halves are tried until it stands alone."""
    try:
        return cast(column, field.type), []
    except pa.ArrowInvalid as error:
        if len(column) == 1:
            fault = (0, Reason.CAST_FAILED, f"column '{field.name}': {first_line(error)}")
            return pa.chunked_array([pa.nulls(1, field.type)], field.type), [fault]
    middle = len(column) // 2
    left, faults = _fitted(column.slice(0, middle), field)
    right, more = _fitted(column.slice(middle), field)
    faults += [(middle + row, reason, detail) for row, reason, detail in more]
    return pa.chunked_array([*left.chunks, *right.chunks], field.type), faults
