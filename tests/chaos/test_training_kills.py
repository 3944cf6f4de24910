"""Killed at any moment, a training ends with the steps, the rows, the weights and the figures of an undisturbed one.

`CORPUSMILL_TRAINING_KILLS=20` runs as many kills as a release wants, `CORPUSMILL_SEED` others; the default is what CI
has time for. With `pytest -s` each kill is told.
"""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.output.failpoints import CHECKPOINT_NAMES
from tests.pipeline.families import factory

KILLS = int(os.environ.get("CORPUSMILL_TRAINING_KILLS", "1"))
SEED = int(os.environ.get("CORPUSMILL_SEED", "20261122"))
EPOCH_STEPS = 20  # of some 324 training rows
STEPS = 44 if KILLS == 1 else 240  # the death of a node is noticed a moment later: some steps must be left by then
CHECKPOINT_EVERY, VALIDATE_EVERY, KEPT = 4, 15, 3

WHO = {
    "worker": re.compile(r"^ray::.*RayTrainWorker"),
    "controller": re.compile(r"^ray::.*TrainController"),
    "node": re.compile(r"/(raylet|gcs_server)( |$)"),
}
"""Processes of Ray's that are killed, by what `ps` says of them; beside them the driver, and a worker as it saves."""

OTHERS = ("worker", "driver", "controller", "node")


class Training:
    """One job on one output, and the processes that run it."""

    def __init__(self, folder: Path, corpus: Path, model: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.file, self.counter = folder / "job.yaml", folder / "failpoint.counter"
        folder.mkdir()
        job = {
            "kind": "finetune",
            "objective": "classify",
            "model": str(model),
            "data": {
                "path": str(corpus),
                "text": "text",
                "label": "label",
                "split": {"validation": 0.1, "test": 0.0},
            },
            "training": {
                "steps": STEPS,
                "learning_rate": 1e-3,
                "batch_rows": 16,
                "micro_batch_tokens": 128,
                "dropout": 0.1,
                "dtype": "float32",
                "checkpoint_every": CHECKPOINT_EVERY,
                "validate_every": VALIDATE_EVERY,
                "keep_checkpoints": KEPT,
            },
            "cluster": {"workers": 2, "cpus_per_worker": 1},
            "output": {"path": str(self.output)},
        }
        self.file.write_text(yaml.safe_dump(job))

    def start(self, failpoint: str | None = None) -> subprocess.Popen[str]:
        environment = dict(os.environ)
        if failpoint is not None:
            environment |= {"CORPUSMILL_FAILPOINT": failpoint, "CORPUSMILL_FAILPOINT_COUNTER": str(self.counter)}
        command = [str(Path(sys.executable).with_name("corpusmill")), "run", str(self.file), "--json"]
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def attempts(self) -> dict[str, list[tuple[int, str]]]:
        """(step, digest of its rows) of every step that was begun, by attempt, in order."""
        path = self.output / "metadata/steps.jsonl"
        found: dict[str, list[tuple[int, str]]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            told = json.loads(line)
            found.setdefault(told["attempt"], []).append((told["step"], told["rows"]))
        return found

    def step(self) -> int:
        """The last step that was begun."""
        attempts = list(self.attempts().values())
        return attempts[-1][-1][0] if attempts else -1

    def checkpoints(self) -> list[str]:
        return sorted(each.name for each in self.output.glob("checkpoints/*"))

    def weights(self) -> bytes:
        return (self.output / "model/model.safetensors").read_bytes()

    def history(self) -> list[dict[str, Any]]:
        """Losses, rates and validations; times left out."""
        told = json.loads((self.output / "metadata/trained.json").read_text())["history"]
        return [{key: value for key, value in each.items() if not key.startswith("train_")} for each in told]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    chance = random.Random(1)
    words = [f"{first}{second}" for first in "abcdefgh" for second in "ijklmn"]
    labels = [number % 3 for number in range(360)]
    texts = [
        " ".join([*chance.choices(words, k=chance.randint(2, 24)), f"number{row}", ("apple", "pear", "plum")[label]])
        for row, label in enumerate(labels)
    ]
    pq.write_table(pa.table({"text": texts, "label": [f"label {label}" for label in labels]}), folder / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    factory.build("bert", "Model", folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(tmp_path_factory.mktemp("undisturbed") / "job", corpus, model)
    process = training.start()
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    (attempt,) = training.attempts().values()
    assert [step for step, _ in attempt] == list(range(STEPS))
    return training


def test_any_number_of_kills_leaves_the_model_of_an_undisturbed_training(
    corpus: Path, model: Path, undisturbed: Training, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    left = KILLS
    while left:
        training = Training(tmp_path / f"job-{left}", corpus, model)
        kills = min(left, 1 + len(OTHERS))
        others = list(OTHERS[: kills - 1])
        chance.shuffle(others)
        left -= _run_to_the_end(training, others, chance)
        _check(training, undisturbed)


def _check(training: Training, undisturbed: Training) -> None:
    (wanted,) = undisturbed.attempts().values()
    attempts = list(training.attempts().values())
    steps_of = [[step for step, _ in attempt] for attempt in attempts]
    assert all(each in wanted for attempt in attempts for each in attempt)  # the same rows at the same step
    assert steps_of[0][0] == 0
    assert steps_of[-1][-1] == STEPS - 1
    for before, after in itertools.pairwise(steps_of):
        # Each goes on at the last checkpoint: one at most may have come after the last step that was begun.
        assert after[0] in (_checkpoint_at(before[-1]), _checkpoint_at(before[-1] + 1)), (before, after)
        assert after == list(range(after[0], after[-1] + 1))
    assert training.history() == undisturbed.history()
    assert training.weights() == undisturbed.weights()
    assert training.checkpoints() == undisturbed.checkpoints()
    assert len(training.checkpoints()) == KEPT
    assert not list((training.output / "metadata/tmp").rglob("*.safetensors"))
    assert not list((training.output / "metadata/tmp").glob("candidate*"))


def _checkpoint_at(step: int) -> int:
    """The last step up to this one after which a checkpoint is kept."""
    return max(
        each
        for each in range(step + 1)
        if each % CHECKPOINT_EVERY == 0 or each % VALIDATE_EVERY == 0 or each % EPOCH_STEPS == 0
    )


def _run_to_the_end(training: Training, others: list[str], chance: random.Random) -> int:
    """Kill a worker as it saves, then the others one by one, wherever the training is; the same command goes on.

    How many were killed: workers outlive their node by a moment, in which they may come to their last step.
    """
    nth = chance.randint(1, 6)
    failpoint = f"{chance.choice(CHECKPOINT_NAMES)}:{nth}:kill"
    process = training.start(failpoint)
    while not training.counter.exists() or training.counter.stat().st_size < nth:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    print(f"{failpoint} at step {training.step()}")
    killed = 1
    for at, who in enumerate(others):
        kills, process = _kill(training, process, who, len(others) - at, chance)
        killed += kills
        if process.poll() is not None:
            break
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["steps"] == STEPS
    return killed


def _kill(
    training: Training, process: subprocess.Popen[str], who: str, left: int, chance: random.Random
) -> tuple[int, subprocess.Popen[str]]:
    """Kill somebody when some more steps were begun: 1, and the process that runs the training afterwards.

    Where no step was left to begin: 0, and the process that came to its end. That of a node that was killed late may
    come to its end too.
    """
    attempts = len(training.attempts())
    # Who is looked for takes a moment, in which the training goes on: not to its end.
    wanted = min(STEPS * 2 // 3, training.step() + chance.randint(1, max(1, (STEPS - training.step()) // (left + 1))))
    while training.step() < wanted or len(training.attempts()) == attempts:
        if process.poll() == 0 and training.step() == STEPS - 1 and len(training.attempts()) == attempts:
            return 0, process
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    assert len(training.checkpoints()) <= KEPT + 1
    below = _descendants(process.pid)
    choice = [process.pid] if who == "driver" else [pid for pid, title in below if WHO[who].search(title)]
    os.kill(chance.choice(choice), signal.SIGKILL)
    print(f"{who} at step {training.step()}")
    if who in ("worker", "controller"):
        return 1, process
    while process.poll() is None:
        time.sleep(0.1)
    if who == "node" and process.returncode == 0 and training.step() == STEPS - 1:
        return 1, process
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    return 1, training.start()


def _descendants(root: int) -> list[tuple[int, str]]:
    """(pid, title) of every process below one, by `ps`."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    entries = [line.split(None, 2) for line in listed.splitlines()]
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, *title in entries:
        children.setdefault(int(parent), []).append((int(pid), title[0] if title else ""))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [pid for pid, _ in below]
    return found
