from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.workload import ANNOTATION
from jobs.bench.workloads.encoding import Encoding
from jobs.bench.workloads.labeling import Classifying, Tagging
from jobs.bench.workloads.training import Training
from pipeline.errors import RunError


def test_our_run_computes_the_annotation_as_it_is_over_the_texts_that_all_have(tmp_path: Path) -> None:
    first = {"name": "v", "task": "embed", "text": "{a} {b}", "model": "m", "dtype": "float32"}
    document = {
        "kind": "annotate",
        "corpus": {"path": "corpus", "filter": "a = 1", "sample": 9},
        "annotations": [{**first, "where": "a = 1", "gold": "b", "pool": "large"}, {"name": "other"}],
        "cluster": {"actors": 2, "pools": {"large": {"actors": 1}}},
        "output": {"path": "out", "columns": ["a"]},
    }
    texts = str(tmp_path / "texts.parquet")
    wanted = {
        "kind": "annotate",
        "allow_code": False,
        "corpus": {"path": str(tmp_path)},
        "annotations": [{**first, "name": ANNOTATION, "text": "text"}],
        "repeats": {"once": False},
        "cluster": {"actors": 2, "gpus_per_actor": 0},
    }
    assert Encoding("m", 9, 8, 1, texts, "mean", True).ours(document) == wanted
    (annotation,) = Tagging("m", 9, 8, 1, texts, "simple").ours(document)["annotations"]
    assert annotation["long_text"] == "truncate"


def test_our_training_takes_as_many_steps_and_holds_nothing_back() -> None:
    document = {
        "kind": "finetune",
        "objective": "classify",
        "data": {"path": "p", "split": {"group": "source", "test": 0.2, "seed": 3}},
        "training": {"epochs": 4, "learning_rate": 1e-3},
        "gate": {"metric": "accuracy", "at_least": 1},
        "output": {"path": "out"},
    }
    training = Training("m", 640, 64, 1, "examples", 32, 1e-3)
    ours = training.ours(document)
    assert set(ours) == {"kind", "objective", "data", "training"}
    assert ours["data"]["split"] == {"group": "source", "test": 0.0, "seed": 3, "validation": 0.0}
    assert (ours["training"]["steps"], ours["training"]["learning_rate"]) == (20, 1e-3)
    assert "epochs" not in ours["training"]
    named = {**document, "data": {"path": "p", "split": {"column": "subset"}}}
    assert training.ours(named)["data"] == named["data"]


def part(rows: list[int]) -> pa.Table:
    return pa.table(
        {
            "_row": rows,
            f"{ANNOTATION}_label": [f"label {row}" for row in rows],
            f"{ANNOTATION}_tokens": pa.array([10 + row for row in rows], pa.int32()),
        }
    )


TOLD: dict[str, Any] = {"tokens": 33, "padding_tokens": 7, "tokens_per_second": 11.0, "seconds_to_first_receipt": 4.0}


def test_rows_of_our_parts_come_in_the_order_of_the_texts(tmp_path: Path, minilm: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(part([2, 0]), tmp_path / "data/a.parquet")
    setting = Classifying(str(minilm), 3, 64, 1, "texts.parquet", ["a"], False)
    with pytest.raises(RunError, match="corpusmill annotated 2 of 3 texts"):
        setting.our_run(TOLD, tmp_path)
    pq.write_table(part([1]), tmp_path / "data/b.parquet")
    measured, outputs = setting.our_run(TOLD, tmp_path)
    assert outputs == [["label 0"], ["label 1"], ["label 2"]]
    assert (measured.rows, measured.seconds, measured.padded_tokens) == (3, 3.0, 40)
