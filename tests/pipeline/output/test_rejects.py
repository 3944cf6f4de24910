"""What goes to the quarantine can be read again, whatever its type and bytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.rejects import entries, printable, readable
from pipeline.quarantine import Lost, Problem, Reason

RAW = pa.array([b"ok", None, b"\xff\xfex", b""])
MARK = "\N{REPLACEMENT CHARACTER}"
WHOLE = ["ok", None, f"{MARK}{MARK}x", ""]


def as_text(kind: pa.DataType) -> pa.Array:
    """The raw bytes as text, unchecked."""
    binary = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}[kind]
    raw = RAW.cast(binary)
    return pa.Array.from_buffers(kind, len(raw), raw.buffers())


TEXT = as_text(pa.string())
OFFSETS = pa.array([0, 1, 3, 4], pa.int32())
FIRST = pa.array([True, False, False, False])
LISTS = [WHOLE[:1], WHOLE[1:3], WHOLE[3:]]
SPOILT = {
    "string": (TEXT, WHOLE),
    "large_string": (as_text(pa.large_string()), WHOLE),
    "string_view": (as_text(pa.string_view()), WHOLE),
    "dictionary": (pa.DictionaryArray.from_arrays(pa.array([2, 0, None], pa.int8()), TEXT), [WHOLE[2], "ok", None]),
    "list": (pa.ListArray.from_arrays(OFFSETS, TEXT), LISTS),
    "large_list": (pa.LargeListArray.from_arrays(OFFSETS.cast(pa.int64()), TEXT), LISTS),
    "list_view": (pa.ListViewArray.from_arrays(OFFSETS[:3], pa.array([1, 2, 1], pa.int32()), TEXT), LISTS),
    "fixed_size_list": (pa.FixedSizeListArray.from_arrays(TEXT, 2, mask=pa.array([True, False])), [None, WHOLE[2:]]),
    "map": (
        pa.MapArray.from_arrays(OFFSETS, pa.array(list("abcd")), TEXT),
        [[("a", "ok")], [("b", None), ("c", WHOLE[2])], [("d", "")]],
    ),
    "struct": (
        pa.StructArray.from_arrays([TEXT, pa.array([1, 2, 3, 4])], ["t", "n"], mask=FIRST),
        [None, {"t": None, "n": 2}, {"t": WHOLE[2], "n": 3}, {"t": "", "n": 4}],
    ),
    "nested": (pa.ListArray.from_arrays(OFFSETS, pa.StructArray.from_arrays([TEXT], ["t"])), [
        [{"t": text} for text in texts] for texts in LISTS
    ]),
    "extension": (pa.ExtensionArray.from_storage(pa.json_(), TEXT), WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_bytes_that_are_no_text_are_marked_at_any_depth(name: str) -> None:
    array, expected = SPOILT[name]
    mended = readable(array)
    mended.validate(full=True)
    assert mended.type == array.type
    assert mended.to_pylist() == expected


def test_good_columns_are_not_touched() -> None:
    array = pa.array(["a", None])
    assert readable(array) is array


KINDS = [
    pa.binary(),
    pa.binary_view(),
    pa.list_(pa.string_view()),
    pa.float16(),
    pa.null(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.list_(pa.float32(), 3),
    pa.map_(pa.string(), pa.int32()),
    pa.struct([pa.field("a", pa.list_(pa.string()), nullable=False)]),
    pa.decimal128(10, 2),
    pa.decimal256(40, 2),
    pa.timestamp("ns", "UTC"),
    pa.time64("ns"),
    pa.duration("us"),
    pa.uuid(),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_of_any_type_is_kept_beside_lost_ones(kind: pa.DataType) -> None:
    table = pa.table({"x": pa.nulls(2, kind), "_file": ["a", "a"], "_row": [0, 1]})
    lost = [Lost("b", 0, 2, Reason.DAMAGED_ROW_GROUP, "bad page")]
    found = entries(table, [Problem(1, None, Reason.CAST_FAILED, "no")], lost)
    file = io.BytesIO()
    pq.write_table(found, file)
    back = pq.read_table(file)
    assert back.schema.field("input").type.field("x").type == kind
    assert back["input"].to_pylist() == [{"x": None}, None, None]


def test_chunks_with_dictionaries_of_their_own_are_joined() -> None:
    chunks = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "a"]).dictionary_encode()]
    table = pa.table({"x": pa.chunked_array(chunks), "_file": ["f"] * 4, "_row": range(4)})
    problems = [Problem(row, "topic", Reason.BLANK_TEXT, "") for row in range(4)]
    assert [each["x"] for each in entries(table, problems, [])["input"].to_pylist()] == ["a", "b", "c", "a"]


def test_undecodable_file_names_become_printable() -> None:
    assert printable("a\udcff/ü.parquet") == f"a{MARK}/ü.parquet"
    assert printable("a\ud800") == f"a{MARK}"
    assert printable("plain") == "plain"
