"""Rows are taken by number from columns of any type."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.selection import take

KINDS = [
    pa.string(),
    pa.string_view(),
    pa.binary_view(),
    pa.list_(pa.string_view()),
    pa.dictionary(pa.int8(), pa.string()),
]
VALUES = [f"value {number} of a column whose texts are long enough for a buffer" for number in range(12)]


def table(kind: pa.DataType) -> pa.Table:
    values = pa.array([[value] for value in VALUES] if pa.types.is_list(kind) else VALUES)
    if pa.types.is_binary_view(kind):
        values = values.cast(pa.binary())
    if pa.types.is_dictionary(kind):
        values = values.dictionary_encode()
    values = pa.array(values.to_pylist(), kind) if pa.types.is_list(kind) else values.cast(kind)
    return pa.table({"x": pa.chunked_array([values.slice(0, 5), values.slice(5)])})


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 11), max_size=15))
def test_rows_come_in_the_order_asked_for(kind: pa.DataType, rows: list[int]) -> None:
    whole = table(kind)
    found = take(whole, rows)
    values = whole["x"].to_pylist()
    assert found["x"].to_pylist() == [values[row] for row in rows]
    assert found.schema == whole.schema
