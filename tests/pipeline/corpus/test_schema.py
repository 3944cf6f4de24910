from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.schema import DriftError, cast, common_type, conform, unify
from pipeline.errors import CorpusError

DICTIONARY = pa.dictionary(pa.int32(), pa.string())

JOINS = [
    ([pa.null(), pa.int8()], pa.int8()),
    ([pa.null(), DICTIONARY], DICTIONARY),
    ([pa.int8(), pa.int32()], pa.int32()),
    ([pa.uint8(), pa.uint32()], pa.uint32()),
    ([pa.uint8(), pa.int8()], pa.int16()),
    ([pa.uint32(), pa.int8()], pa.int64()),
    ([pa.uint64(), pa.int8()], None),
    ([pa.int8(), pa.float16()], pa.float32()),
    ([pa.int16(), pa.float32()], pa.float32()),
    ([pa.int32(), pa.float32()], pa.float64()),
    ([pa.int64(), pa.float64()], None),
    ([pa.float32(), pa.float64()], pa.float64()),
    ([pa.string(), pa.large_string()], pa.large_string()),
    ([pa.string(), pa.string_view()], pa.string()),
    ([DICTIONARY, pa.string()], pa.string()),
    ([DICTIONARY, pa.dictionary(pa.int8(), pa.string())], pa.string()),
    ([DICTIONARY, pa.string_view(), pa.large_string()], pa.large_string()),
    ([pa.dictionary(pa.int32(), pa.int64()), pa.int8()], pa.int64()),
    ([pa.binary(), pa.large_binary()], pa.large_binary()),
    ([pa.binary(2), pa.binary(3)], pa.binary()),
    ([pa.string(), pa.binary()], None),
    ([pa.string(), pa.int8()], None),
    ([pa.bool_(), pa.int8()], None),
    ([pa.decimal128(5, 2), pa.decimal128(7, 4)], pa.decimal128(7, 4)),
    ([pa.decimal128(5, 0), pa.decimal128(7, 4)], pa.decimal128(9, 4)),
    ([pa.decimal128(38, 0), pa.decimal128(38, 4)], pa.decimal256(42, 4)),
    ([pa.decimal32(9, 0), pa.decimal32(9, 4)], pa.decimal64(13, 4)),
    ([pa.decimal256(76, 0), pa.decimal256(76, 4)], None),
    ([pa.timestamp("s"), pa.timestamp("us")], pa.timestamp("us")),
    ([pa.timestamp("s", "UTC"), pa.timestamp("ns", "UTC")], pa.timestamp("ns", "UTC")),
    ([pa.timestamp("s", "UTC"), pa.timestamp("s")], None),
    ([pa.date32(), pa.timestamp("s")], None),
    ([pa.date32(), pa.date64()], pa.date64()),
    ([pa.duration("s"), pa.duration("ms")], pa.duration("ms")),
    ([pa.time32("s"), pa.time64("ns")], pa.time64("ns")),
    ([pa.time32("s"), pa.time32("ms")], pa.time32("ms")),
    ([pa.list_(pa.int8()), pa.list_(pa.int64())], pa.list_(pa.int64())),
    ([pa.list_(pa.int8()), pa.large_list(pa.null())], pa.large_list(pa.int8())),
    ([pa.list_(pa.float32(), 2), pa.list_(pa.float64(), 2)], pa.list_(pa.float64(), 2)),
    ([pa.list_(pa.float32(), 2), pa.list_(pa.float32(), 3)], pa.list_(pa.float32())),
    ([pa.list_(pa.int8()), pa.list_(pa.string())], None),
    ([pa.list_(pa.int8()), pa.int8()], None),
    ([pa.list_view(pa.int8()), pa.list_(pa.int8())], None),
    ([pa.list_view(pa.int8()), pa.null()], None),
    (
        [pa.struct({"a": pa.int8()}), pa.struct({"b": pa.string(), "a": pa.int16()})],
        pa.struct({"a": pa.int16(), "b": pa.string()}),
    ),
    ([pa.struct([("a", pa.int8()), ("a", pa.int8())]), pa.struct({"a": pa.int8()})], None),
    (
        [pa.map_(pa.string(), pa.int8()), pa.map_(pa.large_string(), pa.int32())],
        pa.map_(pa.large_string(), pa.int32()),
    ),
    ([pa.uuid(), pa.uuid()], pa.uuid()),
    ([pa.uuid(), pa.binary(16)], None),
]


@pytest.mark.parametrize(("kinds", "common"), JOINS, ids=lambda kinds: str(kinds))
def test_types_are_joined_where_nothing_is_lost(kinds, common):
    for order in (kinds, kinds[::-1]):
        if common is None:
            with pytest.raises(DriftError):
                common_type(order)
        elif not pa.types.is_struct(common):
            assert common_type(order) == common
    if common is not None:
        assert common_type(kinds) == common


VALUES = {
    pa.int8(): st.integers(-128, 127),
    pa.uint8(): st.integers(0, 255),
    pa.int16(): st.integers(-(2**15), 2**15 - 1),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32, allow_nan=False),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.string_view(): st.text(max_size=20),
    DICTIONARY: st.text(max_size=5),
    pa.binary(): st.binary(max_size=5),
    pa.binary(3): st.binary(min_size=3, max_size=3),
    pa.decimal128(5, 2): st.decimals(-999, 999, places=2),
    pa.decimal128(30, 10): st.decimals(-(10**19), 10**19, places=10),
    pa.timestamp("s"): st.integers(-8 * 10**9, 7 * 10**9),
    pa.timestamp("us"): st.integers(-8 * 10**15, 7 * 10**15),
    pa.date32(): st.dates(),
    pa.date64(): st.dates(),
    pa.bool_(): st.booleans(),
    pa.null(): st.none(),
}


@st.composite
def typed_values(draw, depth: int = 1):
    """A type and some values of it."""
    shape = draw(st.sampled_from(["plain", "plain", "list", "struct", "map"] if depth else ["plain"]))
    if shape == "plain":
        kind = draw(st.sampled_from(list(VALUES)))
        return kind, draw(st.lists(st.none() | VALUES[kind], max_size=4))
    inner, values = draw(typed_values(depth=depth - 1))
    if shape == "list":
        made = draw(st.sampled_from([pa.list_, pa.large_list]))
        return made(inner), [None, [], values]
    if shape == "map":
        return pa.map_(pa.string(), inner), [None, [("k", value) for value in values][:1]]
    name = draw(st.sampled_from("ab"))
    return pa.struct({name: inner}), [None, *({name: value} for value in values)]


@settings(max_examples=150, deadline=None)
@given(st.lists(typed_values(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_join_does_not_depend_on_order_and_holds_every_value(several, random):
    kinds = [kind for kind, _ in several]
    shuffled = random.sample(kinds, len(kinds))
    try:
        common = common_type(kinds)
    except DriftError:
        with pytest.raises(DriftError):
            common_type(shuffled)
        return
    assert common_type([*kinds, common]) == common, "idempotent"
    assert unordered(common_type(shuffled)) == unordered(common)
    for kind, values in several:
        array = pa.chunked_array([pa.array(values, kind)])
        widened = cast(array, common)
        widened.validate()
        assert widened.type == common
        assert [filled(value, common) for value in array.to_pylist()] == widened.to_pylist()


def unordered(kind):
    """A type as text, with the fields of its structs in alphabetical order."""
    if pa.types.is_struct(kind):
        return {field.name: unordered(field.type) for field in kind}
    if pa.types.is_map(kind):
        return "map", unordered(kind.item_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_list(kind), unordered(kind.value_type)
    return str(kind)


def filled(value, kind):
    """A value with the null fields that its struct got."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: filled(value.get(field.name), field.type) for field in kind}
    if pa.types.is_map(kind):
        return [(key, filled(item, kind.item_type)) for key, item in value]
    if isinstance(value, list):
        return [filled(item, kind.value_type) for item in value]
    return value


def test_columns_come_in_order_of_first_appearance_with_the_first_files_metadata():
    first = pa.schema([pa.field("a", pa.int32(), metadata={"unit": "m"})], metadata={"from": "first"})
    second = pa.schema([pa.field("b", pa.string()), pa.field("a", pa.int64(), metadata={"unit": "km"})])
    unified = unify([("1.parquet", first), ("2.parquet", second)])
    assert unified.names == ["a", "b"]
    assert unified.field("a").type == pa.int64()
    assert unified.field("a").metadata == {b"unit": b"m"}
    assert unified.metadata == {b"from": b"first"}


def test_a_column_is_nullable_where_it_is_in_one_file_or_lacking_in_one():
    strict = pa.field("a", pa.int8(), nullable=False)
    assert not unify([("1", pa.schema([strict])), ("2", pa.schema([strict, ("b", pa.int8())]))]).field("a").nullable
    assert unify([("1", pa.schema([strict])), ("2", pa.schema([("a", pa.int8())]))]).field("a").nullable
    assert unify([("1", pa.schema([strict])), ("2", pa.schema([("b", pa.int8())]))]).field("a").nullable


def test_conflicts_name_the_column_the_types_the_files_and_how_many():
    number, text = pa.schema([("id", pa.int64())]), pa.schema([("id", pa.string())])
    with pytest.raises(CorpusError) as refused:
        unify([("a.parquet", number), ("b.parquet", number), ("c.parquet", text)])
    assert str(refused.value) == (
        "the files of the corpus have columns whose types do not go together:\n"
        "  column 'id': int64 in a.parquet (2 files), string in c.parquet (1 file)\n"
        "Convert the files to one type, or name the files of one kind in corpus.path."
    )


def test_of_many_conflicts_five_are_told():
    names = [f"c{number}" for number in range(7)]
    with pytest.raises(CorpusError) as refused:
        unify(
            [
                ("a", pa.schema([(name, pa.int64()) for name in names])),
                ("b", pa.schema([(n, pa.bool_()) for n in names])),
            ]
        )
    assert "column 'c4'" in str(refused.value)
    assert "column 'c5'" not in str(refused.value)
    assert "and 2 more columns" in str(refused.value)


def test_conform_orders_widens_and_fills():
    schema = pa.schema([("c", pa.list_(pa.int8())), ("a", pa.int64()), ("d", pa.string_view()), ("n", pa.string())])
    table = pa.table({"a": pa.array([1], pa.int8()), "d": pa.array(["x"]).dictionary_encode(), "n": pa.nulls(1)})
    conformed = conform(table, schema)
    assert conformed.schema == schema
    assert conformed.to_pylist() == [{"c": None, "a": 1, "d": "x", "n": None}]
    assert conform(conformed, schema) is conformed


def test_conform_refuses_a_value_that_does_not_fit():
    with pytest.raises(pa.ArrowInvalid):
        conform(pa.table({"a": [Decimal("1.25")]}), pa.schema([("a", pa.decimal128(3, 1))]))
