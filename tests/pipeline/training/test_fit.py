"""What ends a run and what the next attempt survives is told apart; an attempt begins where the last checkpoint is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
import ray.train
import torch.distributed as dist

from pipeline.errors import JobError, RunError
from pipeline.progress import Silent
from pipeline.training import checkpoints, fit
from pipeline.training.loop import train
from pipeline.training.work import Start, Work
from pipeline.workers import TrainWorkers
from tests.pipeline.training.conftest import MakeWork

RUN = "metadata/tmp/training/run"


def _trained(work: Work, steps: int) -> None:
    """Train in this process, and leave the checkpoints of these steps."""
    import torch

    folder = work.store.full(f"saving-{steps}")
    folder.mkdir()
    schedule = replace(work.schedule, steps=steps)
    train(replace(work, schedule=schedule), 0, 1, torch.device("cpu"), Start(None, str(folder)))


@pytest.fixture
def work(make_work: MakeWork) -> Work:
    made = make_work(training={"steps": 4, "checkpoint_every": 2})
    made.store.full(RUN).mkdir(parents=True)
    return made


def test_the_first_attempt_begins_at_the_beginning(work: Work) -> None:
    start = fit._start(work, RUN)
    assert start is not None
    assert start.step is None
    assert Path(start.folder).is_dir()


def test_the_next_one_begins_at_the_last_checkpoint_and_sweeps_what_was_half_saved(work: Work) -> None:
    _trained(work, 2)
    half = work.store.full(f"{RUN}/saving-0123/checkpoint-3")
    half.mkdir(parents=True)
    start = fit._start(work, RUN)
    assert start is not None
    assert start.step == 2
    assert not half.exists()
    assert Path(start.folder).is_dir()


def test_where_all_is_done_no_attempt_begins(work: Work) -> None:
    _trained(work, 4)
    assert fit._start(work, RUN) is None


def test_a_training_that_is_done_starts_no_workers(work: Work) -> None:
    _trained(work, 4)
    workers = TrainWorkers(count=1, least=1, cpus=1, gpus=0, memory_bytes=None)
    trained = fit.fit(work, workers, Silent())  # Ray does not run: it would say so
    assert trained.steps == 4
    assert trained.step in checkpoints.steps(work.store)
    assert trained.tokens > 0
    assert Path(trained.checkpoint, "model.safetensors").exists()
    scores = work.schedule.scores(trained.history)
    assert trained.step == checkpoints.best(checkpoints.steps(work.store), scores)


def test_an_early_end_is_an_end(make_work: MakeWork) -> None:
    stopping = {"patience": 1, "at_least": 1.0}
    work = make_work(training={"steps": 20, "validate_every": 2, "early_stopping": stopping})
    import torch

    folder = work.store.full("saving")
    folder.mkdir()
    train(work, 0, 1, torch.device("cpu"), Start(None, str(folder)))
    assert fit._done(work)
    assert fit._trained(work).steps == 4


def test_workers_that_die_again_and_again_at_one_checkpoint_end_the_run(work: Work) -> None:
    _trained(work, 2)
    for _ in range(fit.ATTEMPTS_AT_MOST):
        assert fit._start(work, RUN) is not None
    with pytest.raises(RunError, match=r"10 attempts in a row died after step 2 .* want of memory; ask for"):
        fit._start(work, RUN)


def test_attempts_count_from_each_checkpoint_anew(work: Work) -> None:
    for _ in range(fit.ATTEMPTS_AT_MOST):
        assert fit._start(work, RUN) is not None
    _trained(work, 2)
    assert fit._start(work, RUN) is not None


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711"),
        RuntimeError("Gloo connectFullMesh failed with [127.0.0.1] timed out"),
        dist.DistNetworkError("The client socket has timed out after 600s"),
        dist.DistBackendError("NCCL communicator was aborted on rank 1"),
        ConnectionResetError("Connection reset by peer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_neighbours_death_is_no_error_of_the_training(error: Exception) -> None:
    assert fit._of_a_neighbour(error)


def test_an_error_after_the_group_was_taken_down_is_that_of_an_attempt_that_is_over(tmp_path: Path) -> None:
    assert fit._taken_down()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        assert not fit._taken_down()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dead", ["worker at its start", "controller"])
def test_who_dies_under_ray_trains_own_hands_is_replaced(
    dead: str, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = ray.exceptions.RayActorError()
    ends = [ray.train.ControllerError(died) if dead == "worker at its start" else died, None]
    monkeypatch.setattr(fit, "_trainer", lambda *_: None)
    monkeypatch.setattr(fit, "_end_of", lambda *_: ends.pop(0))
    fit._train(work, TrainWorkers(2, 2, 1.0, 0.0, None), RUN, Silent())
    assert not ends


def test_an_error_of_the_controllers_own_ends_the_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "_trainer", lambda *_: None)
    monkeypatch.setattr(fit, "_end_of", lambda *_: ray.train.ControllerError(ValueError("no place for a worker")))
    with pytest.raises(RunError, match=r"the training failed: .*no place for a worker; the same command goes on"):
        fit._train(work, TrainWorkers(2, 2, 1.0, 0.0, None), RUN, Silent())


@pytest.mark.parametrize(
    "error", [ValueError("bad"), RunError("the loss is nan"), KeyError("gloo"), RuntimeError("no label gloomy")]
)
def test_other_errors_are(error: Exception) -> None:
    assert not fit._of_a_neighbour(error)


def _fault(work: Work) -> str:
    return str(json.loads(work.store.read(f"{RUN}/fault.json"))["message"])


def test_our_own_words_are_told_as_they_are(work: Work) -> None:
    fit._tell(work, RUN, JobError("training.freeze leaves nothing to train"))
    assert _fault(work) == "training.freeze leaves nothing to train"
    assert not work.store.exists(fit.ERROR)


def test_a_strangers_error_is_told_in_a_line_with_the_place_of_its_traceback(work: Work) -> None:
    def raised() -> Exception:
        try:
            raise ValueError("expected 3 labels\nand more")
        except ValueError as error:
            return error

    fit._tell(work, RUN, raised())
    assert _fault(work) == f"ValueError: expected 3 labels; see {work.store.full(fit.ERROR)}"
    assert "in raised" in work.store.read(fit.ERROR).decode()


def test_the_first_error_counts(work: Work) -> None:
    fit._tell(work, RUN, RunError("first"))
    fit._tell(work, RUN, RunError("second"))
    assert _fault(work) == "first"


def test_an_error_without_words_has_its_name(work: Work) -> None:
    fit._tell(work, RUN, AssertionError())
    assert _fault(work).startswith("AssertionError; see ")


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            {"step": 1200, "steps": 3000, "loss": 0.51234, "tokens_per_second": 4321.9},
            "training: step 1,200 of 3,000, loss 0.512, 4,322 tokens/s",
        ),
        (
            {"step": 1, "steps": 2, "loss": None, "tokens_per_second": 0.0},
            "training: step 1 of 2, 0 tokens/s",
        ),
    ],
)
def test_how_far_it_is_in_a_line(told: dict[str, Any], line: str) -> None:
    assert fit._progress(told) == line


def test_the_cause_is_the_last_line_of_the_first_workers_error() -> None:
    class FailedError(Exception):
        worker_failures = {1: RuntimeError("Traceback\n  …\nMemoryError: no more\n\n")}

    assert fit._cause(FailedError()) == "MemoryError: no more"
    assert fit._cause(TimeoutError()) == "TimeoutError"


def test_one_rank_needs_nobody_to_tell_it() -> None:
    start = Start(7, "there")
    assert fit._told_by_the_first(start, 1, None) is start
