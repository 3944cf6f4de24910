"""What a quarantine file holds: one entry for each failure, with the row as it was and what the others found.

    _file             _row  annotation  reason             detail                       input
    a/part-0.parquet  17    topic       blank_text         the text has 3 characters …  {package: …, mood_label: …}
    a/part-1.parquet  4096  null        damaged_row_group  page 3 of …                  null

All files of a run have one schema, so that a reader takes the folder whole.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.corpus.selection import take_rows
from pipeline.quarantine import Lost, Problem

IDENTITY = ("_file", "_row")


def entries(table: pa.Table, problems: Sequence[Problem], lost: Sequence[Lost]) -> pa.Table:
    """The entries of one unit, in the order of its rows; lost ones last.

    `table` holds all columns of the rows that were read. A file of unknown length gives one entry without `_row`.
    Text that is not UTF-8 comes with U+FFFD in its place: DuckDB and polars refuse whole files otherwise.
    """
    ordered = sorted(problems, key=lambda problem: (problem.row, problem.annotation or "", problem.reason))
    failed = take_rows(table, [problem.row for problem in ordered]).combine_chunks()
    schema = entry_schema(table.schema)
    read = pa.table(
        [
            failed["_file"].cast(pa.string()),
            failed["_row"].cast(pa.int64()),
            pa.array([problem.annotation for problem in ordered], pa.string()),
            pa.array([problem.reason.value for problem in ordered], pa.string()),
            pa.array([printable(problem.detail) for problem in ordered], pa.string()),
            _as_struct(failed, schema.field("input").type),
        ],
        schema=schema,
    )
    return pa.concat_tables([read, *(_lost_entries(each, schema) for each in lost)]).combine_chunks()


def entry_schema(table: pa.Schema) -> pa.Schema:
    """The columns of a quarantine file for rows of this schema."""
    inner = [field.with_nullable(True) for field in table if field.name not in IDENTITY]
    return pa.schema(
        [
            pa.field("_file", pa.string()),
            pa.field("_row", pa.int64()),
            pa.field("annotation", pa.string()),
            pa.field("reason", pa.string()),
            pa.field("detail", pa.string()),
            pa.field("input", pa.struct(inner)),
        ]
    )


def _lost_entries(lost: Lost, schema: pa.Schema) -> pa.Table:
    """One entry for each row that could not be read, or a single one where nobody knows how many there are."""
    if lost.first_row is None or lost.rows is None:
        rows = pa.nulls(1, pa.int64())
    else:
        rows = pa.array(np.arange(lost.first_row, lost.first_row + lost.rows, dtype=np.int64))

    def same(text: str) -> pa.Array:
        return pa.repeat(pa.scalar(printable(text), pa.string()), len(rows))

    nothing = pa.nulls(len(rows), schema.field("input").type)
    columns = [
        same(lost.file),
        rows,
        pa.nulls(len(rows), pa.string()),
        same(lost.reason.value),
        same(lost.detail),
        nothing,
    ]
    return pa.table(columns, schema=schema)


def printable(text: str) -> str:
    """Text without lone surrogates (undecodable bytes of file names and messages), which Arrow refuses."""
    return "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= letter <= "\udfff" else letter for letter in text)


def _as_struct(rows: pa.Table, struct: pa.StructType) -> pa.Array:
    """The rows as one column of structs."""
    columns = [readable(_one_chunk(rows[field.name])) for field in struct]
    return pa.StructArray.from_arrays(columns, fields=list(struct))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def readable(array: pa.Array) -> pa.Array:
    """The same values with U+FFFD for bytes that are not UTF-8, at any depth; the array itself where all are.

    The array must not be a slice of a longer one.
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return _repaired(array)
    return array


def _repaired(array: pa.Array) -> pa.Array:
    kind, nulls = array.type, array.is_null()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        raw = array.cast(pa.binary_view() if pa.types.is_string_view(kind) else pa.large_binary()).to_pylist()
        return pa.array([None if value is None else value.decode("utf-8", "replace") for value in raw], kind)
    if isinstance(array, pa.ExtensionArray):
        return pa.ExtensionArray.from_storage(kind, readable(array.storage))
    if isinstance(array, pa.DictionaryArray):
        return pa.DictionaryArray.from_arrays(array.indices, readable(array.dictionary), ordered=kind.ordered)
    if isinstance(array, pa.StructArray):
        fields = [readable(array.field(index)) for index in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=nulls)
    if isinstance(array, pa.MapArray):
        return pa.MapArray.from_arrays(
            array.offsets, readable(array.keys), readable(array.items), type=kind, mask=nulls
        )
    if isinstance(array, pa.ListArray | pa.LargeListArray):
        return type(array).from_arrays(array.offsets, readable(array.values), type=kind, mask=nulls)
    if isinstance(array, pa.ListViewArray | pa.LargeListViewArray):
        return type(array).from_arrays(array.offsets, array.sizes, readable(array.values), type=kind, mask=nulls)
    if isinstance(array, pa.FixedSizeListArray):
        return pa.FixedSizeListArray.from_arrays(readable(array.values), type=kind, mask=nulls)
    return array
