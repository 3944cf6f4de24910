"""Annotations read columns of the corpus and of each other, and only the rows that they ask for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.annotator import Annotations, AnnotationSpec, Annotator, columns_of
from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.inputs import compile_inputs, pools_in_order
from pipeline.models.reference import PinnedModel
from pipeline.output.planfile import PinnedAnnotation
from pipeline.quarantine import Reason

Order = Callable[..., tuple[str | None, ...]]
PINNED = PinnedAnnotation(None, None, None, None, None, "cpu", 1, 0)

SHOUT = """
from dataclasses import replace
import pyarrow as pa
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, AnnotationSettings, ColumnInput, Task, TextInput, Texts

class Shout(Task):
    '''Upper case, with `beside` and `raw` what other columns hold; nothing for the word "none".'''
    seen = []

    class Config(AnnotationSettings):
        beside: str | None = None
        raw: str | None = None

    def inputs(self):
        found = dict(super().inputs())
        if self.config.beside is not None:
            found["beside"] = TextInput(self.config.beside, may_be_words=True)
        if self.config.raw is not None:
            found["raw"] = ColumnInput(self.config.raw)
        return found

    def fields(self):
        return [pa.field("text", pa.string())]

    def annotate(self, texts: Texts) -> Annotation:
        type(self).seen.append((self.config.name, list(texts.values)))
        said = [None if text == "none" else text.upper() for text in texts.values]
        if "beside" in texts.inputs:
            said = [f"{one}|{other}" for one, other in zip(said, texts.inputs["beside"], strict=True)]
        if "raw" in texts.inputs:
            said = [f"{one}|{value!r}" for one, value in zip(said, texts.inputs["raw"], strict=True)]
        failed = [row for row, text in enumerate(texts.values) if text == "fail"]
        said = [None if row in failed else text for row, text in enumerate(said)]
        found = Annotation.of({"text": pa.array(said, pa.string())}, len(said))
        return replace(found, failures={row: Failure(Reason.MODEL_FAILED, "asked to") for row in failed})
"""


@pytest.fixture
def annotator(tmp_path: Path) -> Any:
    (tmp_path / "shout.py").write_text(SHOUT)

    def make(schema: pa.Schema, *annotations: Mapping[str, Any]) -> Annotator:
        specs = [
            AnnotationSpec({"task": str(tmp_path / "shout.py"), "text": "text"} | dict(each), True, None, PINNED)
            for each in annotations
        ]
        made = Annotator(specs, schema)
        made.load()
        return made

    return make


def _run(
    annotator: Any, table: pa.Table, *annotations: Mapping[str, Any], leave_out: tuple[int, ...] = ()
) -> Annotations:
    found = annotator(table.schema, *annotations).annotate(table, leave_out)
    assert isinstance(found, Annotations)
    return found


TABLE = pa.table({"text": ["a", "b", "none", "fail", None], "lang": ["de", "en", "de", "de", "de"]})


def test_an_annotation_reads_what_an_earlier_one_wrote(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one"}, {"name": "two", "text": "<{one_text}> {lang}"})
    assert found.columns["two_text"].to_pylist()[:2] == ["<A> DE", "<B> EN"]


def test_a_row_that_failed_before_is_not_tried_and_told_once(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one"}, {"name": "two", "text": "one_text"})
    assert found.columns["two_text"].to_pylist() == ["A", "B", None, None, None]
    told = [(each.row, each.annotation, each.reason) for each in found.problems]
    assert told == [(3, "one", Reason.MODEL_FAILED), (4, "one", Reason.NULL_TEXT)]


def test_where_leaves_rows_out_that_then_hold_nulls_and_cost_nothing(annotator: Any) -> None:
    made = annotator(TABLE.schema, {"name": "one", "where": "lang = 'en'"})
    found = made.annotate(TABLE)
    assert found.columns["one_text"].to_pylist() == [None, "B", None, None, None]
    assert found.columns["one_tokens"].to_pylist() == [None, 0, None, None, None]
    assert found.problems == []
    assert type(made._tasks[0]).seen == [("one", ["b"])]


def test_where_asks_what_an_earlier_annotation_said_and_null_keeps_nothing(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one"}, {"name": "two", "where": "one_text <> 'A'"})
    assert found.columns["two_text"].to_pylist() == [None, "B", None, None, None]
    assert [each.annotation for each in found.problems] == ["one", "one"]


def test_a_row_that_where_left_out_is_left_out_by_those_that_read_it(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one", "where": "lang = 'en'"}, {"name": "two", "text": "one_text"})
    assert found.columns["two_text"].to_pylist() == [None, "B", None, None, None]
    assert found.problems == []


def test_several_inputs_stand_side_by_side(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one", "beside": "lang", "raw": "lang"})
    assert found.columns["one_text"].to_pylist()[0] == "A|de|'de'"


def test_words_with_a_blank_are_the_same_for_each_row(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one", "beside": "who is it?"})
    assert found.columns["one_text"].to_pylist()[:2] == ["A|who is it?", "B|who is it?"]


def test_a_word_without_a_blank_is_a_column_and_a_slip_is_told(annotator: Any) -> None:
    with pytest.raises(CorpusError, match="annotation 'one': no column 'lnag'; did you mean 'lang'"):
        annotator(TABLE.schema, {"name": "one", "beside": "lnag"})


def test_a_column_of_a_later_annotation_is_told_as_such(annotator: Any) -> None:
    with pytest.raises(
        CorpusError, match=r"annotation 'one': no column 'two_text'.*annotation 'two' adds it.*move it up"
    ):
        annotator(TABLE.schema, {"name": "one", "text": "two_text"}, {"name": "two"})


def test_a_wrong_where_is_told_with_its_annotation(annotator: Any) -> None:
    with pytest.raises(CorpusError, match=r"annotation 'one': where: .*langue"):
        annotator(TABLE.schema, {"name": "one", "where": "langue = 'de'"})


def test_what_is_read_of_the_corpus_is_told_apart_from_what_is_read_of_annotations(annotator: Any) -> None:
    made = annotator(TABLE.schema, {"name": "one", "where": "lang = 'de'"}, {"name": "two", "text": "{one_text}"})
    tasks = made._tasks
    one, two = compile_inputs(tasks, [columns_of(task) for task in tasks], TABLE.schema)
    assert (one.corpus, one.earlier, one.after) == (frozenset({"text", "lang"}), frozenset(), frozenset())
    assert (two.corpus, two.earlier, two.after) == (frozenset(), frozenset({"one"}), frozenset({"one"}))


def test_an_annotation_that_only_asks_for_a_column_comes_after_the_one_that_adds_it(annotator: Any) -> None:
    made = annotator(TABLE.schema, {"name": "one"}, {"name": "two", "where": "one_text = 'A'"})
    _, two = made._reads
    assert (two.corpus, two.earlier, two.after) == (frozenset({"text"}), frozenset(), frozenset({"one"}))


def test_rows_left_out_of_a_unit_are_left_out_of_every_annotation(annotator: Any) -> None:
    found = _run(annotator, TABLE, {"name": "one"}, {"name": "two", "text": "one_text"}, leave_out=(0, 3, 4))
    assert found.columns["two_text"].to_pylist() == [None, "B", None, None, None]
    assert found.problems == []


def test_annotations_of_the_same_rows_share_and_those_of_other_rows_do_not(annotator: Any, tmp_path: Path) -> None:
    words = tmp_path / "words.py"
    words.write_text(
        """
import numpy as np
import pyarrow as pa
from pipeline.tasks.base import Annotation, Task

class Words(Task):
    made = []
    def fields(self):
        return [pa.field("count", pa.int64())]
    def annotate(self, texts):
        def count():
            type(self).made.append(self.config.name)
            return [len(text) for text in texts.values]
        return Annotation.of({"count": pa.array(texts.once("count", count), pa.int64())}, len(texts.values))
"""
    )
    made = annotator(
        TABLE.schema,
        {"name": "one", "task": str(words)},
        {"name": "two", "task": str(words)},
        {"name": "three", "task": str(words), "where": "lang = 'en'"},
    )
    found = made.annotate(TABLE)
    assert type(made._tasks[0]).made == ["one", "three"]
    assert found.columns["three_count"].to_pylist() == [None, 1, None, None, None]


# -------------------------------------------------------------------------------------------------------------- pools


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """The pools of a job with these annotations, as a unit passes them."""
    (tmp_path / "shout.py").write_text(SHOUT)

    def made(*annotations: Mapping[str, Any]) -> tuple[str | None, ...]:
        settings = [{"task": str(tmp_path / "shout.py"), "text": "text"} | dict(each) for each in annotations]
        tasks = [AnnotationSpec(each, True, None, PINNED).task() for each in settings]
        schema = pa.schema([pa.field("text", pa.string())])
        return pools_in_order(tasks, compile_inputs(tasks, [columns_of(task) for task in tasks], schema))

    return made


def test_a_unit_passes_the_pools_as_they_first_come_where_nothing_speaks_against_it(order: Order) -> None:
    assert order({"name": "a"}, {"name": "b"}) == (None,)
    assert order({"name": "a", "pool": "x"}, {"name": "b"}, {"name": "c", "pool": "x"}) == ("x", None)


def test_a_pool_that_reads_or_asks_for_columns_of_another_comes_after_it(order: Order) -> None:
    apart = {"name": "a", "pool": "x"}, {"name": "b"}
    assert order(*apart, {"name": "c", "pool": "x", "text": "b_text"}) == (None, "x")
    assert order(*apart, {"name": "c", "pool": "x", "where": "b_text = 'NO'"}) == (None, "x")
    chain = [
        {"name": "a", "pool": "x"},
        {"name": "b", "pool": "y"},
        {"name": "c"},
        {"name": "d", "pool": "y", "text": "c_text"},
        {"name": "e", "pool": "x", "text": "d_text"},
    ]
    assert order(*chain) == (None, "y", "x")


def test_pools_that_read_each_other_to_and_fro_are_told_with_who_reads_what(order: Order) -> None:
    chain = [{"name": "a"}, {"name": "b", "pool": "x", "text": "a_text"}, {"name": "c", "text": "b_text"}]
    words = (
        r"a unit passes each pool once: 'b' \(pool 'x'\) reads 'a' \(without a pool\), "
        r"'c' \(without a pool\) reads 'b' \(pool 'x'\); give one of them another `pool`"
    )
    with pytest.raises(JobError, match=words):
        order(*chain)
    assert order(*chain[:2], {**chain[2], "pool": "y"}) == (None, "x", "y")


def test_a_value_that_is_not_utf8_fails_its_row_alone(annotator: Any) -> None:
    raw = pa.array([b"x", b"\xff", None], pa.binary())
    chats = pa.StructArray.from_arrays([pa.Array.from_buffers(pa.string(), 3, raw.buffers())], names=["content"])
    table = pa.table({"text": ["a", "b", "c"], "chat": chats})
    found = _run(annotator, table, {"name": "one", "raw": "chat"})
    assert found.columns["one_text"].to_pylist() == ["A|{'content': 'x'}", None, "C|{'content': None}"]
    (problem,) = found.problems
    assert (problem.row, problem.reason) == (1, Reason.NOT_UTF8)
    assert problem.detail == "'chat' is not UTF-8: byte 0xff"


@pytest.mark.parametrize("where", ["lang = 'de'", "lang LIKE 'd%'", "lang ILIKE '%E'", "lang IN ('de')"])
def test_where_asks_bytes_that_are_not_utf8_like_any_others(annotator: Any, where: str) -> None:
    raw = pa.array([b"de", b"\xffd\xe2", b"en"], pa.binary())
    table = pa.table({"text": ["a", "b", "c"], "lang": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    found = _run(annotator, table, {"name": "one", "where": where})
    assert found.columns["one_text"].to_pylist() == ["A", None, None]
    assert found.problems == []


def test_the_models_of_other_pools_are_not_looked_for_on_this_node(annotator: Any, tmp_path: Path) -> None:
    here, there = (
        AnnotationSpec({"name": name, "task": str(tmp_path / "shout.py"), "text": text}, True, model, PINNED, added)
        for name, text, model, added in (
            ("here", "there_text", None, ()),
            (
                "there",
                "text",
                PinnedModel("gone", None, "/gone", "0" * 64, 1, {}),
                (pa.field("there_text", pa.string()),),
            ),
        )
    )
    with pytest.raises(ModelError, match="gone"):
        Annotator([there, here], TABLE.schema)
    table = TABLE.append_column("there_text", TABLE["text"]).append_column("there_tokens", [[0] * 5])
    found = Annotator([there, here], TABLE.schema, [here]).annotate(table)
    assert found.columns["here_text"].to_pylist() == ["A", "B", None, None, None]
