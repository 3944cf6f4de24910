"""A unit travels through Ray as one row, with every type and no row lost."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa

from pipeline.envelope import Envelope
from pipeline.quarantine import Lost, Problem, Reason


def _table() -> pa.Table:
    return pa.table(
        {
            "text": pa.array(["a", None, "ü"], pa.string_view()),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "price": pa.array([Decimal("1.10"), None, Decimal("2.00")], pa.decimal128(9, 2)),
            "at": pa.array([dt.datetime(2026, 1, 2, tzinfo=dt.UTC), None, None], pa.timestamp("us", tz="UTC")),
            "tags": pa.array([["a"], [], None], pa.large_list(pa.string())),
            "place": pa.array(
                [{"x": 1}, None, {"x": 2}], pa.struct([pa.field("x", pa.int8(), metadata={"unit": "m"})])
            ),
            "names": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        }
    )


def test_every_type_comes_back_as_it_went() -> None:
    back = Envelope.of_block(Envelope("6f1c", "read", _table()).to_block())
    assert back.rows is not None
    assert back.rows.schema.equals(_table().schema, check_metadata=True)
    assert back.rows.equals(_table())


def test_a_unit_without_rows_is_still_one_row() -> None:
    block = Envelope("6f1c", "read", _table().slice(0, 0)).to_block()
    assert block.num_rows == 1
    rows = Envelope.of_block(block).rows
    assert rows is not None
    assert (rows.num_rows, rows.schema) == (0, _table().schema)


def test_a_slice_carries_its_own_rows_only() -> None:
    rows = Envelope.of_block(Envelope("6f1c", "read", _table().slice(2, 1)).to_block()).rows
    assert rows is not None
    assert rows["text"].to_pylist() == ["ü"]


def test_problems_lost_ranges_and_counts_come_back() -> None:
    problem = Problem(1, "topic", Reason.BLANK_TEXT, "nothing visible")
    lost = Lost("a.parquet", None, None, Reason.EMPTY_FILE, "0 bytes")
    back = Envelope.of_block(Envelope("6f1c", "read", problems=[problem], lost=[lost], told={"n": 3}).to_block())
    assert (back.problems, back.lost, back.told) == ([problem], [lost], {"n": 3})


def test_rows_that_nobody_touched_are_handed_on_without_a_copy() -> None:
    block = Envelope("6f1c", "read", _table()).to_block()
    came = Envelope.of_block(block)
    on = Envelope("6f1c", "annotated", added=pa.table({"n": [1, 2, 3]}), sealed_rows=came.sealed_rows).to_block()
    assert on["rows"].chunk(0).buffers()[2].address == block["rows"].chunk(0).buffers()[2].address
    assert Envelope.of_block(on).rows == _table()
