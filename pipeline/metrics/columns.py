"""Columns of a table as a metric reads them, refused in a person's words where they are something else.

strings(table, "section")    -> ["games", null, "web"]; whole numbers and truth values become strings
numbers(table, "rating")     -> [3.5, nan, 4.0] in float64; null becomes NaN
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column of that name.

    Raises JobError: there is none, or there are several.
    """
    if table.column_names.count(name) != 1:
        raise JobError(f"no column {name!r} to measure, among {', '.join(table.column_names)}")
    return table.column(name)


def nulls(table: pa.Table, name: str) -> npt.NDArray[np.bool_]:
    """Which rows are null there."""
    null_R: npt.NDArray[np.bool_] = column(table, name).is_null().to_numpy()
    return null_R


def strings(table: pa.Table, name: str) -> pa.Array:
    """A column of strings, or of what may name a label: whole numbers and truth values too.

    Raises JobError: of another type.
    """
    found = column(table, name)
    if not _names(found.type):
        raise _of_another_type(name, found.type, "strings")
    return _one_chunk(found.cast(pa.string()))


def string_lists(table: pa.Table, name: str) -> pa.ListArray:
    """A column of lists of strings (or whole numbers).

    Raises JobError: of another type.
    """
    found = column(table, name)
    if not (_lists(found.type) and _names(found.type.value_type)):
        raise _of_another_type(name, found.type, "lists of strings")
    return _one_chunk(found.cast(pa.list_(pa.string())))


def number_lists(table: pa.Table, name: str) -> pa.ListArray:
    """A column of lists of numbers, as float32.

    Raises JobError: of another type.
    """
    found = column(table, name)
    if not (_lists(found.type) and _numeric(found.type.value_type)):
        raise _of_another_type(name, found.type, "lists of numbers")
    return _one_chunk(found.cast(pa.list_(pa.float32())))


def numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers; null becomes NaN.

    Raises JobError: of another type.
    """
    found = column(table, name)
    if not _numeric(found.type):
        raise _of_another_type(name, found.type, "numbers")
    values_R: npt.NDArray[np.float64] = found.cast(pa.float64()).to_numpy()
    return values_R


def structs(table: pa.Table, name: str, fields: tuple[str, ...]) -> pa.ListArray:
    """A column of lists of structs that have these fields, perhaps others.

    Raises JobError: of another type.
    """
    found = column(table, name)
    kind = found.type
    if not (_lists(kind) and pa.types.is_struct(kind.value_type)) or any(
        kind.value_type.get_field_index(each) < 0 for each in fields
    ):
        raise _of_another_type(name, kind, f"lists of structs of {', '.join(fields)}")
    return _one_chunk(found.cast(pa.list_(kind.value_type)))


def groups(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """The number of each row's group, those that agree in this column; a row where it is null is a group of its own.

    Raises JobError: there is no such column.
    """
    encoded = _one_chunk(column(table, name).dictionary_encode())
    alone_R = np.asarray(encoded.indices.is_null())
    group_R: npt.NDArray[np.int64] = np.array(pc.fill_null(encoded.indices, 0), np.int64)
    group_R[alone_R] = len(encoded.dictionary) + np.arange(alone_R.sum())
    return np.unique(group_R, return_inverse=True)[1]


def row_of_values(lists: pa.ListArray) -> npt.NDArray[np.int64]:
    """For each value of `lists.flatten()` the row that it is of."""
    counts_R = np.asarray(pc.fill_null(pc.list_value_length(lists), 0))
    return np.repeat(np.arange(len(lists)), counts_R)


def _one_chunk(found: pa.ChunkedArray) -> Any:
    whole = found.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _names(kind: pa.DataType) -> bool:
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(value_type)
        or pa.types.is_large_string(value_type)
        or pa.types.is_string_view(value_type)
        or pa.types.is_integer(value_type)
        or pa.types.is_boolean(value_type)
        or pa.types.is_null(value_type)
    )


def _numeric(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    )


def _lists(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _of_another_type(name: str, kind: pa.DataType, wanted: str) -> JobError:
    return JobError(f"column {name!r} holds {kind}, and {wanted} are measured")
