"""Some rows of a table, whatever its types.

    take_rows(table, [0, 3])      as `table.take`, which has no kernel for string_view and binary_view

The rows are copied, so that what was left out is not kept in memory (or sent along) behind them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def take_rows(table: pa.Table, rows_R: Sequence[int] | npt.NDArray[np.int64]) -> pa.Table:
    """The rows of these indexes, in this order."""
    indexes = pa.array(rows_R, pa.int64())
    return pa.Table.from_arrays([_take(column, indexes) for column in table.columns], schema=table.schema)


def _take(column: pa.ChunkedArray, indexes: pa.Array) -> pa.ChunkedArray:
    plain = _without_views(column.type)
    if plain == column.type:
        return column.take(indexes)
    return pc.cast(pc.cast(column, plain).take(indexes), column.type)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with string_view and binary_view, at any depth, replaced by what can be taken from."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_map(kind):
        key, item = (field.with_type(_without_views(field.type)) for field in (kind.key_field, kind.item_field))
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        element = kind.value_field.with_type(_without_views(kind.value_type))
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(element, kind.list_size)
        return pa.large_list(element) if pa.types.is_large_list(kind) else pa.list_(element)
    return kind
