"""A fine-tuning through the command with a real Ray: judged, held against its gate, promoted, and used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

Corpusmill = Callable[..., Any]

LABELS = ("games", "mail", "web")
TOPICS = {"games": "chess board", "mail": "letter box", "web": "server page"}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred and twenty rows whose words tell their label; one has none."""
    labels: list[str | None] = [LABELS[row % 3] for row in range(120)]
    texts = [f"{TOPICS[str(label)]} number {row} of many" for row, label in enumerate(labels)]
    labels[7] = None
    table = pa.table({"text": texts, "label": labels, "source": [f"source {row // 2}" for row in range(120)]})
    folder = tmp_path_factory.mktemp("labeled")
    pq.write_table(table, folder / "a.parquet")
    return folder


@pytest.fixture
def job(labeled: Path, tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """A job file whose sections may be changed."""

    def write(**sections: Any) -> str:
        document = {
            "kind": "finetune",
            "objective": "classify",
            "model": str(tiny("bert")),
            "data": {
                "path": str(labeled),
                "text": "text",
                "label": "label",
                "split": {"group": "source", "validation": 0.2, "test": 0.3},
            },
            "training": {"steps": 6, "validate_every": 3, "learning_rate": 1e-3, "batch_rows": 8, "max_tokens": 32},
            "cluster": {"workers": 1, "cpus_per_worker": 1, "actors": 1},
            "output": {"path": "out"},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(document | sections))
        return "job.yaml"

    return write


def files(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_a_gate_decides_what_is_promoted_and_the_model_labels_as_it_was_judged(
    corpusmill: Corpusmill, job: Callable[..., str], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    in_use = str(tiny("bert", "SequenceClassification", max_tokens=32, labels=list(LABELS)))
    high = job(gate={"metric": "accuracy", "at_least": 1.5, "not_worse_than": in_use})
    answer = corpusmill("run", high, "--json")
    assert answer.code == 5, answer.err
    assert "warning: the model is not promoted: accuracy is 0." in answer.err
    summary = answer.summary
    assert set(summary) == {
        *("run_id", "output", "promoted", "metrics", "baselines", "rows", "seconds", "tokens_per_second"),
        *("steps", "best_step", "model", "gate"),
    }
    assert summary["promoted"] is False
    assert sum(summary["rows"].values()) == 120
    assert summary["rows"]["left_out"] == 1
    assert summary["metrics"]["accuracy"]["rows"] == summary["rows"]["test"]
    assert set(summary["baselines"]) == {"majority"}
    assert not (out / "model").exists()
    assert files(out) == {"checkpoints", "logs", "metadata", "metrics.json", "plots", "predictions"}
    assert files(out / "plots") >= {"training.png", "confusion.png", "reliability.png", "per_class.png"}
    metrics = json.loads((out / "metrics.json").read_text())
    ours, theirs = metrics["figures"]["accuracy"]["value"], metrics["gate"]["compared"]["accuracy"]["value"]
    assert metrics["gate"]["difference"]["accuracy"]["value"] == pytest.approx(ours - theirs)
    assert any("worse than" in reason for reason in summary["gate"]["reasons"]) == (ours < theirs)
    status = corpusmill("status", "out", "--json").summary
    assert (status["finished"], status["promoted"], status["step"]) == (True, False, 6)

    again = corpusmill("run", high, "--json")
    assert again.code == 5
    assert "starting Ray" not in again.err
    assert again.summary["metrics"] == summary["metrics"]

    passed = corpusmill("run", high, "-o", "gate.at_least=0.0", "-o", "gate.not_worse_than=null", "--json")
    assert passed.code == 0, passed.err
    assert "training:" not in passed.err
    assert passed.summary["metrics"] == summary["metrics"]
    assert passed.summary["model"] == {"ref": "out/model", "digest": summary["model"]["digest"]}
    assert files(out / "model") >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "README.md",
        "corpusmill.json",
    }
    assert not (out / "metadata/candidate").exists()
    verified = corpusmill("verify", "out")
    assert verified.code == 0, verified.out

    # What an annotate job with the promoted model says is what it was judged by.
    annotate = {
        "kind": "annotate",
        "corpus": {"path": "out/metadata/examples/*-test.parquet"},
        "annotations": [
            {"name": "said", "task": "classify", "text": "text", "gold": "label", "model": {"ref": "out/model"}}
        ],
        "output": {"path": "labels"},
        "cluster": {"actors": 1},
    }
    (tmp_path / "annotate.yaml").write_text(yaml.safe_dump(annotate))
    labels = corpusmill("run", "annotate.yaml", "--json")
    assert labels.code == 0, labels.err
    said = labels.summary["annotations"]["said"]
    assert said["digest"] == summary["model"]["digest"]
    assert said["metrics"]["accuracy"]["value"] == summary["metrics"]["accuracy"]["value"]
    by_row = {(row["_file"], row["_row"]): row["said_label"] for row in _rows(tmp_path / "labels/data")}
    judged = {(row["_file"], row["_row"]): row["predicted_label"] for row in _rows(out / "predictions/data")}
    assert by_row == judged

    from transformers import pipeline

    classify = pipeline("text-classification", model=str(out / "model"))
    texts = {(row["_file"], row["_row"]): row["text"] for row in _rows(tmp_path / "labels/data")}
    for row, text in list(texts.items())[:5]:
        assert classify(text)[0]["label"] == by_row[row]

    # Killed after the promotion and before the manifest: nothing is trained or judged again.
    manifest = out / "metadata/manifest.json"
    before = json.loads(manifest.read_text())
    manifest.unlink()
    second = corpusmill("run", high, "-o", "gate.at_least=0.0", "-o", "gate.not_worse_than=null", "--json")
    assert second.code == 0, second.err
    assert "training:" not in second.err
    assert "annotating" not in second.err
    assert second.summary["metrics"] == summary["metrics"]
    assert json.loads(manifest.read_text()) | {"run_id": 0} == before | {"run_id": 0}
    refused = corpusmill("run", high, "-o", "training.learning_rate=0.5")
    assert refused.code == 2
    assert "training.learning_rate: was 0.001, is now 0.5" in refused.err
    assert corpusmill("retry", "out").code == 2


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
