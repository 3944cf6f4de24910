"""Failpoints fire where and when they are told, and nowhere else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.output import failpoints
from pipeline.output.failpoints import Armed, failpoint

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
