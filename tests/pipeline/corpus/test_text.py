import pickle
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.text import compile_text
from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

BAD = [b"fine", b"caf\xe9 noir", None, b"\xed\xa0\x80 a lone surrogate", "größer".encode()]


def render(expression, table, max_chars=1000):
    return compile_text(expression, table.schema).render(table, max_chars)


def texts(expression, table):
    values, failures = render(expression, table)
    assert failures == {}
    return values


def reasons(expression, table, max_chars=1000):
    values, failures = render(expression, table, max_chars)
    assert [row for row, value in enumerate(values) if value is None] == sorted(failures)
    return {row: failure.reason for row, failure in failures.items()}


def not_checked(values, type_=None):
    """An Arrow string array with whatever bytes it is given, as a careless writer leaves it in a file."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count).cast(type_ or pa.string())


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view(), pa.json_()])
def test_a_column_of_any_string_layout(type_):
    assert texts("a", pa.table({"a": pa.array(["x", "größer"], type_)})) == ["x", "größer"]


@pytest.mark.parametrize("values", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_dictionary_of_any_string_layout(values):
    column = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), pa.array(["x", "y"], values))
    assert texts("a", pa.table({"a": column})) == ["y", "x", "y"]


def test_chunks_slices_and_empty_tables():
    table = pa.table({"a": pa.chunked_array([["x", "y"], [], ["z"]])})
    assert texts("a", table) == ["x", "y", "z"]
    assert texts("a", table.slice(1, 1)) == ["y"]
    assert texts("a", table.slice(0, 0)) == []
    assert texts("{a}", pa.table({"a": pa.chunked_array([], pa.string())})) == []


def test_a_path_reads_a_nested_field_and_a_null_above_it_is_null():
    table = pa.table({"meta": [{"page": {"title": "x"}}, {"page": None}, None]})
    source = compile_text("meta.page.title", table.schema)
    assert source.columns == ("meta",)
    values, failures = source.render(table, 10)
    assert values == ["x", None, None]
    assert {row: failure.reason for row, failure in failures.items()} == {1: Reason.NULL_TEXT, 2: Reason.NULL_TEXT}


def test_a_column_whose_name_has_a_dot_or_a_space_wins_over_the_path():
    table = pa.table({"a": [{"b": "path", "c": "nested"}], "a.b": ["column"], "my text": ["spaced"]})
    assert texts("a.b", table) == ["column"]
    assert texts("{a.b} {a.c} {my text}", table) == ["column nested spaced"]


def test_a_template_with_literal_braces_and_null_rendered_empty():
    table = pa.table({"a": ["x", None], "b": ["y", "z"]})
    assert texts("{{{a}}} {b}\n", table) == ["{x} y\n", "{} z\n"]


def test_a_template_writes_numbers_booleans_dates_and_dictionaries():
    table = pa.table(
        {
            "i": pa.array([1], pa.int8()),
            "f": pa.array([0.1], pa.float32()),
            "b": [True],
            "n": pa.array([Decimal("1.50")]),
            "d": [date(2024, 2, 29)],
            "t": pa.array([datetime(2024, 2, 29, 12, tzinfo=UTC)], pa.timestamp("s", "UTC")),
            "k": pa.array([7]).dictionary_encode(),
            "s": [{"x": 3}],
            "z": pa.nulls(1),
        }
    )
    assert texts("{i}|{f}|{b}|{n}|{d}|{t}|{k}|{s.x}|{z}", table) == [
        "1|0.1|true|1.50|2024-02-29|2024-02-29 12:00:00Z|7|3|"
    ]
    assert compile_text("{s.x}{i}{s.x}", table.schema).columns == ("s", "i")


def test_a_null_text_says_so():
    table = pa.table({"a": ["x", None, None], "b": [None, "y", None]})
    assert reasons("a", table) == {1: Reason.NULL_TEXT, 2: Reason.NULL_TEXT}
    assert reasons("about {a}, {b}", table) == {2: Reason.NULL_TEXT}
    assert render("a", table)[1][1].detail == "'a' is null"


def test_a_text_without_a_visible_character_is_blank():
    blank = ["", "  \n\t", "\u00a0\u3000", "\u200b\ufeff", "\x85\x0b\x0c"]
    table = pa.table({"a": [*blank, "x", "\u200d👍\ufe0f", "。"]})
    assert reasons("a", table) == dict.fromkeys(range(5), Reason.BLANK_TEXT)
    assert render("a", table)[1][1].detail == "the text has 4 characters, none visible"


def test_words_of_the_template_alone_are_no_text():
    table = pa.table({"a": ["", "\x00", "x"], "b": [None, " ", None]})
    assert reasons("about: {a}{b}", table) == {0: Reason.BLANK_TEXT, 1: Reason.CONTROL_CHARACTERS}


def test_control_characters_alone_are_told_and_among_visible_ones_left_as_they_are():
    table = pa.table({"a": ["\x00", " \x1f\x7f\n", "a\x00b\x1b[0m"]})
    assert reasons("a", table) == {0: Reason.CONTROL_CHARACTERS, 1: Reason.CONTROL_CHARACTERS}
    values, failures = render("a", table)
    assert values[2] == "a\x00b\x1b[0m"
    assert failures[1].detail == "the text has 4 characters, none visible, 2 of them control characters"


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.string_view()])
def test_bytes_that_are_not_utf8_cost_their_own_row_only(type_):
    table = pa.table({"a": not_checked(BAD, type_)})
    values, failures = render("a", table)
    assert values == ["fine", None, None, None, "größer"]
    assert [failures[row].reason for row in (1, 2, 3)] == [Reason.NOT_UTF8, Reason.NULL_TEXT, Reason.NOT_UTF8]
    assert failures[1].detail == "'a' is not UTF-8: byte 0xe9 at offset 3 of 9"


def test_a_dictionary_a_nested_field_and_a_template_with_bytes_that_are_not_utf8():
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 0]), not_checked(BAD))
    nested = pa.StructArray.from_arrays([not_checked(BAD[:4])], ["x"])
    table = pa.table({"a": pa.chunked_array([column.slice(0, 1), column.slice(1)]), "s": nested, "b": list("wxyz")})
    assert reasons("a", table) == {1: Reason.NOT_UTF8, 2: Reason.NULL_TEXT}
    assert reasons("s.x", table) == {1: Reason.NOT_UTF8, 2: Reason.NULL_TEXT, 3: Reason.NOT_UTF8}
    assert reasons("{b} {a}{s.x}", table) == {1: Reason.NOT_UTF8, 3: Reason.NOT_UTF8}


def test_a_text_over_max_chars_tells_both_numbers():
    table = pa.table({"a": ["x" * 11, "ü" * 10]})
    assert reasons("a", table, max_chars=10) == {0: Reason.OVER_MAX_CHARS}
    assert render("a", table, 10)[1][0].detail == "the text has 11 characters, max_chars is 10"
    assert reasons("{a}!", table, max_chars=10) == {0: Reason.OVER_MAX_CHARS, 1: Reason.OVER_MAX_CHARS}


def test_a_source_travels_to_actors():
    schema = pa.schema({"a": pa.string()})
    assert pickle.loads(pickle.dumps(compile_text("{a}", schema))) == compile_text("{a}", schema)  # noqa: S301 - ours


@settings(max_examples=100)
@given(st.lists(st.tuples(st.none() | st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=6))
def test_any_value_becomes_a_text_or_a_failure(rows):
    table = pa.table({"a": pa.array([row[0] for row in rows], pa.string()), "b": not_checked([row[1] for row in rows])})
    for expression in ("a", "b", "{a}-{b}"):
        values, failures = render(expression, table, 6)
        assert {row for row, value in enumerate(values) if value is None} == set(failures)
    assert [value for value in render("a", table, 6)[0] if value] == [
        row[0] for index, row in enumerate(rows) if index not in render("a", table, 6)[1]
    ]


SCHEMA = pa.schema(
    {
        "summary": pa.string(),
        "meta": pa.struct({"lang": pa.string(), "size": pa.int64()}),
        "tags": pa.list_(pa.string()),
        "raw": pa.binary(),
        "year": pa.int32(),
        "took": pa.duration("s"),
        "when": pa.timestamp("s", "Mars/Olympus"),
    }
)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sumary", "no column 'sumary'; did you mean 'summary'? columns: summary, meta, tags, raw, year, took, when"),
        ("SUMMARY", "no column 'SUMMARY'; did you mean 'summary'?"),
        ("{zzz}", "no column 'zzz'; columns: summary, meta"),
        ("meta.langg", "column 'meta' has no field 'langg'; did you mean 'lang'? fields: lang, size"),
        ("meta.lang.x", "field 'meta.lang' is string: 'meta.lang.x' needs a struct there"),
        ("tags.x", "column 'tags' is list<"),
        ("year", "text 'year' is int32, not a string; a template can use numbers"),
        ("meta", "text 'meta' is struct<lang: string, size: int64>, not a string"),
        ("{tags}", "text '{tags}': 'tags' is list<"),
        ("{raw}", "'raw' is binary; a template can use strings, numbers, booleans, dates and timestamps"),
        ("{took}", "'took' is duration[s]"),
        ("{when}", "'when' is timestamp[s, tz=Mars/Olympus]: Cannot locate or parse timezone"),
        ("x {summary", "text 'x {summary': the '{' at character 3 is not closed; write {{ for the character itself"),
        ("{summary}}", "the '}' at character 10 closes nothing; write }} for the character itself"),
        ("{a{summary}}", "the '{' at character 1 is not closed"),
        ("x {}", "text 'x {}': the {} at character 3 names no column"),
        ("{{summary}}", "text '{{summary}}' names no column: every row would have the same text; write {column}"),
    ],
)
def test_a_text_that_cannot_be_is_told(expression, message):
    with pytest.raises(CorpusError) as caught:
        compile_text(expression, SCHEMA)
    assert message in str(caught.value)


def test_a_doubled_column_is_told():
    with pytest.raises(CorpusError, match="column 'a' stands 2 times in the corpus: rename one"):
        compile_text("a", pa.schema([("a", pa.string()), ("a", pa.string())]))


def test_a_long_list_of_columns_is_cut():
    with pytest.raises(CorpusError, match=r"c0, .*, c29 and 10 more$"):
        compile_text("zzz", pa.schema([(f"c{number}", pa.string()) for number in range(40)]))
