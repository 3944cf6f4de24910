"""How good a model is: an evaluate job, and gold beside an annotation, each through the command with a real Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

Corpusmill = Callable[..., Any]
Job = Callable[..., str]

COUNTING = Path(__file__).parent.parent / "chaos/counting.py"
LABELS = ["games", "web", "math"]

JUDGED = """

class Judged(Counting):
    def compared(self):
        from pipeline.tasks.base import Comparison

        return Comparison("labels", {"predicted": "label"})


del Counting
"""


def write_job(path: Path, **sections: Any) -> str:
    path.write_text(yaml.safe_dump(sections))
    return path.name


@pytest.fixture
def labeled(tmp_path: Path) -> str:
    """Forty rows as a fine-tuning leaves its test rows: in two files that know where their rows came from."""
    folder = tmp_path / "models/metadata/examples"
    folder.mkdir(parents=True)
    words = ["chess", "server", "matrix", "library", "the", "of"]
    for number in range(2):
        rows = range(number, 40, 2)
        texts = [" ".join(words[(row * 5 + word * 3) % len(words)] for word in range(row % 7 + 1)) for row in rows]
        gold: list[str | None] = [LABELS[row % 3] for row in rows]
        texts[3], gold[5], gold[7] = " ", None, "unseen"
        table = pa.table(
            {
                "body": texts,
                "about": pa.array([{"section": each} for each in gold], pa.struct([("section", pa.string())])),
                "source": [f"source {row // 4}" for row in rows],
                "_file": ["corpus.parquet"] * len(rows),
                "_row": pa.array(rows, pa.int64()),
            }
        )
        pq.write_table(table, folder / f"{number}-6f1c-test.parquet")
        pq.write_table(table.slice(0, 1), folder / f"{number}-6f1c-left_out.parquet")
    return "models/metadata/examples/*-test.parquet"


def test_an_evaluation_says_what_an_annotate_job_with_the_same_model_says(
    corpusmill: Corpusmill, tiny: Callable[..., Path], labeled: str, tmp_path: Path
) -> None:
    model = str(tiny("bert", "SequenceClassification", max_tokens=64, labels=LABELS))
    job = write_job(
        tmp_path / "evaluate.yaml",
        kind="evaluate",
        objective="classify",
        model=model,
        data={"path": labeled, "text": "body", "label": "about.section"},
        group="source",
        output={"path": "models/evaluation"},
        cluster={"actors": 1},
    )
    answer = corpusmill("run", job, "--json")
    assert answer.code == 0, answer.err
    assert set(answer.summary) == {
        *("run_id", "output", "metrics", "baselines", "rows"),
        *("seconds", "tokens_per_second", "model", "digest"),
    }
    assert answer.summary["rows"] == {"judged": 38, "left_out": 2, "without_prediction": 2}
    written = (tmp_path / "models/evaluation/metrics.json").read_bytes()
    report = json.loads(written)
    assert report["main"] == "accuracy"
    assert report["figures"] == answer.summary["metrics"]
    accuracy = report["figures"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert report["tables"]["left_out"] == {"about.section is null": 2}
    assert report["tables"]["unknown_labels"] == {"unseen": 2}
    assert report["baselines"]["majority"]["figures"]["accuracy"]["value"] == pytest.approx(12 / 38, abs=0.06)
    assert report["model"]["digest"] == answer.summary["digest"]
    assert {"scikit-learn", "torch", "corpusmill"} <= set(report["versions"])
    for picture in ("confusion", "reliability", "per_class"):
        assert (tmp_path / f"models/evaluation/plots/{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert corpusmill("verify", "models/evaluation/predictions").code == 0

    annotate = write_job(
        tmp_path / "annotate.yaml",
        kind="annotate",
        corpus={"path": labeled},
        annotations=[{"name": "topic", "task": "classify", "text": "body", "model": model, "gold": "about.section"}],
        output={"path": "out", "columns": "none"},
        limits={"max_quarantined": 1.0},
        cluster={"actors": 1},
    )
    labelled = corpusmill("run", annotate, "--json")
    assert labelled.code == 0, labelled.err
    found = labelled.summary["annotations"]["topic"]["metrics"]
    assert found["accuracy"]["value"] == accuracy["value"]
    assert found["macro_f1"]["value"] == report["figures"]["macro_f1"]["value"]
    rows = pq.read_table(tmp_path / "out/data").to_pylist()
    right = sum(row["about"]["section"] == row["topic_label"] for row in rows)
    assert accuracy["value"] == pytest.approx(right / 38)

    again = corpusmill("run", job)
    assert again.code == 0, again.err
    assert (tmp_path / "models/evaluation/metrics.json").read_bytes() == written
    shown = again.out.splitlines()
    assert shown[0].split() == ["95%", "interval", "majority"]
    assert shown[1].split()[:2] == ["accuracy", f"{accuracy['value']:.3f}"]
    assert "rows       38 judged, 2 left out (about.section is null: 2)" in shown
    assert "no answer  2 rows, counted as wrong" in shown
    assert "unknown    2 rows of labels that the model has not: unseen" in shown
    assert shown[-1] == "next       corpusmill verify models/evaluation/predictions"

    changed = corpusmill("run", job, "-o", "data.text=source")
    assert changed.code == 2
    assert "data.text: was 'body', is now 'source'" in changed.err


def test_labels_of_tokens_are_judged_as_spans_of_the_text_that_the_tokens_make(
    corpusmill: Corpusmill, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    tokens = [["Anna", "in", "York"], ["nobody", "here"], ["Mia", "Otto"], None]
    tags = [["B-PER", "O", "B-LOC"], ["O", "O"], ["B-PER", "I-PER"], ["O"]]
    pq.write_table(pa.table({"words": tokens, "said": tags}), tmp_path / "corpus/part-0.parquet")
    sections: dict[str, Any] = {
        "kind": "evaluate",
        "objective": "tag",
        "model": str(tiny("bert", "TokenClassification", max_tokens=64, labels=["O", "B-PER", "I-PER", "B-LOC"])),
        "data": {"path": "corpus", "text": "words", "label": "said"},
        "output": {"path": "evaluation"},
        "cluster": {"actors": 1},
    }
    job = write_job(tmp_path / "evaluate.yaml", **sections)
    answer = corpusmill("run", job, "--json")
    assert answer.code == 0, answer.err
    assert answer.summary["rows"]["judged"] == 3
    report = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert report["main"] == "spans_f1"
    assert {each["label"]: each["gold"] for each in report["tables"]["per_class"] if each["gold"]} == {
        "PER": 2,
        "LOC": 1,
    }
    judged = pq.read_table(next((tmp_path / "evaluation/rows").iterdir())).to_pylist()
    assert [row["tagged_text"] for row in judged[:3]] == ["Anna in York", "nobody here", "Mia Otto"]
    assert judged[2]["tagged_spans"] == [{"label": "PER", "start": 0, "end": 8}]
    assert corpusmill("run", job).code == 0

    answer = corpusmill("preview", job)
    assert answer.code == 2
    assert "data.label 'said' labels tokens" in answer.err


def test_gold_is_measured_after_the_run_and_again_after_a_retry_or_when_it_is_named_later(
    process: Corpusmill, job: Job, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = [f"text {row}" if row % 2 else f"a text that is much longer {row}" for row in range(40)]
    gold = ["short" if row % 4 else "long" for row in range(40)]
    texts[1] = "text FAIL"
    pq.write_table(pa.table({"text": texts, "kind": gold}), corpus / "part-0.parquet")
    (tmp_path / "judged.py").write_text(COUNTING.read_text() + JUDGED)
    plain = job(corpus, {"task": "judged.py", "log": str(tmp_path / "log")}, limits={"max_quarantined": 1})
    first = process("run", plain, "--json")
    assert first.code == 0, first.err
    assert "metrics" not in first.summary["annotations"]["size"]

    # Ten rows of gold "short" are long, and one failed.
    named = process("run", plain, "-o", "annotations.0.gold=kind", "--json")
    assert named.code == 0, named.err
    assert named.summary["units_done"] == 0
    figures = named.summary["annotations"]["size"]["metrics"]
    assert figures["accuracy"]["value"] == pytest.approx(29 / 40)
    manifest = json.loads((tmp_path / "out/metadata/manifest.json").read_text())
    assert manifest["metrics"]["size"]["figures"] == figures
    assert manifest["metrics"]["size"]["tables"]["without_prediction"] == 1
    assert manifest["job"]["annotations"][0]["gold"] == "kind"
    assert process("verify", "out").code == 0

    texts[1] = "text fine"
    pq.write_table(pa.table({"text": texts, "kind": gold}), corpus / "part-0.parquet")
    mended = process("retry", "out", "--json")
    assert mended.code == 0, mended.err
    assert mended.summary["annotations"]["size"]["metrics"]["accuracy"]["value"] == pytest.approx(30 / 40)
    assert process("verify", "out").code == 0


def test_gold_that_is_null_everywhere_ends_no_run(corpusmill: Corpusmill, job: Job, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "judged.py").write_text(COUNTING.read_text() + JUDGED)
    pq.write_table(pa.table({"text": ["a"], "kind": pa.array([None], pa.string())}), corpus / "part-0.parquet")
    answer = corpusmill("run", job(corpus, {"task": "judged.py", "gold": "kind"}), "--json")
    assert answer.code == 0, answer.err
    assert "annotation 'size': gold: there is nothing to measure; kind is null: 1" in answer.err
    assert "metrics" not in answer.summary["annotations"]["size"]
    assert corpusmill("verify", "out").code == 0


EVALUATION: dict[str, Any] = {
    "kind": "evaluate",
    "objective": "classify",
    "model": "nowhere",
    "data": {"path": "corpus", "text": "text", "label": "section"},
    "output": {"path": "out"},
}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"objective": "clasify"}, r"evaluate.yaml: objective: no objective named 'clasify'; did you mean 'classify'"),
        ({"data": {"split": {"test": 0.1}}}, "evaluate.yaml: data.split: there is no such key"),
        ({"data": {"label": None}}, "data.label is missing: classify needs a column"),
        ({"data": {"label": "sektion"}}, "data.label: no column 'sektion'; did you mean 'section'"),
        ({"data": {"label": "flags"}}, "data.label 'flags' is bool; classify needs"),
        ({"model": "nowhere"}, "model 'nowhere'"),
        ({"output": {"path": "corpus/out"}}, "lies inside the corpus"),
        ({"output": {"path": "other"}}, r"other holds something else (letter.txt)"),
        ({"output": {"path": "annotated"}}, "is the output of another kind of job"),
        ({"output": {"path": "edited"}}, "holds a metrics.json that no evaluation wrote"),
        ({"kind": "evalute"}, "kind: 'evalute' is not allowed"),
    ],
)
def test_a_wrong_evaluation_is_told_before_anything_is_written(
    here: Corpusmill, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    (tmp_path / "corpus").mkdir()
    table = pa.table({"text": ["a", "b"], "section": ["x", "y"], "flags": [True, False]})
    pq.write_table(table, tmp_path / "corpus/part-0.parquet")
    for name, content in {
        "other/letter.txt": "dear",
        "edited/metrics.json": "[]",
        "annotated/metadata/plan.json": "{}",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    document = {
        key: {**EVALUATION[key], **sections[key]}
        if isinstance(EVALUATION[key], dict) and key in sections
        else sections.get(key, EVALUATION[key])
        for key in EVALUATION
    }
    answer = here("run", write_job(tmp_path / "evaluate.yaml", **document))
    assert answer.code == 2
    assert words in answer.err
    assert sorted(each for each in tmp_path.rglob("*") if each.name != "evaluate.yaml") == before
