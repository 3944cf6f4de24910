"""What libraries print goes to a log; our own words go where standard error went."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest

ROOT = Path(__file__).parent.parent.parent


def _run(inside: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A process with standard error of its own; it prints where the log is, if one is left."""
    program = f"""
import io, os, subprocess, sys
from jobs.quiet import quiet
{before}
try:
    with quiet() as (terminal, log):
{indent(dedent(inside), " " * 8)}
except ValueError as error:
    print(f"raised {{error}}", file=sys.stderr, flush=True)
print(log if log.exists() else "no log")
os.write(2, b"after\\n")
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, text=True, encoding="utf-8", capture_output=True, check=True
    )


def _log(done: subprocess.CompletedProcess[str]) -> str:
    path = Path(done.stdout.strip())
    words = path.read_text()
    path.unlink()
    return words


def test_what_any_code_writes_to_standard_error_goes_to_the_log() -> None:
    done = _run("""
        os.write(2, b"from C\\n")
        print("from Python", file=sys.stderr)
        subprocess.run(["sh", "-c", "echo from a child >&2"])
    """)
    assert done.stderr == "after\n"
    assert sorted(_log(done).splitlines()) == ["from C", "from Python", "from a child"]


def test_our_own_words_are_seen_and_no_empty_log_stays() -> None:
    done = _run("print('planning: ü', file=terminal)")
    assert (done.stderr, done.stdout) == ("planning: ü\nafter\n", "no log\n")


def test_an_error_inside_gives_standard_error_back_and_leaves_the_log() -> None:
    done = _run("""
        os.write(2, b"noise\\n")
        raise ValueError("seen")
    """)
    assert done.stderr == "raised seen\nafter\n"
    assert _log(done) == "noise\n"


def test_words_that_were_not_flushed_stay_on_their_side() -> None:
    done = _run("sys.stderr.write('inside')", before="sys.stderr.write('before ')")
    assert done.stderr == "before after\n"
    assert _log(done) == "inside"


def test_a_stand_in_without_a_descriptor_is_written_to_as_it_is() -> None:
    done = _run(
        """
        print("kept", file=terminal)
        os.write(2, b"not redirected\\n")
        """,
        before="sys.stderr = shown = io.StringIO()",
    )
    assert (done.stderr, done.stdout) == ("not redirected\nafter\n", "no log\n")


def test_a_closed_standard_error_is_no_reason_to_fail() -> None:
    program = "from jobs.quiet import quiet\nwith quiet() as (terminal, log):\n    print('to nobody', file=terminal)"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{program}" 2>&-'], env={"PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == 0


@pytest.mark.parametrize(("end", "said"), [("os._exit(1)", True), ("os.kill(os.getpid(), 9)", True), ("pass", False)])
def test_who_ends_without_a_word_has_last_words(end: str, said: bool) -> None:
    script = f"""
import os
from jobs.quiet import last_words, quiet
with quiet() as (terminal, log), last_words(terminal, "these are the last words"):
    {end}
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert ("these are the last words" in ended.stderr) == said


def test_a_run_does_not_fail_for_want_of_somebody_to_say_its_last_words() -> None:
    script = """
import os
from jobs.quiet import last_words, quiet
children, fork = [], os.fork
def forked():
    children.append(fork())
    return children[0]
os.fork = forked
with quiet() as (terminal, log), last_words(terminal, "these are the last words"):
    os.kill(children[0], 9)
    os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOWAIT)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (0, "")
