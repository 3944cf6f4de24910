"""Failpoints fire where and when they are told, and nowhere else."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import RunError
from pipeline.output import failpoints, planfile
from pipeline.output.failpoints import Armed, failpoint
from pipeline.output.lease import Lease, sweep

if TYPE_CHECKING:
    from tests.pipeline.output.conftest import Small

ARMED = "part.before_write"


def passing(times: int, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A process that passes a point so many times, saying each."""
    script = f"""
from pipeline.output.failpoints import failpoint
for time in range({times}):
    failpoint("part.after_write")
    failpoint("{ARMED}")
    print(time, flush=True)
"""
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True, check=False)


def test_a_process_kills_itself_at_the_nth_time() -> None:
    ended = passing(5, {failpoints.VARIABLE: f"{ARMED}:3:kill"})
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout.split() == ["0", "1"]


def test_the_count_goes_on_in_the_next_process(tmp_path: Path) -> None:
    environment = {failpoints.VARIABLE: f"{ARMED}:3:kill", failpoints.COUNTER_VARIABLE: str(tmp_path / "times")}
    assert passing(2, environment).returncode == 0
    ended = passing(2, environment)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "")
    assert passing(2, environment).returncode == 0


def test_an_errno_is_raised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", Armed.parse(f"{ARMED}:2:ENOSPC", None))
    failpoint(ARMED)
    with pytest.raises(OSError, match="No space left on device"):
        failpoint(ARMED)
    failpoint(ARMED)


def test_nothing_happens_unarmed() -> None:
    for name in failpoints.NAMES:
        failpoint(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part.befor_write:1:kill", "no failpoint named 'part.befor_write'; known: part.before_write"),
        (f"{ARMED}:0:kill", "'0' is no count"),
        (f"{ARMED}:1:ENOTHING", "'ENOTHING' is neither 'kill' nor the name of an errno"),
    ],
)
def test_a_wrong_definition_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Armed.parse(text, None)


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_every_point_is_passed_by_a_run_that_follows_a_killed_one(
    finished: "Small", monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    orphans = ("data/part-ff-1.parquet", "quarantine/part-ff-1.parquet", "metadata/tmp/1-ab")
    for path in orphans:
        finished.store.mark(path, b"left by a killed run")
    unit = finished.plan.units[0]
    previous = finished.receipt("a1")
    monkeypatch.setattr(failpoints, "_armed", Armed(name, 1, "EIO", None))
    finished.blank = {"a1": [1]}

    def follow() -> None:
        with Lease.acquire(finished.store, "r2") as lease:
            sweep(finished.store, {"a1": previous}, lease.epoch)
            planfile.save(finished.store, finished.plan)
            finished.commit(unit, lease.epoch, finished.pairs(unit)[3:5], previous=previous)
            finished.write_manifest()

    with pytest.raises(RunError, match="Input/output error"):
        follow()
