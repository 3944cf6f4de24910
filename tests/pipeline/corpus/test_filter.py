import pickle
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

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

EDGES: dict[pa.DataType, list[Any]] = {
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

number = st.sampled_from(["0", "1", "2", "-1", "-2", "3", "1.0", "1.5", "-0.5", "0.1", "0.25", ".5", "1e0", "0.001"])
huge = st.sampled_from(["127", "128", "-129", "300", "9007199254740993", "18446744073709551615", "-1e18", "2e3"])
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
FAMILIES = [(NUMBERS, number | huge), (TEXTS, word), (MOMENTS, moment), (FLAGS, flag)]


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


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(ROW, min_size=1, max_size=8), predicates=st.lists(PREDICATES, min_size=1, max_size=4))
def test_the_same_rows_as_duckdb_keeps(oracle, rows, predicates):
    columns = {name: pa.array([row[name] for row in rows], type_) for name, type_ in TYPES.items()}
    table = pa.table({"row": list(range(len(rows))), **columns})
    oracle.register("corpus", table)
    for sql in predicates:
        expected = oracle.execute(f"SELECT row FROM corpus WHERE {sql} ORDER BY row").fetchall()
        assert kept(sql, table) == [row for (row,) in expected], sql


def test_a_filter_names_the_columns_that_it_reads():
    schema = pa.schema({"a": pa.int64(), "b": pa.struct({"x": pa.int64()}), "my col": pa.bool_(), "d.e": pa.string()})
    row_filter = parse_filter('b.x > 1 AND ("my col" OR a IS NULL OR a = NULL) AND "d.e" = \'x\'', schema)
    assert row_filter.columns == ("b", "my col", "a", "d.e")


def test_a_filter_travels_to_the_readers():
    row_filter = parse_filter("a > 1.5", pa.schema({"a": pa.int64()}))
    assert pickle.loads(pickle.dumps(row_filter)).expression.equals(row_filter.expression)  # noqa: S301 - ours


def test_null_logic():
    table = pa.table({"x": [1, 2, None]})
    assert kept("x NOT IN (1, NULL)", table) == []
    assert kept("NOT (x IN (1))", table) == [1]
    assert kept("x = NULL OR NOT (x = NULL)", table) == []
    assert kept("x IN (NULL) IS NULL", table) == [0, 1, 2]
    assert kept("x IS UNKNOWN OR x > 1 IS NOT TRUE", table) == [0, 2]
    assert kept("TRUE OR x = 1", table) == [0, 1, 2]


@pytest.mark.parametrize("type_", [pa.float16(), pa.decimal32(5, 1), pa.decimal64(12, 1), pa.decimal256(50, 1)])
def test_rare_number_types(type_):
    table = pa.table({"x": pa.array([None, *map(Decimal, ("1.5", "-2", "0"))]).cast(pa.float64()).cast(type_)})
    assert kept("x = 1.5", table) == [1]
    assert kept("x < 0.01", table) == [2, 3]
    assert kept("x IN (0, 1.5, 1.55)", table) == [1, 3]
    assert kept("x <> 1e300", table) == [1, 2, 3]


def test_types_that_arrow_has_no_comparison_for_of_itself():
    table = pa.table(
        {
            "json": pa.array(["{}", None], pa.json_()),
            "views": pa.DictionaryArray.from_arrays(pa.array([1, None]), pa.array(["x", "y"])),
            "codes": pa.array([7, None]).dictionary_encode(),
            "nothing": pa.nulls(2),
            "nulls_inside": pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["x", None])),
        }
    )
    assert kept("json = '{}' AND views = 'y' AND codes > 6", table) == [0]
    assert kept("codes IN (7, 8) AND views LIKE '%' AND codes <> 8", table) == [0]
    assert kept("nothing IS NULL OR nothing = 1", table) == [0, 1]
    assert kept("nothing = codes OR nothing IN (1) OR nulls_inside IS NULL", table) == [0]


def test_only_null_can_be_asked_of_lists_and_structs():
    table = pa.table({"tags": [["x"], None], "meta": [None, {"x": 1}]})
    assert kept("tags IS NOT NULL", table) == [0]
    assert kept("meta IS NULL", table) == [0]


def test_a_column_with_a_time_zone_takes_utc_unless_the_literal_names_an_offset():
    noon = datetime(2024, 1, 1, 12, tzinfo=UTC)
    table = pa.table({"at": pa.array([noon, None], pa.timestamp("ns", "Europe/Berlin")), "other": [noon, noon]})
    for literal in (
        "'2024-01-01 12:00:00'",
        "'2024-01-01T12:00Z'",
        "TIMESTAMPTZ '2024-01-01 13:00:00+01:00'",
        "'2024-01-01 10:30:00.000-0130'",
        "TIMESTAMP '2024-01-01 12:00'",
    ):
        assert kept(f"at = {literal}", table) == [0]
    assert kept("at < '2024-01-01 12:00:00.000000001'", table) == [0]
    tokyo = table.set_column(0, "at", table["at"].cast(pa.timestamp("s", "Asia/Tokyo")))
    assert kept("at = other", tokyo) == [0]


def test_a_long_list_and_a_long_chain():
    table = pa.table({"x": [1, 7000, None]})
    assert kept(f"x IN ({', '.join(map(str, range(5000)))})", table) == [0]
    assert kept(" AND ".join(f"x <> {number}" for number in range(5, 2000)), table) == [0, 1]


@pytest.mark.parametrize(
    ("sql", "groups"),
    [
        ("n = 2", [0]),
        ("n IN (2, 3, 1.5)", [0]),
        ("n NOT IN (50, 60, 70, 80) AND n > 4.5", [1]),
        ("NOT n > 20.5", [0]),
        ("n BETWEEN 55 AND 1e9", [1]),
        ("s = 'b'", [0]),
        ("s >= 'q' IS TRUE", [1]),
        ("n > 1e30", []),
        ("day < DATE '2024-02-01'", [0]),
        ("at >= '2024-05-01'", [1]),
        ("price = 1.005", []),
        ("price > 50", [1]),
    ],
)
def test_arrow_can_hold_the_expression_against_row_group_statistics(tmp_path, sql, groups):
    numbers = [1, 2, 3, 4, 50, 60, 70, 80]
    days = [date(2024, 1 if number < 5 else 6, 1) for number in numbers]
    table = pa.table(
        {
            "n": numbers,
            "s": list("abcdpqrs"),
            "day": days,
            "at": pa.array(days).cast(pa.timestamp("ms")),
            "price": pa.array(numbers).cast(pa.decimal128(21, 2)),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    (fragment,) = ds.dataset(tmp_path / "x.parquet").get_fragments()
    parts = fragment.split_by_row_group(parse_filter(sql, table.schema).expression)
    assert [part.row_groups[0].id for part in parts] == groups


SCHEMA = pa.schema(
    {
        "section": pa.string(),
        "year": pa.int32(),
        "price": pa.decimal128(9, 2),
        "score": pa.float32(),
        "ok": pa.bool_(),
        "day": pa.date32(),
        "at": pa.timestamp("us"),
        "at_utc": pa.timestamp("us", "UTC"),
        "at_ns": pa.timestamp("ns"),
        "tags": pa.list_(pa.string()),
        "raw": pa.binary(),
        "meta": pa.struct({"lang": pa.string()}),
        "a.b": pa.int32(),
    }
)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        # does not parse
        ("section =", "it does not parse: something is missing at '=', line 1, character 9"),
        ("section 'x'", "it does not parse: invalid expression / unexpected token at ''x'', line 1, character 11"),
        ("(year = 1", "it does not parse: expecting ) at '1', line 1, character 9"),
        ("section = 'x", "it does not parse: Missing ' from 1:10 (line:character); is a quote left open?"),
        ("year = 1 extra", "it does not parse: unexpected 'extra' at character 10"),
        ("WHERE year = 1", "unexpected token at 'WHERE', line 1, character 5"),
        ("", "it must be one condition, such as section = 'games'"),
        ("year = 1; ok", "it must be one condition"),
        ("NOT " * 5000 + "ok", "it is nested too deep"),
        # names no column, or an unknown one
        ("1 = 1", "1 = 1 names no column"),
        ("TRUE", "it names no column: it would keep all rows or none"),
        ("1 IN (1, 2)", "1 IN (1, 2) names no column"),
        ("sectoin = 'x'", "no column 'sectoin'; did you mean 'section'? columns: section, year"),
        ("Section = 'x'", "no column 'Section'; did you mean 'section'?"),
        ("section = games", "no column 'games'; columns: section"),
        ("section = games", "(a text stands in single quotes: 'games')"),
        ('section = "games"', "(a text stands in single quotes: 'games')"),
        ("meta.langg = 'x'", "column 'meta' has no field 'langg'; did you mean 'lang'? fields: lang"),
        ("section.x = 'x'", "column 'section' is string: 'section.x' needs a struct there"),
        ("a.b = 1", 'a column\'s own dots must be quoted: write "a.b"'),
        # do not go together
        ("section = 5", "'section' is string, but 5 is a number: write '5'"),
        ("-5 < section", "'section' is string, but -5 is a number: write '-5'"),
        ("section IN ('x', 5)", "'section' is string, but 5 is a number: write '5'"),
        ("section = TRUE", "'section' is string, but TRUE is a boolean: write a text in single quotes"),
        ("section < DATE '2024-01-01'", "but DATE '2024-01-01' is a date or timestamp: write a text in single quotes"),
        ("year = '2024'", "'year' is int32, but '2024' is a text: write 2024"),
        ("price BETWEEN 1 AND '2.50'", "'price' is decimal128(9, 2), but '2.50' is a text: write 2.50"),
        ("score > 'high'", "'score' is float, but 'high' is a text: write a number without quotes"),
        ("ok = 1", "'ok' is bool, but 1 is a number: write TRUE or FALSE, or the column alone"),
        ("ok = 'yes'", "'ok' is bool, but 'yes' is a text: write TRUE or FALSE"),
        ("day > 2024", "'day' is date32[day], but 2024 is a number: write DATE '2024-12-31'"),
        ("day = 'monday'", "but 'monday' is no date or time that can be read: write DATE '2024-12-31'"),
        (
            "at = '2024-02-30'",
            "but '2024-02-30' is no date or time that can be read: write TIMESTAMP '2024-12-31 23:59:59'",
        ),
        ("at = TRUE", "'at' is timestamp[us], but TRUE is a boolean: write TIMESTAMP"),
        ("at = '2024-01-01 00:00Z'", "which has no time zone, but '2024-01-01 00:00Z' names one: leave it out"),
        ("day = DATE '2024'", "DATE '2024' cannot be read: write DATE '2024-12-31'"),
        ("day = DATE '2024-01-01 12:00'", "DATE '2024-01-01 12:00' cannot be read"),
        ("at = TIMESTAMP 'now'", "TIMESTAMP 'now' cannot be read: write TIMESTAMP '2024-12-31 23:59:59'"),
        ("year = 1e999999999", "the number 1e999999999 is out of range: write one between -1e400 and 1e400"),
        ("section = year", "'section' is string and 'year' is int32: two columns can be compared when both hold text"),
        ("at = at_utc", "'at' is timestamp[us] and 'at_utc' is timestamp[us, tz=UTC]: two columns"),
        ("at = at_ns", "nanoseconds only with each other"),
        ("tags = tags", "two columns can be compared when"),
        ("tags = 'x'", "which cannot be compared: only IS NULL and IS NOT NULL can be asked"),
        ("raw IN ('x')", "'raw' is binary, which cannot be compared"),
        ("section", "'section' is string: only a boolean column is a condition by itself"),
        ("NOT year", "'year' is int32: only a boolean column"),
        (
            "year LIKE '2%'",
            "'year' is int32 and the pattern '2%': LIKE takes a string column and a text in single quotes",
        ),
        ("section LIKE 5", "'section' is string and the pattern 5: LIKE takes"),
        ("section LIKE section", "LIKE takes a column on its left and a pattern in quotes on its right"),
        # not supported
        (
            "lower(section) = 'x'",
            "LOWER(section) (Lower) is not supported as a side of a comparison; supported: comparisons",
        ),
        ("year + 1 = 2", "year + 1 (Add) is not supported"),
        ("1 < year < 5", "1 < year (LT) is not supported as a side of a comparison"),
        ("section IN (SELECT 1)", "(In) is not supported; supported: comparisons (=, <>, <, <=, >, >=), IN, BETWEEN"),
        ("section IN ()", "the list is empty, so no row would be kept; name a value in it"),
        ("year BETWEEN SYMMETRIC 5 AND 1", "(Between) is not supported"),
        ("section LIKE 'x' ESCAPE '!'", "(Escape) is not supported"),
        ("CASE WHEN ok THEN ok END", "(Case) is not supported"),
        ("year IS DISTINCT FROM 1", "(NullSafeNEQ) is not supported"),
        ("CAST(year AS TEXT) = '1'", "(Cast) is not supported as a side"),
        ("year = CAST('1' AS INT)", "(Cast) is not supported as a side"),
        ("SELECT 1", "(Select) is not supported"),
        ("year = ?", "(Placeholder) is not supported"),
        ("tags[1] = 'x'", "(Bracket) is not supported"),
    ],
)
def test_a_filter_that_cannot_be_is_told(sql, message):
    with pytest.raises(CorpusError) as caught:
        parse_filter(sql, SCHEMA)
    assert message in str(caught.value)
    assert str(caught.value).startswith(('filter "' + sql[:70], "filter '" + sql[:70]))
