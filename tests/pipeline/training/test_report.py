import importlib.util
import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.metrics.labels import Labels
from pipeline.output.storage import Store
from pipeline.training import report
from pipeline.training.examples import Counts
from pipeline.training.gate import judged
from pipeline.training.job import FinetuneJob
from pipeline.training.report import Judged
from pipeline.training.rows import objective_of, objective_over

GOLD = ["games", "web", "games", "web", "mail", "games"] * 5
SAID = ["games", "web", "games", "games", "mail", "games"] * 5
SCHEMA = pa.schema([("text", pa.string()), ("label", pa.string()), ("group", pa.string())])

COUNTS = Counts(
    rows={"train": 90, "test": 30},
    tokens={},
    counted={},
    left_out={"null_label": 2},
    unreadable=0,
    filtered=0,
    truncated=4,
)
TRAINED = {
    "step": 20,
    "steps": 30,
    "tokens": 9000,
    "padding_tokens": 900,
    "seconds": 4.5,
    "history": [{"step": 10, "loss": math.nan, "learning_rate": 1e-3}, {"step": 20, "eval_loss": 0.5}],
}
PLAN: dict[str, Any] = {
    "job": {"objective": {"name": "classify"}},
    "model": {"ref": "models/base", "revision": None, "digest": "b1"},
    "units": ["0-6f1c"],
    "device": "cpu",
    "dtype": "float32",
    "max_tokens": 64,
    "micro_batch_tokens": 1024,
}


def job(**sections: Any) -> FinetuneJob:
    document = {
        "objective": "classify",
        "model": "models/base",
        "data": {"path": "corpus", "text": "text", "label": "label"},
        "output": {"path": "out"},
    }
    return FinetuneJob.model_validate(document | sections)


def measured(said: list[str]) -> Any:
    table = pa.table({"gold": GOLD, "said": said})
    return measure(Labels("gold", "said"), table, resamples=50)


def metrics(of_job: FinetuneJob, found: Judged) -> dict[str, Any]:
    compared = None if found.compared is None else {name: each.value for name, each in found.compared.figures.items()}
    verdict = judged(of_job.gate, found.figures, compared)
    return report.metrics(of_job, PLAN, COUNTS, TRAINED, found, verdict, "d1")


def test_metrics_are_json_whatever_a_training_logged() -> None:
    found = metrics(job(), Judged(measured(SAID), {"majority": measured(["games"] * 30)}))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["training"]["history"] == [
        {"step": 10, "loss": None, "learning_rate": 1e-3},
        {"step": 20, "eval_loss": 0.5},
    ]
    assert again["training"]["tokens_per_second"] == 2000.0
    assert again["training"]["best_step"] == 20
    assert again["figures"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert again["baselines"]["majority"]["figures"]["accuracy"]["value"] == 0.5
    assert again["rows"] == {"train": 90, "validation": 0, "test": 30, "left_out": 2, "reasons": {"null_label": 2}}
    assert again["model"] == {"digest": "d1"}
    assert again["base"]["ref"] == "models/base"
    assert {"python", "torch", "transformers"} <= set(again["versions"])


def test_without_test_rows_there_are_no_figures_and_the_model_passes() -> None:
    found = metrics(job(), Judged())
    assert (found["figures"], found["tables"], found["baselines"]) == ({}, {}, {})
    assert found["gate"] == {"passed": True, "metric": None, "value": None, "reasons": [], "asked": None}


def test_beside_another_model_the_difference_has_an_interval() -> None:
    asks = job(gate={"metric": "accuracy", "not_worse_than": "models/before"})
    better = metrics(asks, Judged(measured(GOLD), {}, compared=measured(SAID)))
    assert better["gate"]["passed"]
    assert better["gate"]["difference"]["accuracy"]["value"] == pytest.approx(1 / 6)
    assert better["gate"]["difference"]["accuracy"]["low"] > 0
    worse = metrics(asks, Judged(measured(SAID), {}, compared=measured(GOLD)))
    assert not worse["gate"]["passed"]
    assert worse["gate"]["compared"]["accuracy"]["value"] == 1.0
    assert worse["gate"]["asked"]["not_worse_than"]["ref"] == "models/before"


@given(units=st.lists(st.text("0123456789abcdef-", min_size=1), min_size=1, max_size=5, unique=True))
@settings(deadline=None)
def test_a_fingerprint_is_of_all_units_in_their_order(units: list[str]) -> None:
    assert report.fingerprint(units) == report.fingerprint(list(units))
    assert report.fingerprint(units) != report.fingerprint(units[:-1])
    if len(units) > 1:
        assert report.fingerprint(units) != report.fingerprint(units[::-1])


@pytest.mark.parametrize(
    ("said", "told"),
    [(None, None), ("", None), ("false", None), ("No", None), ("true", "true"), ("a grammar", "a grammar")],
)
def test_a_corpus_says_in_its_metadata_that_it_is_synthetic(said: str | None, told: str | None) -> None:
    schema = SCHEMA if said is None else SCHEMA.with_metadata({"synthetic": said})
    assert report.synthetic(schema) == told


def test_pictures_are_drawn_of_what_there_is(tmp_path: Any) -> None:
    store = Store.at(str(tmp_path))
    report.draw(store, TRAINED, Judged(measured(SAID)))
    assert store.list("plots") == [f"plots/{name}.png" for name in ("confusion", "per_class", "training")]
    assert all(store.read(path).startswith(b"\x89PNG") for path in store.list("plots"))


def test_of_a_training_without_logs_and_test_rows_nothing_is_drawn(tmp_path: Any) -> None:
    store = Store.at(str(tmp_path))
    report.draw(store, {**TRAINED, "history": []}, Judged())
    assert store.list("plots") == []


@pytest.mark.parametrize(
    ("split", "gate"),
    [
        ({"test": 0}, {"metric": "accuracy", "at_least": 0.5}),
        ({"files": {"train": "corpus"}}, {"metric": "accuracy", "at_least": 0.5}),
    ],
)
def test_a_gate_without_test_rows_is_refused_before_anything_is_trained(split: Any, gate: Any) -> None:
    data = {"text": "text", "label": "label", "split": split} | ({} if "files" in split else {"path": "corpus"})
    asks = job(data=data, gate=gate)
    with pytest.raises(JobError, match="gate: there are no test rows that it could ask"):
        report.check(asks, objective_over(asks, SCHEMA))
    without = job(data=data)
    report.check(without, objective_over(without, SCHEMA))


def test_a_gate_asks_for_a_figure_of_its_objective_and_a_model_that_is_there() -> None:
    asks = job(gate={"metric": "rmse", "at_most": 0.5})
    with pytest.raises(JobError, match="there is no figure 'rmse'; the evaluation has accuracy"):
        report.check(asks, objective_over(asks, SCHEMA))
    asks = job(gate={"metric": "accuracy", "not_worse_than": "models/nowhere"})
    with pytest.raises(ModelError, match="nowhere"):
        report.check(asks, objective_over(asks, SCHEMA))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"best": "macro_F1"},
            "a validation of classify has no figure 'macro_F1'; it has loss, macro_f1",
        ),
        ({"log": "wandb"}, "training.log needs wandb, which is not installed: pip install wandb"),
    ],
)
def test_what_only_the_end_of_a_training_would_tell_is_told_before(
    training: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = job(training=training)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(JobError) as told:
        report.check(asks, objective_over(asks, SCHEMA))
    assert words in str(told.value)


def test_the_label_is_looked_for_where_the_job_says() -> None:
    wrong = job(data={"path": "corpus", "text": "text", "label": "lable"})
    assert objective_of(wrong).data.label == "lable"
    with pytest.raises(JobError, match=r"data\.label: no column 'lable'; did you mean 'label'"):
        objective_over(wrong, SCHEMA)
