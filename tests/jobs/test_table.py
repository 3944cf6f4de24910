import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from jobs.summary import text
from jobs.table import annotations_of, cell, cut, few_rows

ROWS = pa.table(
    {
        "_file": ["a.parquet"] * 2,
        "_row": [0, 1],
        "size": [1, 2],
        "package": ["0ad", "zsh"],
        "summary": ["Real-time strategy game of ancient warfare", "shell with lots of features"],
        "topic_label": ["games", None],
        "topic_score": pa.array([0.61234, None], pa.float32()),
        "topic_tokens": pa.array([9, 8], pa.int32()),
        "topic_truncated": [False, False],
        "text_embedding": pa.array([[0.0134, -0.0211] + [0.5] * 382] * 2, pa.list_(pa.float32(), 384)),
        "text_tokens": pa.array([9, 8], pa.int32()),
        "text_truncated": [False, False],
    }
)


def lines(table, width, annotations=("topic", "text")):
    return text([few_rows(table, annotations, width)], width=width).splitlines()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.61234, "0.612"),
        (7, "7"),
        (True, "True"),
        (b"\x00" * 1500, "1,500 bytes"),
        ([0.0134, -0.0211, *[0.5] * 382], "[0.013, -0.021, … 384]"),
        ([1, 2], "[1, 2]"),
        (["a", "b"], "[a, b]"),
        ([], "[]"),
        ({"label": "PER", "text": "Ada"}, "{label: PER, text: Ada}"),
        ("two\nlines\tand  blanks ", "two lines and blanks"),
        ("\x1b[31mred\x07", "[31mred"),
        ("turned \u202eround", "turned round"),
    ],
)
def test_a_value_is_one_short_line(value, shown):
    assert cell(value) == shown


def test_annotations_are_known_by_their_counts_of_tokens():
    assert annotations_of(ROWS.column_names) == ["topic", "text"]
    assert annotations_of(["topic_truncated", "x_tokens"]) == []


def test_a_table_shows_texts_of_the_corpus_and_then_what_was_added():
    assert lines(ROWS, 100) == [
        "package  summary                              size  topic_label  topic_score  text_embedding",
        "0ad      Real-time strategy game of ancient…     1  games              0.612  [0.013, -0.021, … 384]",
        "zsh      shell with lots of features             2  –                      –  [0.013, -0.021, … 384]",
    ]


def test_columns_that_have_no_room_are_left_out_and_counted():
    assert lines(ROWS, 60) == [
        "package  topic_label  topic_score  text_embedding",
        "0ad      games              0.612  [0.013, … 384]",
        "zsh      –                      –  [0.013, … 384]",
        "and 2 more columns",
    ]


def test_markup_in_a_corpus_is_shown_as_it_is():
    assert "[bold]x[/bold]" in lines(pa.table({"a": ["[bold]x[/bold]"]}), 80, [])[1]


def test_rows_without_columns_of_the_corpus_show_where_they_are_from():
    table = ROWS.select(["_file", "_row", "topic_label", "topic_tokens", "topic_truncated"])
    assert lines(table, 80, ["topic"])[0].split() == ["_file", "_row", "topic_label"]


def test_a_preview_shows_why_a_row_would_be_set_aside_only_where_one_would():
    kept = ROWS.append_column("quarantine", pa.array([None, None], pa.string()))
    assert lines(kept, 120) == lines(ROWS, 120)
    refused = ROWS.append_column("quarantine", pa.array([None, "blank_text: nothing visible"]))
    assert lines(refused, 120)[2].endswith("blank_text: nothing vis…")


def test_cut_counts_cells_of_the_terminal_not_letters():
    assert cut("日本語日本語", 7) == "日本語…"


words = st.text(max_size=40)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(words, st.lists(words | st.none(), min_size=3, max_size=3), max_size=8),
    st.integers(40, 160),
    st.sets(st.sampled_from(["topic", "long_name_of_an_annotation", "x"])),
)
def test_no_line_is_wider_than_the_terminal_whatever_the_corpus_holds(columns, width, annotations):
    encodable = {
        name.encode("utf-8", "replace").decode(): [
            value and value.encode("utf-8", "replace").decode() for value in values
        ]
        for name, values in columns.items()
    }
    table = pa.table({**encodable, **{f"{name}_label": ["a label of some length"] * 3 for name in annotations}})
    shown = lines(table, width, annotations) if table.num_columns else []
    assert all(cell_len(line) <= width for line in shown)
    assert all(line.isprintable() for line in shown)
