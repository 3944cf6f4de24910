"""Every row gets what its text gave, wherever bad rows stand between."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotator import Annotations, AnnotationSpec, Annotator, columns_of
from pipeline.errors import ModelError
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.planfile import PinnedAnnotation
from pipeline.quarantine import Problem, Reason
from pipeline.repeats import Cache, Repeats, key, salt
from pipeline.unit_texts import UnitTexts

COUNTING = str(Path(__file__).parent.parent / "chaos/counting.py")
PINNED = PinnedAnnotation(None, None, None, None, None, "cpu", 1, 0)
WORDY = """
import numpy as np
import pyarrow as pa
from pipeline.tasks.base import Annotation, Task, Texts

class Wordy(Task):
    '''Words are tokens; annotations over the same texts count them once; long texts are cut to three.'''
    calls = []

    def fields(self):
        return [pa.field("words", pa.list_(pa.string()))]

    def annotate(self, texts: Texts) -> Annotation:
        if texts.running is not None:
            texts.running(range(len(texts.values)))
        new = "words" not in texts.shared
        words = texts.once("words", lambda: [text.split() for text in texts.values])
        tokens = np.array([min(3, len(each)) for each in words], np.int32)
        truncated = np.array([len(each) > 3 for each in words], np.bool_)
        columns = {"words": pa.array([each[:3] for each in words], pa.list_(pa.string()))}
        return Annotation(columns, tokens, truncated, {}, int(tokens.sum()) if new else 0, 2 if new else 0)
"""


def _annotator(schema: pa.Schema, *annotations: Mapping[str, Any]) -> Annotator:
    specs = [
        AnnotationSpec({"name": "size", "task": COUNTING, "text": "text"} | dict(each), True, None, PINNED)
        for each in annotations or ({},)
    ]
    annotator = Annotator(specs, schema)
    annotator.load()
    return annotator


def _table(*texts: str | None) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string())})


def _lists(found: Annotations) -> dict[str, list[Any]]:
    return {name: column.to_pylist() for name, column in found.columns.items()}


def test_columns_are_named_typed_and_ordered_as_told() -> None:
    annotator = _annotator(_table().schema, {}, {"name": "b", "errors": "keep"})
    names = ["chars", "label", "tokens", "truncated"]
    expected = [*(f"size_{name}" for name in names), *(f"b_{name}" for name in names), "b_error"]
    assert [field.name for field in annotator.columns] == expected
    found = annotator.annotate(_table("one", None))
    assert {field.name: field.type for field in annotator.columns} == {
        name: column.type for name, column in found.columns.items()
    }


def test_rows_without_a_good_text_hold_null_in_every_column() -> None:
    table = _table(None, "one", "  ", "please FAIL", "three", "left out")
    found = _annotator(table.schema).annotate(table, leave_out={5})
    assert _lists(found) == {
        "size_chars": [None, 3, None, None, 5, None],
        "size_label": [None, "short", None, None, "short", None],
        "size_tokens": [None, 0, None, None, 0, None],
        "size_truncated": [None, False, None, None, False, None],
    }
    assert [(each.row, each.annotation, each.reason) for each in found.problems] == [
        (0, "size", Reason.NULL_TEXT),
        (2, "size", Reason.BLANK_TEXT),
        (3, "size", Reason.MODEL_FAILED),
    ]


def test_errors_that_are_kept_stand_in_their_own_column_and_set_no_row_aside() -> None:
    table = _table(None, "one", "please FAIL")
    found = _annotator(table.schema, {"errors": "keep"}).annotate(table)
    assert found.problems == []
    null, good, failed = found.columns["size_error"].to_pylist()
    assert null.startswith("null_text: ")
    assert good is None
    assert failed == "model_failed: asked to fail"
    assert found.columns["size_chars"].to_pylist() == [None, 3, None]


def test_a_row_that_was_left_out_has_no_error_of_its_own() -> None:
    table = _table(None, "one")
    found = _annotator(table.schema, {"errors": "keep"}).annotate(table, leave_out={0})
    assert found.columns["size_error"].to_pylist() == [None, None]


def test_each_annotation_tells_its_own_problem_of_a_row() -> None:
    table = _table("a long text", "short")
    found = _annotator(table.schema, {}, {"name": "brief", "max_chars": 5}).annotate(table)
    assert [(each.row, each.annotation, each.reason) for each in found.problems] == [
        (0, "brief", Reason.OVER_MAX_CHARS)
    ]
    assert found.columns["size_chars"].to_pylist() == [11, 5]
    assert found.columns["brief_chars"].to_pylist() == [None, 5]


def test_a_unit_without_rows_gives_columns_without_values() -> None:
    found = _annotator(_table().schema).annotate(_table())
    assert _lists(found) == {"size_chars": [], "size_label": [], "size_tokens": [], "size_truncated": []}


def test_a_unit_whose_rows_are_all_at_fault_gives_nulls() -> None:
    found = _annotator(_table().schema).annotate(_table("a", "b"), leave_out={0, 1})
    assert found.columns["size_chars"].to_pylist() == [None, None]
    assert found.problems == list[Problem]()


@pytest.fixture
def wordy(tmp_path: Path) -> str:
    """A user's own task that counts words as tokens."""
    (tmp_path / "wordy.py").write_text(WORDY)
    return str(tmp_path / "wordy.py")


def test_texts_that_annotations_share_go_through_a_model_once_and_count_once(wordy: str) -> None:
    table = _table("one two", "one two three four five", None)
    both = {"task": wordy}, {"task": wordy, "name": "again"}
    found = _annotator(table.schema, *both).annotate(table)
    assert (found.tokens, found.padding_tokens) == (5, 2)
    assert found.tokens_by_annotation == {"size": 5, "again": 5}
    assert found.columns["again_words"].to_pylist() == [["one", "two"], ["one", "two", "three"], None]
    assert found.columns["size_tokens"].to_pylist() == [2, 3, None]
    assert found.columns["again_truncated"].to_pylist() == [False, True, None]
    apart = {"task": wordy}, {"task": wordy, "name": "again", "text": "{text}!"}
    found = _annotator(table.schema, *apart).annotate(table)
    assert found.tokens == 5 + 5


def test_the_journal_hears_rows_of_the_unit(wordy: str) -> None:
    table, heard = _table(None, "a", "b", None, "c"), list[list[int]]()
    _annotator(table.schema, {"task": wordy}).annotate(table, {2}, lambda rows: heard.append(list(rows)))
    assert heard == [[1, 4]]


@given(st.lists(st.sampled_from([None, " ", "good", "please FAIL", "rather a long text, it is"]), max_size=30))
def test_every_row_is_either_annotated_or_told_once(texts: list[str | None]) -> None:
    table = _table(*texts)
    found = _annotator(table.schema).annotate(table)
    told = {each.row for each in found.problems}
    assert len(told) == len(found.problems)
    for row, (text, chars) in enumerate(zip(texts, found.columns["size_chars"].to_pylist(), strict=True)):
        assert (row in told) == (chars is None)
        assert chars is None or (text is not None and chars == len(text))


def test_columns_of_a_task_come_after_its_own_fields() -> None:
    spec = AnnotationSpec({"name": "n", "task": COUNTING, "text": "text"}, True, None, PINNED)
    assert [field.name for field in columns_of(spec.task())] == ["n_chars", "n_label", "n_tokens", "n_truncated"]


def test_a_task_that_cannot_start_with_its_model_is_told_with_its_annotation(minilm: Path, tmp_path: Path) -> None:
    words = WORDY.replace("    calls = []\n", "    needs = 'AutoModel'\n")
    words += "    def start(self, loaded):\n        raise KeyError('no such layer')\n"
    (tmp_path / "late.py").write_text(words)
    model = pin(ModelSettings(ref=str(minilm)))
    pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "float32", "cpu", 1, 1024)
    spec = AnnotationSpec({"name": "n", "task": str(tmp_path / "late.py"), "text": "text"}, True, model, pinned)
    with pytest.raises(ModelError, match=r"annotation 'n': its task could not start: KeyError: 'no such layer'"):
        Annotator([spec], _table().schema).load()


@hypothesis.settings(deadline=None)
@given(st.lists(st.sampled_from([None, " ", "good", "please FAIL", "rather a long text, it is"]), max_size=20))
def test_annotations_made_apart_are_those_made_together(texts: list[str | None]) -> None:
    table = _table(*texts)
    settings: list[dict[str, Any]] = [
        {"name": "size"},
        {"name": "label", "text": "size_label"},
        {"name": "long", "text": "{text}: {size_label}", "where": "size_chars > 5", "errors": "keep"},
        {"name": "last", "text": "long_label"},
    ]
    specs = [AnnotationSpec({"task": COUNTING, "text": "text"} | each, True, None, PINNED) for each in settings]
    specs = [replace(spec, added=tuple(columns_of(spec.task()))) for spec in specs]
    together = Annotator(specs, table.schema).annotate(table)
    columns: dict[str, Any] = {}
    problems: list[Problem] = []
    for names in ({"size"}, {"long"}, {"label", "last"}):
        here = Annotator(specs, table.schema, [spec for spec in specs if spec.settings["name"] in names])
        found = here.annotate(table)
        assert [column.name for column in here.columns] == list(found.columns)
        for name, values in found.columns.items():
            table = table.append_column(name, values)
        columns |= found.columns
        problems += found.problems
    assert {name: columns[name] for name in together.columns} == together.columns
    assert sorted(problems, key=str) == sorted(together.problems, key=str)


REPEATED = ["one two", None, "one two", "three", "please FAIL", "one two", "please FAIL", "three four five six"]


def test_texts_that_come_again_are_computed_once_and_said_of_every_row(wordy: str) -> None:
    table, heard = _table(*REPEATED), list[list[int]]()
    found = _annotator(table.schema, {"task": wordy}).annotate(table, (), lambda rows: heard.append(list(rows)))
    words = [text if text is None else text.split()[:3] for text in REPEATED]
    assert found.columns["size_words"].to_pylist() == words
    assert found.columns["size_tokens"].to_pylist() == [2, None, 2, 1, 2, 2, 2, 3]
    assert found.columns["size_truncated"].to_pylist() == [False, None, *[False] * 5, True]
    assert (found.tokens, found.repeated_by_annotation) == (2 + 1 + 2 + 3, {"size": 3})
    assert heard == [[0, 2, 5, 3, 4, 6, 7]]


def test_every_row_whose_text_fails_is_told() -> None:
    table = _table(*REPEATED)
    told = [(each.row, each.reason) for each in _annotator(table.schema).annotate(table).problems]
    assert told == [(1, Reason.NULL_TEXT), (4, Reason.MODEL_FAILED), (6, Reason.MODEL_FAILED)]


@given(st.lists(st.sampled_from([None, " ", "good", "please FAIL", "rather a long text, it is"]), max_size=30))
def test_once_or_each_says_the_same(texts: list[str | None]) -> None:
    table = _table(*texts)
    spec = AnnotationSpec({"name": "size", "task": COUNTING, "text": "text"}, True, None, PINNED)
    once, each = (Annotator([spec], table.schema, repeats=Repeats(once)).annotate(table) for once in (True, False))
    assert once.columns == each.columns
    assert once.problems == each.problems
    assert each.repeated_by_annotation == {"size": 0}


def _embedding(folder: Path, repeats: Repeats, **options: Any) -> Annotator:
    model = pin(ModelSettings(ref=str(folder)))
    settings = {"name": "e", "task": "embed", "text": "text"} | options
    pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "float32", "cpu", 1, 1024)
    return Annotator([AnnotationSpec(settings, False, model, pinned)], _table().schema, repeats=repeats)


def test_a_budget_that_memory_lowered_is_told_with_the_unit_and_stays(make_encoder: Callable[..., Path]) -> None:
    texts = [f"ak bl cm dn {first}{second}" for first in "abcdefgh" for second in "klmnopqr"]  # of 7 tokens each
    annotator, table = _embedding(make_encoder(), Repeats()), _table(*texts)
    annotator.load()
    calls: list[int] = []

    def narrow(module: object, inputs: object, given: dict[str, Any]) -> None:
        calls.append(given["input_ids"].numel())
        if calls[-1] > 300:
            raise MemoryError

    annotator._tasks[0].loaded.module.register_forward_pre_hook(narrow, with_kwargs=True)  # type: ignore[attr-defined]
    first = annotator.annotate(table)
    assert (first.problems, first.lowered_budget, max(calls) > 300) == ([], {"e": 224}, True)
    calls.clear()
    assert (annotator.annotate(table).lowered_budget, max(calls) <= 224) == ({"e": 224}, True)


def test_a_cache_says_again_what_another_unit_or_run_has_found(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    repeats = Repeats(cache=str(tmp_path))
    first, second = _table("ak bl", "cm dn", None, "ak bl"), _table("eo", "cm dn", "", "ak bl", "eo")
    plain = _embedding(make_encoder(), Repeats())
    for annotator in (
        plain,
        before := _embedding(make_encoder(), repeats),
        again := _embedding(make_encoder(), repeats),
    ):
        annotator.load()
    assert before.annotate(first).columns == plain.annotate(first).columns
    found = again.annotate(second)
    assert found.repeated_by_annotation == {"e": 1 + 2}
    assert found.columns["e_tokens"].to_pylist() == [3, 4, None, 4, 3]
    assert found.tokens == 3, "of one text alone, and its special tokens"
    assert [each.reason for each in found.problems] == [Reason.BLANK_TEXT]
    assert again.annotate(second).tokens == 0
    for name, column in plain.annotate(second).columns.items():
        assert column.type == found.columns[name].type
        for value, wanted in zip(found.columns[name].to_pylist(), column.to_pylist(), strict=True):
            assert value == pytest.approx(wanted, abs=1e-5)


def test_what_another_actor_computes_now_comes_last_and_is_taken_from_it(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    repeats = Repeats(cache=str(tmp_path))
    one, other = _embedding(make_encoder(), repeats), _embedding(make_encoder(), repeats)
    for annotator in (one, other):
        annotator.load()
    salted = salt(one._specs[0].decisive())
    begun = Cache(str(tmp_path))
    told: list[int] = []

    def meanwhile(module: object, inputs: object) -> None:
        told.append(len(told) or other.annotate(_table("ak bl")).tokens)

    one._tasks[0].loaded.module.register_forward_pre_hook(meanwhile)  # type: ignore[attr-defined]
    with begun.claimed([key(salted, [text]) for text in ("ak bl", "eo")]):
        found = one.annotate(_table("ak bl", "cm dn fk", "eo"))
    assert told == [4, 1], "another one said the first text while the second was computed; nobody said the third"
    assert found.repeated_by_annotation == {"e": 1}
    assert found.columns["e_tokens"].to_pylist() == [4, 5, 3]
    assert found.tokens == 5 + 3
    assert one.annotate(_table("eo", "ak bl", "cm dn fk")).tokens == 0


def test_of_a_unit_only_the_part_that_is_computed_now_is_claimed(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    annotator = _embedding(make_encoder(), Repeats(cache=str(tmp_path)))
    annotator.load()
    words = [f"{first}{second}" for first in "abcdefghijklm" for second in "klmnopqrstuvw"]
    keys = [key(salt(annotator._specs[0].decisive()), [word]) for word in words]
    looking, claimed = Cache(str(tmp_path)), []

    def meanwhile(module: object, inputs: object) -> None:
        with looking.claimed(keys) as theirs:
            claimed.append(frozenset(theirs))

    annotator._tasks[0].loaded.module.register_forward_pre_hook(meanwhile)  # type: ignore[attr-defined]
    annotator.annotate(_table(*words))
    parts = set(claimed)
    assert len(parts) > 1
    assert sum(map(len, parts)) == len(keys) == len(frozenset.union(*parts)), "each at one time"


def test_texts_are_as_long_as_their_tokens_which_are_found_once(make_encoder: Callable[..., Path]) -> None:
    reader = _embedding(make_encoder(), Repeats(), prefix="ak ")
    reader.take_tokenizers()
    (task,), (reads,) = reader._tasks, reader._reads
    unit = UnitTexts(_table("verylongword", None, "bl cm dn", "verylongword"), frozenset(), (), None, False, once=True)
    rendered = unit.rendered(task, reads)
    assert unit.lengths(task, rendered, [1]) == [4]
    assert unit.lengths(task, rendered, [0, 1]) == [2, 4]
    (tokens,) = unit.texts(task, rendered, [1, 0]).ahead.values()
    assert [len(each.ids_T) for each in tokens] == [4, 2]
    counting = AnnotationSpec({"name": "n", "task": COUNTING, "text": "text"}, True, None, PINNED).task()
    assert unit.lengths(counting, rendered, [0, 1]) == [12, 8], "no tokenizer: characters"


def test_annotations_that_share_a_pass_share_it_with_a_cache_too(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    model = pin(ModelSettings(ref=str(make_encoder())))
    pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "float32", "cpu", 1, 1024)
    settings = [{"name": f"d{dim}", "task": "embed", "text": "text", "truncate_dim": dim} for dim in (4, 8)]
    words = [f"{first}{second} " for first in "abcdefghijklm" for second in "klmnopqrstuvw"]
    table = _table(*(word * (row % 9 + 1) for row, word in enumerate(words)))
    told = []
    for several in (settings, settings[:1]):
        specs = [AnnotationSpec(each, False, model, pinned) for each in several]
        annotator = Annotator(specs, table.schema, repeats=Repeats(cache=str(tmp_path / str(len(several)))))
        annotator.load()
        told.append(annotator.annotate(table).tokens)
    assert told[0] == told[1] > 0


def test_another_option_or_name_of_the_model_is_another_or_the_same_entry(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    repeats, table = Repeats(cache=str(tmp_path)), _table("ak bl")
    options: list[tuple[dict[str, Any], int]] = [
        ({}, 4),
        ({"name": "other", "errors": "keep"}, 0),
        ({"pooling": "max"}, 4),
        ({"truncate_dim": 8}, 4),
    ]
    for each, tokens in options:
        annotator = _embedding(make_encoder(), repeats, **each)
        annotator.load()
        assert annotator.annotate(table).tokens == tokens, each


def test_tokens_that_another_process_has_found_are_those_that_a_model_reads(make_encoder: Callable[..., Path]) -> None:
    table = _table("ak bl", None, "cm", "ak bl", " ", "dn eo fk")
    actor, reader = _embedding(make_encoder(), Repeats()), _embedding(make_encoder(), Repeats())
    actor.load()
    reader.take_tokenizers()
    tokens = reader.tokenise(table, leave_out={2})
    assert tokens.column_names == ["e/"]
    assert [each["ids"] is not None for each in tokens["e/"].to_pylist()] == [True, False, False, False, False, True]
    alone = actor.annotate(table, leave_out={2})
    ahead = actor.annotate(table, leave_out={2}, tokens=tokens)
    assert ahead.columns == alone.columns
    assert ahead.problems == alone.problems
    swapped = pa.table({"e/": tokens["e/"].take(pa.array([5, 1, 2, 3, 4, 0]))})
    others = actor.annotate(table, leave_out={2}, tokens=swapped).columns["e_tokens"].to_pylist()
    assert others == [5, None, None, 5, None, 4], "nobody looked at the texts again"


def test_texts_of_earlier_annotations_are_not_tokenised_ahead(make_encoder: Callable[..., Path]) -> None:
    model = pin(ModelSettings(ref=str(make_encoder())))
    pinned = PinnedAnnotation(model.ref, None, model.digest, "torch", "float32", "cpu", 1, 1024)
    settings = [
        {"name": "size", "task": COUNTING, "text": "text"},
        {"name": "a", "task": "embed", "text": "size_label"},
        {"name": "b", "task": "embed", "text": "text", "where": "size_chars > 2"},
        {"name": "c", "task": "embed", "text": "text", "prefix": "ak "},
    ]
    specs = [AnnotationSpec(settings[0], True, None, PINNED)]
    specs += [AnnotationSpec(each, False, model, pinned) for each in settings[1:]]
    reader = Annotator(specs, _table().schema)
    reader.take_tokenizers()
    assert reader.tokenise(_table("bl")).to_pydict() == {
        "c/": [{"ids": reader.tokenise(_table("bl"))["c/"][0]["ids"].as_py(), "offsets": None, "whole": True}]
    }
    assert len(reader.tokenise(_table("bl"))["c/"][0]["ids"].as_py()) == 2


def test_tokens_found_ahead_and_a_cache_say_what_is_said_without_them(
    make_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    words = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    texts = [" ".join(words[row : row + 1 + row % 7]) for row in range(90)]
    table = _table(*texts)
    plain, reader = _embedding(make_encoder(), Repeats()), _embedding(make_encoder(), Repeats())
    cached = _embedding(make_encoder(), Repeats(cache=str(tmp_path)))
    for annotator in (plain, cached):
        annotator.load()
    reader.take_tokenizers()
    wanted = plain.annotate(table).columns
    found = cached.annotate(table, tokens=reader.tokenise(table)).columns
    assert found["e_tokens"] == wanted["e_tokens"]
    for name in ("first", "from the cache"):
        pairs = zip(found["e_embedding"].to_pylist(), wanted["e_embedding"].to_pylist(), strict=True)
        assert all(value == pytest.approx(other, abs=1e-5) for value, other in pairs), name
        found = cached.annotate(table).columns


@pytest.mark.parametrize("once", [True, False])
def test_texts_that_come_again_in_several_parts_of_a_unit_are_said_of_their_own_rows(
    make_encoder: Callable[..., Path], tmp_path: Path, once: bool
) -> None:
    words = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]
    table = _table(*(words[row * 7 % 100] for row in range(400)), *(" ".join(words[:row]) for row in range(1, 60)))
    plain = _embedding(make_encoder(), Repeats(once=False))
    cached = _embedding(make_encoder(), Repeats(once, str(tmp_path)))
    for annotator in (plain, cached):
        annotator.load()
    wanted = plain.annotate(table)
    for repeated in (459 - 158, 459):
        found = cached.annotate(table)
        assert found.columns["e_tokens"] == wanted.columns["e_tokens"]
        pairs = zip(found.columns["e_embedding"].to_pylist(), wanted.columns["e_embedding"].to_pylist(), strict=True)
        assert all(value == pytest.approx(other, abs=1e-5) for value, other in pairs)
        assert found.repeated_by_annotation["e"] == repeated
