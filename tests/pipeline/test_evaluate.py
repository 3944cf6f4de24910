"""Labeled rows are annotated with a model and measured; the stages run in this process, without Ray."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.source import CorpusSettings
from pipeline.envelope import Envelope
from pipeline.errors import CorpusError, JobError, OutputError
from pipeline.evaluate import TEXT, Evaluated, evaluate
from pipeline.evaluation import baselines_of, pictures_of
from pipeline.models.reference import ModelSettings
from pipeline.progress import Silent
from pipeline.stages import AnnotateStage, Order, Work, commit, read
from pipeline.training.objectives.base import Prediction
from pipeline.workers import Pools, Workers

ONE = Workers(actors=1, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)
LABELS = ["games", "web", "math"]


class Here:
    """A cluster that is this process."""

    def __init__(self) -> None:
        self.connections = 0

    def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
        return dict.fromkeys(weights_bytes, ONE)

    def train_workers(self, weights_bytes: int) -> Any:
        raise AssertionError("nothing is trained")

    @contextmanager
    def connected(self, imports: Sequence[str] = ()) -> Iterator[None]:
        self.connections += 1
        yield

    def log_folder(self) -> None:
        return None


def stream(orders: Sequence[Order], work: Work) -> Iterator[dict[str, Any]]:
    stages = [AnnotateStage(work, pool) for pool in work.pools]
    for order in orders:
        block = read(order, work).to_block()
        for stage in stages:
            block = stage(Envelope.of_block(block)).to_block()
        yield commit(Envelope.of_block(block), work)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setattr("pipeline.stream.stream_with_suspects", stream)
    return Here()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty rows; the text of one is blank, the gold of another null."""
    words = ["chess", "server", "matrix", "library", "the", "of"]
    texts = [" ".join(words[(row * 5 + word * 3) % 6] for word in range(row % 7 + 1)) for row in range(30)]
    texts[4] = " "
    path = tmp_path / "corpus/part-0.parquet"
    path.parent.mkdir()
    sections = [None if row == 7 else LABELS[row % 3] for row in range(30)]
    table = pa.table(
        {
            "text": texts,
            "title": [f"title {row}" for row in range(30)],
            "section": sections,
            "tags": [[] if each is None else [each, "common"] for each in sections],
            "book": [row // 3 for row in range(30)],
        }
    )
    pq.write_table(table, path)
    return path


@pytest.fixture
def judge(cluster: Here, corpus: Path, tmp_path: Path) -> Callable[..., Evaluated]:
    def call(prediction: Prediction, model: Path, **options: Any) -> Evaluated:
        rows = CorpusSettings(path=str(corpus))
        return evaluate(
            prediction, ModelSettings(ref=str(model)), rows, str(tmp_path / "out"), cluster, Silent(), **options
        )

    return call


@pytest.fixture
def sections(tiny: Callable[..., Path]) -> Path:
    return tiny("bert", "SequenceClassification", max_tokens=64, labels=LABELS)


SAID = {"name": "said", "task": "classify", "text": "text"}
ONE_LABEL = Prediction([SAID], "labels", {"gold": "section", "predicted": "said_label", "score": "said_score"})


def test_every_row_with_gold_is_judged_and_one_without_an_answer_is_wrong(judge, sections, corpus):
    found = judge(ONE_LABEL, sections)
    rows = found.rows.to_pylist()
    assert found.rows.column_names == ["_file", "_row", "section", "said_label", "said_score"]
    assert [row["_row"] for row in rows] == [row for row in range(30) if row != 7]
    assert [row["said_label"] for row in rows if row["_row"] == 4] == [None]
    right = sum(row["section"] == row["said_label"] for row in rows)
    assert found.measured.figures["accuracy"].value == pytest.approx(right / 29)
    assert found.measured.tables["left_out"] == {"section is null": 1}
    assert found.measured.tables["without_prediction"] == 1
    assert found.measured.tables["unknown_labels"] == {}
    assert found.predictions.summary["rows_quarantined"] == 1
    assert found.predictions.exit_code == 0


def test_the_predictions_keep_of_the_corpus_what_is_compared(judge, sections, tmp_path):
    judge(ONE_LABEL, sections)
    (part,) = (tmp_path / "out/data").iterdir()
    added = ["said_label", "said_score", "said_tokens", "said_truncated"]
    assert pq.read_schema(part).names == ["section", *added, "_file", "_row"]


def test_intervals_are_over_groups_where_rows_are_no_independent_samples(judge, sections):
    grouped, alone = (judge(ONE_LABEL, sections, group=group, text="{title} {book}") for group in ("book", "title"))
    assert grouped.measured.figures["accuracy"].value == alone.measured.figures["accuracy"].value
    assert grouped.measured.resampled["accuracy"].tolist() != alone.measured.resampled["accuracy"].tolist()


def test_baselines_read_the_text_as_the_model_does_and_are_measured_on_the_same_rows(judge, sections):
    seen = []

    def baselines(rows: pa.Table) -> dict[str, pa.Table]:
        seen.append(rows)
        return {
            "named_as_the_metric": pa.table({"predicted": ["web"] * len(rows)}),
            "named_as_the_prediction": pa.table({"said_label": rows["section"]}),
        }

    found = judge(ONE_LABEL, sections, text="{title}: {text}", group="{book}", baselines=baselines)
    assert seen[0][TEXT][0].as_py().startswith("title 0: ")
    assert len(seen[0]) == 29
    assert found.baselines["named_as_the_metric"].figures["accuracy"].value == pytest.approx(10 / 29, abs=0.04)
    assert found.baselines["named_as_the_prediction"].figures["accuracy"].value == 1.0
    # By one seed and the same groups: a difference can be told.
    assert len(found.baselines["named_as_the_metric"].resampled["accuracy"]) == len(
        found.measured.resampled["accuracy"]
    )


def test_several_labels_are_measured_by_all_their_scores(judge, sections):
    said = SAID | {"problem_type": "multi_label_classification", "all_scores": True}
    columns = {"gold": "tags", "labels": "said_labels", "scores": "said_scores"}
    prediction = Prediction([said], "multilabels", columns, options={"threshold": 0.0})
    found = judge(prediction, sections, baselines=baselines_of(prediction))
    # Every label is said of all rows but the one without an answer (it is of web), and "common" never.
    assert found.measured.tables["unknown_labels"] == {"common": 29}
    recall = {each["label"]: each["recall"] for each in found.measured.tables["per_class"]}
    assert (recall["web"], recall["common"]) == (pytest.approx(8 / 9), 0)
    assert "macro_auc" in found.measured.figures
    assert found.baselines["commonest"].figures["micro_f1"].value > 0.4


def test_queries_and_documents_need_no_gold(judge, tiny):
    prediction = Prediction(
        [{"name": name, "task": "embed", "text": name} for name in ("title", "text")],
        "retrieval",
        {"query": "title_embedding", "document": "text_embedding"},
    )
    found = judge(prediction, tiny("bert", "Model", max_tokens=64))
    assert baselines_of(prediction) is None
    assert len(found.rows) == 30
    assert 0 < found.measured.figures["mrr"].value < 1
    assert pictures_of(found.measured) == {}


def test_the_pictures_are_of_the_tables_that_there_are(judge, sections):
    found = pictures_of(judge(ONE_LABEL, sections).measured)
    assert list(found) == ["confusion", "reliability", "per_class"]
    assert all(picture.startswith(b"\x89PNG") for picture in found.values())


# ------------------------------------------------------------------------------------------------------------ going on


def test_the_same_call_computes_nothing_again_and_says_the_same(judge, cluster, sections):
    first, second = judge(ONE_LABEL, sections), judge(ONE_LABEL, sections)
    assert cluster.connections == 1
    assert second.measured.to_json() == first.measured.to_json()
    assert second.rows.equals(first.rows)


def test_a_model_that_was_moved_since_is_the_same_model(judge, cluster, sections, tmp_path):
    shutil.copytree(sections, tmp_path / "candidate")
    first = judge(ONE_LABEL, tmp_path / "candidate")
    (tmp_path / "candidate").rename(tmp_path / "model")
    second = judge(ONE_LABEL, tmp_path / "model")
    assert (cluster.connections, second.digest) == (1, first.digest)
    assert second.measured.to_json() == first.measured.to_json()


def test_another_model_is_refused_on_the_same_output(judge, sections, tiny):
    judge(ONE_LABEL, sections)
    other = tiny("bert", "SequenceClassification", max_tokens=64, labels=[*LABELS, "more"])
    with pytest.raises(OutputError, match=r"annotations\.0\.model\.ref: was .*\n.*model of 'said'"):
        judge(ONE_LABEL, other)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("prediction", "options", "error", "words"),
    [
        (Prediction([SAID], "labels", {"gold": "sektion", "predicted": "said_label"}), {}, CorpusError, "'sektion'"),
        (
            Prediction([SAID], "labels", {"gold": "tags", "predicted": "said_label"}),
            {},
            JobError,
            "strings are measured",
        ),
        (ONE_LABEL, {"group": "shelf"}, CorpusError, "no column 'shelf'"),
        (ONE_LABEL, {"text": "{body}"}, CorpusError, "no column 'body'"),
        (Prediction([SAID], "label", ONE_LABEL.columns), {}, JobError, "did you mean 'labels'"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is_computed(
    judge, sections, tmp_path, prediction, options, error, words
):
    with pytest.raises(error, match=words):
        judge(prediction, sections, **options)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------- baselines


@pytest.mark.parametrize(
    ("kind", "gold", "name", "said"),
    [
        ("labels", pa.array(["b", "a", "b"]), "majority", ["b"] * 3),
        ("labels", pa.array([2, 2, 1]), "majority", ["2"] * 3),
        ("labels", pa.array([True, False, True]), "majority", ["true"] * 3),
        ("multilabels", pa.array([["a", "b"], ["b"], []]), "commonest", [["b"]] * 3),
        ("numbers", pa.array([1, 2, 6]), "mean", [3.0] * 3),
        ("texts", pa.array(["one two", "one two three", "one"]), "lead_2", ["so it", "alone", None]),
    ],
)
def test_a_baseline_answers_from_gold_alone_or_from_the_beginning_of_the_text(kind, gold, name, said):
    rows = pa.table({"gold": gold, TEXT: ["so it goes on", "alone", None]})
    baselines = baselines_of(Prediction([], kind, {"gold": "gold", "predicted": "x"}))
    assert baselines is not None
    assert {each: table["predicted"].to_pylist() for each, table in baselines(rows).items()} == {name: said}


def test_rows_without_any_label_have_no_commonest():
    baselines = baselines_of(Prediction([], "multilabels", {"gold": "gold", "predicted": "x"}))
    assert baselines is not None
    assert baselines(pa.table({"gold": pa.array([[], []], pa.list_(pa.string()))})) == {}
