"""Ray Train around the loop: workers are placed, killed ones replaced, and it goes on from the last checkpoint.

    trained = fit(work, workers, watcher)      # Trained(checkpoint="…/checkpoints/step-1536", history=[…], …)

An error of the training itself would come again with every attempt: the worker writes it down, and the run ends with
it. Where a process just dies, or a neighbour's connection with it, Ray Train starts the next attempt.
"""

import json
import os
import re
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray.exceptions
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline.errors import CorpusmillError, RunError
from pipeline.models.memory import keep_products
from pipeline.output.layout import TMP
from pipeline.progress import Watcher
from pipeline.training import checkpoints
from pipeline.training.standing import PROGRESS
from pipeline.training.work import Start, Work
from pipeline.workers import TrainWorkers

DEATHS_AT_MOST = 1_000
"""Workers that may die in one run: each of them costs the steps since the last checkpoint, never the run."""

ATTEMPTS_AT_MOST = 10
"""Attempts that may begin at one checkpoint within a run."""

STARTS_AT_MOST = 60
"""Times that Ray Train may wait for a place for the workers, a minute each."""

ERROR = "metadata/training-error.txt"
"""The traceback of an error that ended a training."""

_RUNS = f"{TMP}/training"
"""A folder for each run: `attempts/<checkpoint>/`, `saving-…/`, `fault.json`. What an earlier run left, and what its
last processes still write, is nothing to the next one."""

_LOST = re.compile(r"\bgloo\b|connection (closed|reset) by peer|nccl communicator was aborted", re.IGNORECASE)
"""What torch says where the connection to another worker broke."""

_SECONDS_TO_END = 10.0
"""How long a run whose worker has told of an error may take to end by itself."""

_SECONDS_BETWEEN_WORDS = 10.0
"""How often it is told how far a training is."""

_QUICKLY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a death is noticed so soon; by default after two seconds
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the node's death is a death like any other
    "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody asks them
}


_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""glibc's: what a step frees, the next step takes again. By default large blocks go back to the kernel each time, which
then fills their pages with zeros anew: after a thousand steps that was a quarter of a worker's time, and its memory had
grown from 2.3 to 6 GB."""


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
    shutil.rmtree(work.store.full(_RUNS), ignore_errors=True)
    work.store.delete(PROGRESS)
    work.store.delete(ERROR)
    if not _done(work):
        run = f"{_RUNS}/{secrets.token_hex(4)}"
        _train(work, workers, run, watcher)
        shutil.rmtree(work.store.full(run), ignore_errors=True)
    checkpoints.sweep(work.store)
    return _trained(work)


def _done(work: Work) -> bool:
    """Whether the last step has its checkpoint."""
    step = checkpoints.latest(work.store)
    return step is not None and work.schedule.done(step, checkpoints.state(work.store, step)["log_history"])


def _trained(work: Work) -> Trained:
    """What the checkpoints say when all is done."""
    last = checkpoints.latest(work.store)
    assert last is not None, "the last step leaves a checkpoint"
    history = checkpoints.state(work.store, last)["log_history"]
    chosen = checkpoints.best(checkpoints.steps(work.store), work.schedule.scores(history))
    step = last if chosen is None else chosen
    sums = checkpoints.sums(checkpoints.folder_of(work.store, last))
    return Trained(
        checkpoint=str(checkpoints.folder_of(work.store, step)),
        step=step,
        steps=last,
        history=history,
        tokens=int(sums["tokens"]),
        padding_tokens=int(sums["padding_tokens"]),
        seconds=sums["seconds"],
    )


# ------------------------------------------------------------------------------------------------------------- driver


def _train(work: Work, workers: TrainWorkers, run: str, watcher: Watcher) -> None:
    """Until Ray Train has ended; its controller too may die, and is replaced."""
    for name, value in _QUICKLY.items():
        os.environ.setdefault(name, value)
    for _ in range(ATTEMPTS_AT_MOST):
        ended = _end_of(_trainer(work, workers, run), work, run, watcher)
        if (fault := work.store.find(f"{run}/fault.json")) is not None:
            raise RunError(f"the training failed: {json.loads(fault)['message']}")
        if ended is None:
            return
        if isinstance(getattr(ended, "controller_failure", None), ray.exceptions.RayActorError):
            continue  # a worker died in the very moment in which it was told to begin
        if isinstance(ended, ray.train.TrainingFailedError):
            raise RunError(f"the training failed: {_cause(ended)}; the same command goes on") from ended
        if not isinstance(ended, ray.exceptions.RayActorError):
            raise ended
    raise RunError(f"Ray Train's controller died {ATTEMPTS_AT_MOST} times; the same command goes on")


def _trainer(work: Work, workers: TrainWorkers, run: str) -> TorchTrainer:
    return TorchTrainer(
        _worker,
        train_loop_config={"work": work, "run": run},
        torch_config=TorchConfig(backend="gloo" if work.device == "cpu" else "nccl"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count if workers.least == workers.count else (workers.least, workers.count),
            use_gpu=work.device == "cuda",
            resources_per_worker=workers.resources,
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(work.store.full(run)),
            worker_runtime_env={"env_vars": _ALLOCATOR} if work.device == "cpu" else None,
            failure_config=ray.train.FailureConfig(
                max_failures=DEATHS_AT_MOST, controller_failure_limit=STARTS_AT_MOST
            ),
        ),
    )


def _end_of(trainer: TorchTrainer, work: Work, run: str, watcher: Watcher) -> BaseException | None:
    """What Ray Train ended with. It has a thread of its own, where it takes no signal handler in our place."""
    ended: list[BaseException] = []

    def fit_in_thread() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            ended.append(error)

    thread = threading.Thread(target=fit_in_thread, daemon=True)
    thread.start()
    _watch(work, run, thread, watcher)
    return ended[0] if ended else None


def _watch(work: Work, run: str, thread: threading.Thread, watcher: Watcher) -> None:
    """Say how far the workers are, as the first of them writes it down, until they have ended or told of an error."""
    told, spoke_at, failed_at = None, -_SECONDS_BETWEEN_WORDS, None
    while thread.is_alive() and (failed_at is None or time.monotonic() < failed_at + _SECONDS_TO_END):
        thread.join(0.5)
        content = work.store.find(PROGRESS)
        if content is not None and content != told and time.monotonic() >= spoke_at + _SECONDS_BETWEEN_WORDS:
            told, spoke_at = content, time.monotonic()
            with suppress(ValueError, KeyError):  # half-written
                watcher.phase(_progress(json.loads(content)))
        if failed_at is None and work.store.exists(f"{run}/fault.json"):
            failed_at = time.monotonic()


def _progress(told: Mapping[str, Any]) -> str:
    loss = "" if told["loss"] is None else f", loss {told['loss']:.3f}"
    speed = f"{told['tokens_per_second']:,.0f} tokens/s"
    return f"training: step {told['step']:,} of {told['steps']:,}{loss}, {speed}"


def _cause(error: BaseException) -> str:
    """The last line of the first worker's own error."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = [line for line in str(next(iter(failures.values()))).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------------------- worker


def _worker(config: Mapping[str, Any]) -> None:
    """One rank, in Ray's process."""
    keep_products(few=False)
    from pipeline.training.loop import train  # not above: the controller reads this file too

    work: Work = config["work"]
    run: str = config["run"]
    context = ray.train.get_context()
    rank, ranks, device = context.get_world_rank(), context.get_world_size(), get_device()
    if work.store.exists(f"{run}/fault.json"):
        return
    try:
        start = _told_by_the_first(_start(work, run) if rank == 0 else None, ranks, device)
        if start is not None:
            train(work, rank, ranks, device, start)
    except Exception as error:
        if ranks == 1 or not (_taken_down() or _of_a_neighbour(error)):
            _tell(work, run, error)
        raise


def _start(work: Work, run: str) -> Start | None:
    """Where this attempt begins; None where the training is done.

    Raises RunError where so many attempts began there that something must be wrong with the machine.
    """
    if _done(work):
        return None
    step = checkpoints.latest(work.store)
    begun = f"{run}/attempts/{step or 0}"
    work.store.mark(f"{begun}/{time.time_ns()}", b"")
    count = len(work.store.list(begun))
    if count > ATTEMPTS_AT_MOST:
        raise RunError(
            f"{count - 1} attempts in a row died after step {step or 0:,} and before the next checkpoint, most likely "
            "for want of memory; ask for fewer cluster.workers, a smaller training.micro_batch_tokens, or a smaller "
            "training.checkpoint_every"
        )
    for left in work.store.full(run).glob("saving-*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = work.store.full(f"{run}/saving-{secrets.token_hex(4)}")
    folder.mkdir()
    return Start(step, str(folder))


def _told_by_the_first(start: Start | None, ranks: int, device: Any) -> Start | None:
    """The first rank's word, on every rank."""
    told: list[Start | None] = [start]
    if ranks > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(told, src=0, device=device)
    return told[0]


def _tell(work: Work, run: str, error: Exception) -> None:
    """Write down an error that would come again."""
    if isinstance(error, CorpusmillError):
        message = str(error)
    else:
        work.store.write(ERROR, "".join(traceback.format_exception(error)).encode())
        words = str(error).strip().splitlines()
        message = f"{type(error).__name__}{f': {words[0]}' if words else ''}; see {work.store.full(ERROR)}"
    work.store.write_new(f"{run}/fault.json", json.dumps({"message": message}).encode())


def _taken_down() -> bool:
    """Whether Ray Train has ended the group of the workers under this one: the attempt is over, and another begins."""
    import torch.distributed as dist

    return not dist.is_initialized()


def _of_a_neighbour(error: BaseException) -> bool:
    """Whether the connection to another worker broke: that one died, and the training goes on without it."""
    import torch.distributed as dist

    if isinstance(error, dist.DistError | ConnectionError):
        return True
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None
