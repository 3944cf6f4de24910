"""Checkpoints of a training: a folder that bears a step's name was whole before it got it.

    checkpoints/step-384/    model.safetensors  optimizer.pt  scheduler.pt  trainer_state.json  sums.json

    commit(store, folder, 384)               # one rename
    latest(store)                            # 384; None before the first
    prune(store, {192: 0.47, 384: 0.51}, 2)  # all but the latest and the best go

Ray Train would keep them too, but writes its list in place, deletes file by file, and hears of a new one only when it
next asks its workers: a kill in between loses a checkpoint, or all of them. Here a kill at any moment loses nothing.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.output.failpoints import failpoint
from pipeline.output.layout import TMP
from pipeline.output.storage import Store

CHECKPOINTS = "checkpoints"

STATE = "trainer_state.json"
"""transformers' own: the step, and the log of all steps before it."""

SUMS = "sums.json"
"""What all steps before a checkpoint came to: {"tokens": 81920, "padding_tokens": 512, "seconds": 61.2}."""

_NAME = re.compile(r"^step-([0-9]+)$")


def folder_of(store: Store, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return store.full(f"{CHECKPOINTS}/step-{step}")


def steps(store: Store) -> list[int]:
    """The steps that have a checkpoint, in order."""
    folder = store.full(CHECKPOINTS)
    found = [_NAME.match(each.name) for each in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(each[1]) for each in found if each is not None)


def latest(store: Store) -> int | None:
    """The last step that has one."""
    return max(steps(store), default=None)


def state(store: Store, step: int) -> dict[str, Any]:
    """What transformers wrote down at a step: `global_step`, `log_history` and more."""
    found: dict[str, Any] = json.loads(Path(folder_of(store, step), STATE).read_text())
    return found


def sums(folder: Path) -> dict[str, float]:
    """What all steps before a checkpoint came to."""
    found: dict[str, float] = json.loads(Path(folder, SUMS).read_text())
    return found


def commit(store: Store, folder: Path, step: int) -> None:
    """Make a whole folder the checkpoint of a step: it lasts, and then gets its name at once.

    One that bears the name already, of a process that outlived its driver for a moment, is as good: it stays.
    """
    if folder_of(store, step).exists():
        return
    failpoint("checkpoint.before_fsync")
    for each in (*folder.rglob("*"), folder):
        _sync(each)
    above = store.full(CHECKPOINTS)
    above.mkdir(parents=True, exist_ok=True)
    failpoint("checkpoint.before_replace")
    with suppress(FileExistsError):
        folder.rename(folder_of(store, step))
    _sync(above)
    failpoint("checkpoint.after_replace")


def prune(store: Store, scores: Mapping[int, float], keep: int) -> None:
    """Remove all checkpoints but those that `kept` names."""
    there = steps(store)
    for step in set(there) - kept(there, scores, keep):
        _remove(store, step)


def kept(steps: Sequence[int], scores: Mapping[int, float], keep: int) -> set[int]:
    """Which of the steps' checkpoints stay: the latest, the best, and those next to them, `keep` in all.

    `scores`: of steps that were validated, more being better; without any, the latest ones stay. Pure.
    """
    if not steps:
        return set()
    by_rank = sorted(steps, key=lambda step: (-scores.get(step, float("-inf")), step if step in scores else -step))
    must = {max(steps)} | ({by_rank[0]} if by_rank[0] in scores else set())
    others = [step for step in by_rank if step not in must]
    return must | set(others[: max(0, keep - len(must))])


def best(steps: Iterable[int], scores: Mapping[int, float]) -> int | None:
    """The step of the highest score, the first one among equals; None where none of them has a score. Pure."""
    scored = sorted(step for step in steps if step in scores)
    return max(scored, key=lambda step: scores[step], default=None)


def _remove(store: Store, step: int) -> None:
    """Take the name away at once, then the files one by one: no half of a checkpoint ever bears it."""
    folder = folder_of(store, step)
    if not folder.exists():
        return
    gone = store.full(f"{TMP}/checkpoint-{secrets.token_hex(4)}")
    gone.parent.mkdir(parents=True, exist_ok=True)
    failpoint("checkpoint.before_delete")
    folder.rename(gone)
    failpoint("checkpoint.after_delete")
    shutil.rmtree(gone, ignore_errors=True)


def sweep(store: Store) -> None:
    """Remove what processes that were killed while they removed a checkpoint have left."""
    for left in store.full(TMP).glob("checkpoint-*"):
        shutil.rmtree(left, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
