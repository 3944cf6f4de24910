"""Ray Train around the loop: workers are placed, killed ones replaced, and it goes on from the last checkpoint.

    trained = fit(work, workers, watcher)      # Trained(checkpoint="…/checkpoints/step-1536", history=[…], …)

Facts about Ray Train (V2, 2.60) that it rests on: a checkpoint counts once all ranks have reported it and the snapshot
beside it names it; a run of the same name and place goes on from there; the latest is always among those kept.
"""

import json
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.errors import CorpusmillError, RunError
from pipeline.progress import Watcher
from pipeline.training.loop import PROGRESS, SUMS, Work
from pipeline.training.schedule import Schedule
from pipeline.workers import TrainWorkers

CHECKPOINTS = "checkpoints"
CHECKPOINT = "checkpoint"
"""The folder of transformers' own files inside each of them."""

DEATHS_AT_MOST = 1_000
"""Workers that may die in one run: each of them costs the steps since the last checkpoint, never the run."""

ATTEMPTS_AT_MOST = 20
"""Attempts that may begin at one checkpoint within a run."""

ATTEMPTS = "metadata/tmp/training"
FAULT = "metadata/tmp/training-fault.json"

_SCORE = "score"
_WORST = float("-inf")


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves."""

    checkpoint: str  # the folder of transformers' own files, of the chosen step
    step: int
    steps: int
    history: Sequence[Mapping[str, Any]]  # transformers' log: losses, rates, validations, by step
    tokens: int  # real ones, over all workers
    padding_tokens: int
    seconds: float  # in steps


def fit(work: Work, workers: TrainWorkers, watcher: Watcher) -> Trained:
    """Train with these workers, or go on where a killed run stopped. Ray must run already.

    Raises RunError: a worker failed with an error of its own, or the workers found no place.
    """
    _sweep(work)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"work": work},
        torch_config=TorchConfig(backend="gloo" if work.device == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count if workers.least == workers.count else (workers.least, workers.count),
            use_gpu=work.device == "cuda",
            resources_per_worker=workers.resources,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=work.store.root,
            failure_config=ray.train.FailureConfig(
                max_failures=DEATHS_AT_MOST, controller_failure_limit=DEATHS_AT_MOST
            ),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=max(2, work.job["training"]["keep_checkpoints"]) if work.schedule.best else 1,
                checkpoint_score_attribute=_SCORE if work.schedule.best else None,
            ),
        ),
    )
    try:
        with _Told(work, watcher):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunError(f"the training failed: {_cause(error)}; the same command goes on") from error
    if (fault := work.store.find(FAULT)) is not None:
        told = json.loads(fault)
        raise RunError(f"the training failed: {told['message']}") if told["ours"] else RuntimeError(told["message"])
    chosen = result.checkpoint
    if work.schedule.best and result.best_checkpoints:
        chosen = max(result.best_checkpoints, key=lambda each: each[1].get(_SCORE, _WORST))[0]
    assert chosen is not None, "the last step leaves a checkpoint"
    last = json.loads(Path(result.checkpoint.path, CHECKPOINT, "trainer_state.json").read_text())
    of_chosen = json.loads(Path(chosen.path, CHECKPOINT, "trainer_state.json").read_text())
    sums = json.loads(Path(result.checkpoint.path, CHECKPOINT, SUMS).read_text())
    return Trained(
        checkpoint=str(Path(chosen.path, CHECKPOINT)),
        step=of_chosen["global_step"],
        steps=last["global_step"],
        history=last["log_history"],
        **sums,
    )


def _worker(config: Mapping[str, Any]) -> None:
    """One rank, in Ray's process.

    An error of the training itself would come again with every attempt: it is written down, and the next attempt ends
    at once. Where a process just dies, or a neighbour's connection with it, the next attempt goes on.
    """
    from pipeline.training.loop import train

    work: Work = config["work"]
    context = ray.train.get_context()
    latest = ray.train.get_checkpoint()
    if work.store.exists(FAULT) or _stuck(work, latest, context.get_world_rank()):
        return
    resumed = None if latest is None else str(Path(latest.path, CHECKPOINT))
    try:
        train(work, context.get_world_rank(), context.get_world_size(), get_device(), resumed)
    except Exception as error:
        if not _of_a_neighbour(error):
            ours = isinstance(error, CorpusmillError)
            told = {"message": str(error) if ours else "".join(traceback.format_exception(error)), "ours": ours}
            work.store.write_new(FAULT, json.dumps(told).encode())
        raise


def _stuck(work: Work, latest: Any, rank: int) -> bool:
    """Whether so many attempts began at this very checkpoint that something must be wrong with the machine."""
    begun = f"{ATTEMPTS}/{'start' if latest is None else Path(latest.path).name}"
    if rank == 0:
        work.store.mark(f"{begun}/{time.monotonic_ns()}", b"")
    count = len(work.store.list(begun))
    if count <= ATTEMPTS_AT_MOST:
        return False
    told = (
        f"{count - 1} attempts in a row died before the next checkpoint, most likely for want of memory; ask for fewer "
    )
    told += "cluster.workers, a smaller training.micro_batch_tokens, or a smaller training.checkpoint_every"
    work.store.write_new(FAULT, json.dumps({"message": told, "ours": True}).encode())
    return True


def _of_a_neighbour(error: BaseException) -> bool:
    """Whether the connection to another worker broke: that one died, and the training goes on without it."""
    import torch.distributed as dist

    words = str(error).lower()
    known = ("gloo", "connection closed by peer", "connection reset by peer", "nccl communicator was aborted")
    return isinstance(error, dist.DistError) or any(each in words for each in known)


def report(state: Any, folder: Path | None, schedule: Schedule, sums: Mapping[str, Any]) -> None:
    """Hand a checkpoint of this rank to Ray Train; returns when all ranks have done so."""
    metrics: dict[str, Any] = {"step": state.global_step}
    if schedule.best is not None:
        score = schedule.score_at(state.global_step, state.log_history)
        metrics[_SCORE] = _WORST if score is None else score
    if folder is None:
        ray.train.report(metrics)
        return
    (folder / SUMS).write_text(json.dumps(dict(sums)))
    above = folder.with_name(f"report-{state.global_step}")
    above.mkdir()
    folder.rename(above / CHECKPOINT)
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint.from_directory(str(above)),
        checkpoint_dir_name=f"step-{state.global_step}",
    )
    shutil.rmtree(above, ignore_errors=True)


class _Told:
    """Says on the terminal how far the workers are, as the first of them writes it down."""

    def __init__(self, work: Work, watcher: Watcher) -> None:
        self._work, self._watcher = work, watcher
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        before = None
        while not self._done.wait(0.5):
            content = self._work.store.find(PROGRESS)
            if content is None or content == before:
                continue
            before = content
            with suppress(ValueError, KeyError):
                self._watcher.phase(_progress(json.loads(content)))


def _progress(told: Mapping[str, Any]) -> str:
    loss = "" if told["loss"] is None else f", loss {told['loss']:.3f}"
    speed = f"{told['tokens_per_second']:,.0f} tokens/s"
    return f"training: step {told['step']:,} of {told['steps']:,}{loss}, {speed}"


def _sweep(work: Work) -> None:
    """Remove checkpoints that a killed run had half written: the snapshot does not name them."""
    folder = work.store.full(CHECKPOINTS)
    for path in (PROGRESS, FAULT, *work.store.list(ATTEMPTS, recursive=True)):
        work.store.delete(path)
    if not folder.is_dir():
        return
    named = ""
    for snapshot in folder.glob("*.json"):
        named += snapshot.read_text()
    for each in folder.glob("step-*"):
        if f'"{each.name}"' not in named:
            shutil.rmtree(each, ignore_errors=True)


def _cause(error: BaseException) -> str:
    """The last line of the first worker's own error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = [line for line in str(next(iter(failures.values()))).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
