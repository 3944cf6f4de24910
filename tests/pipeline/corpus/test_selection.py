import uuid

import pyarrow as pa
import pytest

from pipeline.corpus.selection import take_rows

VIEW = pa.string_view()


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a" * 20, None, "b"], VIEW),
        pa.array([b"a" * 20, None, b"b"], pa.binary_view()),
        pa.array([["a" * 20, None], None, []], pa.list_(VIEW)),
        pa.array([["a"], None, []], pa.large_list(VIEW)),
        pa.array([["a", "b"], None, ["c", "d"]], pa.list_(VIEW, 2)),
        pa.array([{"a": ["x"]}, None, {"a": None}], pa.struct({"a": pa.list_(VIEW)})),
        pa.array([[("k", "v")], None, []], pa.map_(VIEW, VIEW)),
        pa.array([[1], None, []], pa.list_view(pa.int8())),
        pa.array(["a", None, "b"]).dictionary_encode(),
        pa.array([uuid.UUID(int=1).bytes, None, uuid.UUID(int=2).bytes], pa.uuid()),
        pa.nulls(3),
    ],
    ids=lambda column: str(column.type),
)
def test_rows_of_every_type_can_be_taken(column):
    table = pa.table({"c": column}, schema=pa.schema([pa.field("c", column.type, metadata={"a": "b"})]))
    taken = take_rows(table, [2, 0])
    taken.validate(full=True)
    assert taken.schema.equals(table.schema, check_metadata=True)
    assert taken["c"].to_pylist() == [column[2].as_py(), column[0].as_py()]
    assert take_rows(table, []).num_rows == 0
