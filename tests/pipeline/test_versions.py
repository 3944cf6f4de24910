"""Which versions compute is pinned, and an output whose rows are of several says so."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import choosing
from pipeline.batching import micro_batches
from pipeline.job import AnnotateJob
from pipeline.models.engine import FIXED_TOKENS
from pipeline.output import planfile
from pipeline.output.receipts import Receipt
from pipeline.output.sealed import seal, unseal
from pipeline.output.storage import Store
from pipeline.planning import new_plan, pin_models
from pipeline.progress import Silent
from pipeline.run import Run
from pipeline.versions import ARITHMETIC, computing, differing
from pipeline.workers import Pools, Workers

POOLS: Pools = {None: Workers(1, 1, 0, 1, None)}


@pytest.fixture
def run(make_encoder: Callable[..., Path], tmp_path: Path) -> Callable[..., Run]:
    """An execution on the output, by the plan that it has; `standing` units were committed by earlier ones."""
    pq.write_table(pa.table({"text": ["ak", "bl"]}), tmp_path / "corpus.parquet")
    store = Store.at(str(tmp_path / "out"))

    def make(*standing: str, annotation: Mapping[str, Any] = {}) -> Run:
        model = {} if annotation else {"model": str(make_encoder())}
        job = AnnotateJob.model_validate(
            {
                "corpus": {"path": str(tmp_path / "corpus.parquet")},
                "annotations": [{"name": "a", "task": "embed", "text": "text", **model, **annotation}],
                "output": {"path": store.root},
                "allow_code": True,
            }
        )
        models = pin_models(job)
        if not planfile.exists(store):
            planfile.save(store, new_plan(job, models, POOLS)[0])
        receipts = {unit: Receipt(unit, 1, "q", (), 1, 0, 1, 0, False, {}, 3, 0, {}, {}, 0.1) for unit in standing}
        return Run(job, store, models, planfile.load(store), POOLS, 1, "r", receipts, 0.0)

    return make


def pinned(run: Run) -> list[str]:
    """Pin the versions; what was told."""
    choosing.pin_versions(run, Silent())
    assert planfile.load(run.store) == run.plan
    return run.notes


def in_version(monkeypatch: pytest.MonkeyPatch, torch: str) -> dict[str, str]:
    found = {**computing({"torch"}), "torch": torch}
    monkeypatch.setattr(choosing, "computing", lambda _: found)
    return found


def test_a_run_that_goes_on_in_the_same_versions_says_nothing(run: Callable[..., Run]) -> None:
    assert pinned(run()) == pinned(again := run("u1")) == []
    assert again.plan.computed_by == (computing({"torch"}),)


def test_rows_of_several_versions_are_told_by_each_run_that_adds_some(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = in_version(monkeypatch, "2.12.0")
    assert pinned(run()) == []
    second = in_version(monkeypatch, "2.13.0")
    told = [
        "rows of this output are computed by several versions (torch 2.12.0 and 2.13.0), and may differ in their last "
        "bits from those of one"
    ]
    assert pinned(run("u1")) == told
    in_version(monkeypatch, "2.12.0")
    assert pinned(again := run("u1", "u2")) == told
    assert again.plan.computed_by == (first, second)


def test_an_output_of_which_nothing_stands_yet_is_of_the_versions_that_begin_it(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_version(monkeypatch, "2.12.0")
    pinned(run())
    second = in_version(monkeypatch, "2.13.0")
    assert pinned(again := run()) == []
    assert again.plan.computed_by == (second,)


def test_a_plan_from_before_versions_were_pinned_is_of_unknown_ones(run: Callable[..., Run]) -> None:
    begun = run()
    value = unseal(planfile.to_bytes(begun.plan))
    del value["computed_by"]
    begun.store.write("metadata/plan.json", seal(value))
    (told,) = pinned(run("u1"))
    assert f"arithmetic unknown and {ARITHMETIC}" in told


def test_what_no_model_says_is_the_same_in_all_versions(run: Callable[..., Run], repository: Path) -> None:
    counting = {"task": str(repository / "tests/chaos/counting.py")}
    begun = run("u1", annotation=counting)
    assert pinned(begun) == []
    assert begun.plan.computed_by == ()


def test_versions_that_differ_are_named_once_each() -> None:
    several = [{"torch": "1", "corpusmill": "0.1"}, {"torch": "2", "corpusmill": "0.1", "arithmetic": "2"}]
    assert differing([*several, several[0]]) == "torch 1 and 2, arithmetic unknown and 2"
    assert differing(several[:1]) == ""


def test_an_engine_of_its_own_counts_where_it_computes() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    assert computing({"torch", "openvino"}).keys() - computing({"torch"}).keys() == {"openvino"}


def test_the_number_that_plans_pin_is_raised_with_another_cut_of_micro_batches() -> None:
    lengths_R = np.arange(500) * 7919 % 251 + 1
    cuts = [
        [batch.tolist() for batch in micro_batches(lengths_R, budget, packed, fixed)]
        for budget in (512, 2048)
        for packed, fixed in ((False, None), (False, FIXED_TOKENS), (True, None))
    ]
    digest = hashlib.sha256(json.dumps(cuts).encode()).hexdigest()[:12]
    assert (ARITHMETIC, digest) == (5, "1e5115c4113a"), (
        "another cut: raise pipeline.versions.ARITHMETIC, and say there what it is"
    )
