"""Gold: what may be named, what is refused before anything is computed, and which rows are judged."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import tasks
from pipeline.annotator import columns_of
from pipeline.errors import CorpusError, JobError
from pipeline.gold import golds_of, measured, measured_rows
from pipeline.metrics.labels import Labels
from pipeline.metrics.multilabels import Multilabels
from pipeline.metrics.numbers import Numbers
from pipeline.metrics.spans import Spans
from pipeline.metrics.texts import Texts
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.planfile import Plan
from pipeline.output.storage import Store
from pipeline.tasks.base import Annotation, AnnotationSettings, Comparison, Task
from pipeline.tasks.base import Texts as Rows

ENTITY = pa.struct([("label", pa.string()), ("start", pa.int64()), ("end", pa.int64())])
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("other", pa.string()),
        ("section", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("stars", pa.float64()),
        ("entities", pa.list_(ENTITY)),
        ("meta", pa.struct([("section", pa.string())])),
    ]
)
LISTS: dict[str, Any] = {"labels": "topic_labels", "scores": "topic_scores"}
BEST: dict[str, Any] = {"predicted": "topic_label", "score": "topic_score"}


class Guess(Task):
    """A label for each text."""

    def fields(self) -> list[pa.Field]:
        return [pa.field("label", pa.string())]

    def compared(self) -> Comparison:
        return Comparison("labels", {"predicted": "label"})

    def annotate(self, texts: Rows) -> Annotation:
        return Annotation.of({"label": pa.array(texts.values, pa.string())}, len(texts.values))


class Silent(Guess):
    """One that nobody can measure."""

    def compared(self) -> None:  # type: ignore[override]
        return None


def guess(kind: type[Task] = Guess, **options: Any) -> Task:
    settings = {"name": "topic", "task": "guess.py", "text": "text", "gold": "section", **options}
    return kind(AnnotationSettings.model_validate(settings), None)


@pytest.fixture
def made(tiny: Callable[..., Path]) -> Callable[..., Task]:
    """`made("classify", labels=[…], top_k=2)`: a task over a tiny model."""

    def make(task: str, family: str, head: str, model: dict[str, Any], **options: Any) -> Task:
        kind = tasks.find(task)
        settings = {"name": "topic", "task": task, "text": "text", "gold": "section", **options}
        return kind(
            kind.Config.model_validate(settings),
            pin(ModelSettings(ref=str(tiny(family, head, max_tokens=64, **model)))),
        )

    return make


# ---------------------------------------------------------------------------------------------------- what is compared


@pytest.mark.parametrize(
    ("options", "columns"), [({}, BEST), ({"top_k": 2}, LISTS), ({"all_scores": True}, LISTS)], ids=str
)
def test_a_label_is_compared_with_all_that_the_model_tells_of_it(made, options, columns):
    task = made("classify", "bert", "SequenceClassification", {"labels": ["games", "web", "math"]}, **options)
    (gold,) = golds_of([task], SCHEMA)
    assert gold.kind == Labels(gold="section", known=("games", "web", "math"), **columns)


def test_several_labels_at_once_are_compared_as_lists(made):
    model = {"labels": ["games", "web"]}
    some = {"gold": "tags", "problem_type": "multi_label_classification"}
    (gold,) = golds_of([made("classify", "bert", "SequenceClassification", model, **some)], SCHEMA)
    assert gold.kind == Multilabels(gold="tags", predicted="topic_labels", known=("games", "web"))
    (gold,) = golds_of([made("classify", "bert", "SequenceClassification", model, **some, all_scores=True)], SCHEMA)
    assert gold.kind == Multilabels(gold="tags", known=("games", "web"), **LISTS)


ONE, NLI = {"labels": ["x"]}, {"labels": ["contradiction", "entailment"]}
HEADED = ("bert", "SequenceClassification")
LANGUAGES = {"source": "English", "target": "German"}
CHOICES = {"choices": ["a", "b"]}
AB = {"labels": ["a", "b"]}
KNOWN: dict[str, Any] = {"known": ("a", "b")}


@pytest.mark.parametrize(
    ("task", "model", "options", "kind"),
    [
        ("classify", (*HEADED, ONE), {"gold": "stars"}, Numbers("stars", "topic_score")),
        ("score", (*HEADED, ONE), {"gold": "stars", "text_pair": "other"}, Numbers("stars", "topic_score")),
        (
            "tag",
            ("bert", "TokenClassification", {"labels": ["O", "B-PER"]}),
            {"gold": "entities"},
            Spans("entities", "topic_entities"),
        ),
        ("answer", ("bert", "QuestionAnswering", {}), {"question": "other"}, Texts("section", "topic_answer")),
        ("summarize", ("t5", "Seq2SeqLM", {}), {}, Texts("section", "topic_summary")),
        ("translate", ("t5", "Seq2SeqLM", {}), LANGUAGES, Texts("section", "topic_translation")),
        ("generate", ("gpt2", "CausalLM", {}), {"max_new_tokens": 8}, Texts("section", "topic_text")),
        ("generate", ("gpt2", "CausalLM", {}), CHOICES, Labels("section", **BEST, **KNOWN)),
        ("generate", ("gpt2", "CausalLM", {}), {**CHOICES, "all_scores": True}, Labels("section", **LISTS, **KNOWN)),
        ("zero_shot", ("bert", "Model", {}), AB, Labels("section", "topic_label", **KNOWN)),
        ("zero_shot", (*HEADED, NLI), AB, Labels("section", **BEST, **KNOWN)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_task_says_how_it_is_compared(made, task, model, options, kind):
    (gold,) = golds_of([made(task, *model, **options)], SCHEMA)
    assert gold.kind == kind


def test_gold_may_be_a_field_of_a_struct_or_what_another_annotation_says():
    teacher = guess(name="teacher", gold=None)
    for name in ("meta.section", "teacher_label"):
        (gold,) = golds_of([teacher, guess(gold=name)], SCHEMA)
        assert gold.kind == Labels(gold=name, predicted="topic_label")


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("task", "error", "words"),
    [
        (guess(gold="sectoin"), CorpusError, r"annotation 'topic': gold: no column 'sectoin'; did you mean 'section'"),
        (guess(gold="topic_label"), CorpusError, r"annotation 'topic': gold: no column 'topic_label'"),
        (guess(gold="tags"), JobError, r"annotation 'topic': gold: column 'tags' holds list<.*strings are measured"),
        (guess(gold="stars"), JobError, r"annotation 'topic': gold: column 'stars' holds double"),
        (guess(Silent), JobError, r"annotation 'topic': gold: there is no metric for what `task: guess\.py` says"),
    ],
)
def test_gold_that_cannot_be_compared_is_refused(task, error, words):
    with pytest.raises(error, match=words):
        golds_of([task], SCHEMA)


def test_lists_of_cosines_are_refused_as_they_are_no_probabilities(made):
    task = made("zero_shot", "bert", "Model", {}, labels=["a", "b"], top_k=2)
    with pytest.raises(
        JobError, match=r"gold is compared with one label, and top_k and all_scores give lists of cosines"
    ):
        golds_of([task], SCHEMA)


def test_a_missing_library_is_told_before_anything_is_computed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(JobError, match=r"scikit-learn.*corpusmill\[evaluate\]"):
        golds_of([guess()], SCHEMA)


# ------------------------------------------------------------------------------------------------ which rows are judged


@pytest.fixture
def output(tmp_path: Path) -> tuple[Store, Plan, list[dict[str, Any]]]:
    """Six rows: right, wrong, not asked, without gold; two set aside: one that failed, one by another annotation."""
    store = Store.at(str(tmp_path))
    columns: dict[str, Any] = {
        "section": ["games", "web", "web", None],
        "topic_label": ["games", "games", None, "web"],
        "topic_tokens": pa.array([1, 1, None, 1], pa.int32()),
        "topic_error": pa.array([None, None, None, None], pa.string()),
        "_file": ["a"] * 4,
        "_row": pa.array(range(4), pa.int64()),
    }
    rows: list[dict[str, Any]] = [
        {"section": "web", "topic_label": None, "topic_tokens": None, "topic_error": None},
        {"section": "web", "topic_label": "web", "topic_tokens": 1, "topic_error": None},
        {"section": "web", "topic_label": None, "topic_tokens": None, "topic_error": None},
    ]
    kind = pa.struct([(name, columns[name].type if name == "topic_tokens" else pa.string()) for name in rows[0]])
    aside = {
        "_file": ["a"] * 3,
        "_row": pa.array([4, 5, 6], pa.int64()),
        "annotation": ["topic", "size", "size"],
        "reason": ["blank_text"] * 3,
        "detail": [""] * 3,
        "input": pa.array(rows, kind),
    }
    files = []
    for folder, table in (("data", pa.table(columns)), ("quarantine", pa.table(aside))):
        path = f"{folder}/part-a1-1.parquet"
        with store.create(path) as sink:
            pq.write_table(table, sink)
        files.append({"path": path, "kind": folder})
    return store, Plan(1, "0", {}, "/", SCHEMA, (), False, {}, (), (), 0), files


def test_without_where_every_row_with_gold_was_asked(output):
    (gold,) = golds_of([guess(errors="keep")], SCHEMA)
    found = measured(gold, *output)
    assert found.figures["accuracy"].rows == 6
    assert found.figures["accuracy"].value == pytest.approx(2 / 6)
    assert found.tables["left_out"] == {"section is null": 1}
    assert found.tables["without_prediction"] == 3


def test_rows_that_where_leaves_out_are_not_judged_and_those_that_failed_are(output):
    (gold,) = golds_of([guess(errors="keep", where="text = 'x'")], SCHEMA)
    found = measured(gold, *output)
    # Row 2 and row 6, which only another annotation could not take, were not asked.
    assert found.figures["accuracy"].rows == 4
    assert found.figures["accuracy"].value == pytest.approx(2 / 4)
    assert found.tables["left_out"] == {"section is null": 1, "`where` leaves it out": 2}


def test_an_output_without_gold_is_told_with_the_reasons(output):
    store, plan, files = output
    (gold,) = golds_of([guess(errors="keep")], SCHEMA)
    empty = pq.read_table(store.full(files[0]["path"])).slice(3, 1)
    with store.create("data/part-b1-1.parquet") as sink:
        pq.write_table(empty, sink)
    with pytest.raises(JobError, match="there is nothing to measure; section is null: 1"):
        measured(gold, store, plan, [{"path": "data/part-b1-1.parquet", "kind": "data"}])


def test_of_very_many_rows_fewer_resamples_are_drawn(monkeypatch):
    monkeypatch.setattr("pipeline.gold._MOST_DRAWS", 100_000)
    few, many, most = (
        measured_rows(Labels("gold", "said"), pa.table({"gold": ["a"] * rows, "said": ["a"] * rows}), {})
        for rows in (100, 250, 1000)
    )
    assert [len(each.resampled["accuracy"]) for each in (few, many, most)] == [1000, 400, 200]


def test_the_columns_of_an_annotation_do_not_change_with_gold():
    assert columns_of(guess()) == columns_of(guess(gold=None))
