from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.filter import parse_filter
from pipeline.errors import CorpusError

TYPES = {
    "i8": pa.int8(),
    "i64": pa.int64(),
    "u64": pa.uint64(),
    "f32": pa.float32(),
    "f64": pa.float64(),
    "price": pa.decimal128(9, 2),
    "s": pa.string(),
    "ls": pa.large_string(),
    "sv": pa.string_view(),
    "k": pa.dictionary(pa.int32(), pa.string()),
    "b": pa.bool_(),
    "c": pa.bool_(),
    "day": pa.date32(),
    "ts": pa.timestamp("us"),
    "sec": pa.timestamp("s"),
    "st": pa.struct({"x": pa.int16(), "y": pa.string()}),
    "odd name": pa.int32(),
}
NUMBERS = ["i8", "i64", "u64", "f32", "f64", "price", "st.x", '"odd name"']
TEXTS = ["s", "ls", "sv", "k", "st.y"]
MOMENTS = ["day", "ts", "sec"]
FLAGS = ["b", "c"]

EDGES = {
    pa.int8(): [-128, 127],
    pa.int64(): [2**63 - 1, -(2**63), 2**53 + 1],
    pa.uint64(): [2**64 - 1],
    pa.float32(): [0.1, -0.0, 1.5],
    pa.float64(): [0.1, -0.0, 1.5],
}
WORDS = ["", "a", "A", "ab", "a%", "a_b", "a\\b", "x\na", "é", "È", "😀", "\uffff", "it's", "a.b"]
SECONDS = [0, 86_399, 86_400, -1, -86_400, 1_700_000_000]
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the columns have no zone


def values(type_):
    """Values of a column's type, few and close together so that comparisons meet them."""
    if pa.types.is_integer(type_):
        low = -2 if pa.types.is_signed_integer(type_) else 0
        return st.integers(low, 3) | st.sampled_from(EDGES.get(type_, [0]))
    if pa.types.is_floating(type_):
        return st.integers(-2, 3).map(float) | st.sampled_from(EDGES[type_])
    if pa.types.is_decimal(type_):
        return st.sampled_from([Decimal(n) / 4 for n in range(-8, 12)] + [Decimal("9999999.99")])
    if pa.types.is_boolean(type_):
        return st.booleans()
    if pa.types.is_date(type_):
        return st.sampled_from([date(1970, 1, 1) + timedelta(seconds=second) for second in SECONDS])
    if pa.types.is_timestamp(type_):
        micros = [0] if type_.unit == "s" else [0, 1, 500_000]
        return st.builds(
            lambda second, micro: EPOCH + timedelta(seconds=second, microseconds=micro),
            st.sampled_from(SECONDS),
            st.sampled_from(micros),
        )
    if pa.types.is_struct(type_):
        return st.fixed_dictionaries({field.name: st.none() | values(field.type) for field in type_})
    return st.sampled_from(WORDS)


ROW = st.fixed_dictionaries({name: st.none() | values(type_) for name, type_ in TYPES.items()})

number = st.sampled_from(
    "0 1 2 -1 -2 3 1.0 1.5 -0.5 0.1 0.25 .5 127 128 -129 300 1e0 2e3 9007199254740993 18446744073709551615 -1e18 0.001".split()
)
word = st.sampled_from(WORDS).map(lambda text: "'" + text.replace("'", "''") + "'")
moment = st.sampled_from(
    [
        "DATE '1970-01-01'",
        "'1969-12-31'",
        "DATE '2023-11-14'",
        "TIMESTAMP '1970-01-01 00:00:00'",
        "TIMESTAMP '1970-01-01 23:59:59.5'",
        "TIMESTAMP '1969-12-31 23:59:59.000001'",
        "TIMESTAMP '2023-11-14 22:13:20'",
        "DATE '9999-12-31'",
    ]
)
flag = st.sampled_from(["TRUE", "FALSE"])
operator = st.sampled_from(["=", "==", "<>", "!=", "<", "<=", ">", ">="])
FAMILIES = [(NUMBERS, number), (TEXTS, word), (MOMENTS, moment), (FLAGS, flag)]


@st.composite
def atoms(draw):
    """One comparison in SQL, of sides that go together."""
    names, literals = draw(st.sampled_from(FAMILIES))
    column, literal = st.sampled_from(names), literals | st.just("NULL")
    name = draw(column)
    shape = draw(st.integers(0, 7))
    if shape == 0:
        return f"{name} {draw(operator)} {draw(literal)}"
    if shape == 1:
        return f"{draw(literal)} {draw(operator)} {name}"
    if shape == 2:
        return f"{name} {draw(operator)} {draw(column)}"
    if shape == 3:
        items = draw(st.lists(literal | column, min_size=1, max_size=4))
        return f"{name} {draw(st.sampled_from(['IN', 'NOT IN']))} ({', '.join(items)})"
    if shape == 4:
        return (
            f"{name} {draw(st.sampled_from(['BETWEEN', 'NOT BETWEEN']))} {draw(literal)} AND {draw(literal | column)}"
        )
    if shape == 5:
        return f"{name} IS {draw(st.sampled_from(['NULL', 'NOT NULL']))}"
    if shape == 6:
        verb = draw(st.sampled_from(["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]))
        pattern = draw(st.text("aAbé%_\\.\n", max_size=4))
        return f"{draw(st.sampled_from(TEXTS))} {verb} '{pattern}'"
    return draw(st.sampled_from(FLAGS))


PREDICATES = st.recursive(
    atoms(),
    lambda inner: st.one_of(
        st.builds("({}) AND ({})".format, inner, inner),
        st.builds("{} OR {} AND {}".format, atoms(), atoms(), atoms()),
        st.builds("({}) OR ({})".format, inner, inner),
        st.builds("NOT ({})".format, inner),
        st.builds("({}) IS {}".format, inner, st.sampled_from(["TRUE", "NOT TRUE", "FALSE", "NOT FALSE", "NULL"])),
    ),
    max_leaves=5,
)


def kept(sql, table):
    """The rows that the expression keeps, by index."""
    expression = parse_filter(sql, table.schema).expression
    mask = ds.dataset(table).scanner(columns={"keep": expression}).to_table()["keep"].to_pylist()
    return [index for index, keep in enumerate(mask) if keep]


@pytest.fixture(scope="module")
def oracle():
    with duckdb.connect() as connection:
        yield connection


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=8), predicates=st.lists(PREDICATES, min_size=1, max_size=4))
def test_the_same_rows_as_duckdb_keeps(oracle, rows, predicates):
    columns = {name: pa.array([row[name] for row in rows], type_) for name, type_ in TYPES.items()}
    table = pa.table({"row": list(range(len(rows))), **columns})
    oracle.register("corpus", table)
    for sql in predicates:
        expected = oracle.execute(f"SELECT row FROM corpus WHERE {sql} ORDER BY row").fetchall()
        assert kept(sql, table) == [row for (row,) in expected], sql
