"""A trial: when it repays itself, what it finds, and that what it found is pinned and decides for all units."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import choosing, planning, stream, trial
from pipeline.errors import RunError
from pipeline.job import AnnotateJob
from pipeline.models import engines
from pipeline.models.device import lacks
from pipeline.models.int8 import can_quantize
from pipeline.output import planfile
from pipeline.output.planfile import PinnedAnnotation, Plan, Tried
from pipeline.output.storage import Store
from pipeline.planning import new_plan, pin_models
from pipeline.progress import Silent
from pipeline.run import Run
from pipeline.stages import Order
from pipeline.trial import AT_MOST, MARGIN, Expected, best, decided, repays, try_out
from pipeline.workers import Pools, Workers

POOLS: Pools = {None: Workers(actors=1, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)}
MINILM_BYTES = 90_887_256
WORDS = [f"{first}{second}" for first in "abcdefghij" for second in "klmnopqrst"]

speeds = st.none() | st.floats(1, 1e6)
expected = st.builds(
    Expected,
    rows=st.integers(0, 10**9),
    tokens_of_a_row=st.floats(1, 512),
    weights_bytes=st.integers(1, 10**11),
    threads=st.integers(1, 64),
    actors=st.integers(1, 64),
)


# ---------------------------------------------------------------------------------------------------------- deciding


@given(expected)
def test_a_trial_costs_a_small_share_of_the_run_or_is_not_made(run: Expected) -> None:
    assert repays(run) == (run.trial_seconds <= AT_MOST * run.seconds)
    assert not repays(replace(run, rows=0))


@given(expected, st.integers(0, 10**9))
def test_of_a_longer_run_it_repays_itself_the_more(run: Expected, more: int) -> None:
    assert repays(replace(run, rows=run.rows + more)) or not repays(run)


def test_some_minutes_of_work_are_not_tried_and_hours_are() -> None:
    run = Expected(rows=4096, tokens_of_a_row=100, weights_bytes=MINILM_BYTES, threads=1, actors=2)
    assert run.seconds == pytest.approx(23, rel=0.1)
    assert not repays(run)
    assert repays(replace(run, rows=2_000_000))


@given(st.lists(st.builds(Tried, st.just("torch"), st.integers(1, 9999), speeds), min_size=1, max_size=6))
def test_the_first_stays_unless_another_is_clearly_faster(tried: list[Tried]) -> None:
    able = [each.tokens_per_second for each in tried if each.tokens_per_second is not None]
    chosen = best(tried)
    if chosen is None:
        assert able == []
        return
    assert chosen.tokens_per_second is not None
    assert max(able) <= (1 + MARGIN) * chosen.tokens_per_second
    first = tried[0].tokens_per_second
    assert chosen == tried[0] or first is None or chosen.tokens_per_second > (1 + MARGIN) * first


def test_what_a_trial_says_is_pinned_for_the_annotations_that_it_is_for() -> None:
    waiting = PinnedAnnotation("m", None, "d", "auto", "float32", "cpu", 1, 2048)
    tried = [Tried("torch", 2048, 100.0), Tried("openvino", 4096, 200.0)]
    pins = decided({"a": waiting, "b": replace(waiting, engine="torch"), "c": waiting}, ["a", "c"], tried)
    assert pins["b"] == replace(waiting, engine="torch")
    assert pins["a"] == pins["c"] == replace(waiting, engine="openvino", token_budget=4096, tried=tuple(tried))
    nothing = decided({"a": waiting}, ["a"], [])["a"]
    assert (nothing.engine, nothing.token_budget, nothing.tried) == ("torch", 2048, ())


# ------------------------------------------------------------------------------------------------------------- a run


Make = Callable[..., Run]


@pytest.fixture
def run(tmp_path: Path, make_encoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A run of embeddings, planned as if it were long; `annotations` are merged into two that read one model."""
    monkeypatch.setattr(planning, "repays", lambda run: True)
    monkeypatch.setattr(engines, "find_spec", lambda name: object())
    texts = [" ".join(WORDS[(row * 7 + word) % 100] for word in range(row % 40 + 1)) for row in range(60)]
    pq.write_table(pa.table({"text": pa.array([None, *texts], pa.string())}), tmp_path / "corpus.parquet")

    def make(*annotations: Mapping[str, Any]) -> Run:
        settings = [
            {"name": f"e{number}", "task": "embed", "text": "text", "model": str(make_encoder())} | dict(each)
            for number, each in enumerate(annotations)
        ]
        corpus, out = str(tmp_path / "corpus.parquet"), str(tmp_path / "out")
        job = AnnotateJob.model_validate({"corpus": {"path": corpus}, "annotations": settings, "output": {"path": out}})
        models, store = pin_models(job), Store.at(out)
        if planfile.exists(store):
            plan = planfile.load(store)
        else:
            plan = new_plan(job, models, POOLS)[0]
            planfile.save(store, plan)
        return Run(job, store, models, plan, POOLS, 1, "r", {}, 0.0)

    return make


class InThisProcess:
    """In the place of a worker."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, compute: Callable[..., Any], *given: Any, like: Workers) -> Any:
        self.asked.append(given[2])
        return compute(*given)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> InThisProcess:
    here = InThisProcess()
    monkeypatch.setattr(stream, "on_a_worker", here)
    return here


def _choose(run: Run) -> Plan:
    choosing.choose_engines(run, [Order(unit) for unit in run.plan.units], Silent())
    return run.plan


def test_annotations_of_one_model_share_a_trial_and_what_it_says_is_what_a_resumed_run_uses(
    run: Make, worker: InThisProcess
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    jobs: list[dict[str, Any]] = [{}, {"normalize": True}, {"engine": "torch"}, {"dtype": "float32"}]
    jobs[0]["dtype"] = jobs[1]["dtype"] = "float32"
    first = run(*jobs)
    assert [first.plan.annotations[f"e{number}"].engine for number in range(4)] == ["auto", "auto", "torch", "auto"]
    plan = _choose(first)
    assert worker.asked == [["e0", "e1", "e3"]]
    pinned = plan.annotations["e0"]
    assert [(each.engine, each.token_budget) for each in pinned.tried[:2]] == [("torch", 2048), ("openvino", 2048)]
    assert all(each.tokens_per_second is not None and each.tokens_per_second > 0 for each in pinned.tried)
    assert {each.token_budget for each in pinned.tried} == {1024, 2048, 4096}
    assert (pinned.engine, pinned.token_budget) in [(each.engine, each.token_budget) for each in pinned.tried]
    assert plan.annotations["e1"] == plan.annotations["e3"] == pinned
    assert plan.annotations["e2"].tried == ()
    again = run(*jobs)
    assert again.plan == plan
    assert _choose(again) == plan
    assert len(worker.asked) == 1, "nothing is tried twice"


def test_in_int8_both_engines_are_tried_by_what_was_calibrated_before(run: Make, worker: InThisProcess) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    if not (can_quantize() and lacks("int8", "cpu") is None):
        pytest.skip("this processor, or this torch, has no products of int8")
    first = run({"dtype": "int8", "int8_agreement": 0.5})
    assert first.plan.annotations["e0"].engine == "auto"
    choosing.calibrate(first, [Order(unit) for unit in first.plan.units], Silent())
    calibrated = first.plan.annotations["e0"]
    assert (calibrated.engine, calibrated.calibration is None) == ("auto", False)
    pinned = _choose(first).annotations["e0"]
    assert {each.engine for each in pinned.tried} == {"torch", "openvino"}
    assert all(each.tokens_per_second for each in pinned.tried), "uncalibrated, none could compute"
    assert (pinned.dtype, pinned.calibration) == ("int8", calibrated.calibration)
    assert pinned.engine in ("torch", "openvino")


def test_a_run_that_was_killed_in_its_trial_tries_again(
    run: Make, worker: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(choosing, "try_out", killed)
    with pytest.raises(KeyboardInterrupt):
        _choose(run({}))
    monkeypatch.setattr(choosing, "try_out", lambda *_: (Tried("torch", 2048, 1.0), Tried("openvino", 2048, 2.0)))
    assert _choose(run({})).annotations["e0"].engine == "openvino"
    assert len(worker.asked) == 2


def test_a_trial_that_fails_leaves_torch_and_is_told(
    run: Make, worker: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> object:
        raise RunError("the worker died")

    monkeypatch.setattr(choosing, "try_out", dies)
    begun = run({})
    assert _choose(begun).annotations["e0"].engine == "torch"
    assert begun.notes == ["annotation 'e0': the trial of engines failed, so torch computes it: the worker died"]


def test_an_engine_that_cannot_compute_has_no_speed_and_is_not_chosen(
    run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.models import loading

    load = loading.load

    def torch_alone(*given: Any, **options: Any) -> Any:
        if given[-1] == "openvino":
            raise RuntimeError("no rule for aten::odd")
        return load(*given, **options)

    monkeypatch.setattr(loading, "load", torch_alone)
    begun = run({})
    tried = try_out(begun.work(), begun.plan.units, ["e0"])
    assert [(each.engine, each.tokens_per_second is None) for each in tried[:2]] == [
        ("torch", False),
        ("openvino", True),
    ]
    chosen = best(tried)
    assert chosen is not None
    assert chosen.engine == "torch"


def test_there_is_no_trial_where_no_text_is_there_to_be_tried(run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = run({"where": "text = 'nobody wrote this'"})
    assert try_out(begun.work(), begun.plan.units, ["e0"]) == ()


def test_a_short_run_a_gpu_and_a_machine_without_openvino_have_no_trial(
    run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = run({})
    settings = begun.job, begun.models
    on_gpu: Pools = {None: replace(POOLS[None], gpus_per_actor=1)}
    assert new_plan(*settings, on_gpu)[0].annotations["e0"].engine == "torch"
    monkeypatch.setattr(planning, "repays", trial.repays)
    assert new_plan(*settings, POOLS)[0].annotations["e0"].engine == "torch"
    monkeypatch.setattr(planning, "repays", lambda run: True)
    assert new_plan(*settings, POOLS)[0].annotations["e0"].engine == "auto"
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert new_plan(*settings, POOLS)[0].annotations["e0"].engine == "torch"
