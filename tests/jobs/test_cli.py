import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

import jobs
from jobs import cli
from jobs.annotate import Outcome
from pipeline.errors import (
    CorpusError,
    CorpusmillError,
    Interrupted,
    JobError,
    LeaseError,
    ModelError,
    OutputError,
    PlacementError,
    RunError,
)
from pipeline.progress import Snapshot

ROOT = Path(__file__).parents[2]

SUMMARY = {
    "run_id": "20260102-030405-9f0c3a",
    "output": "out/topics",
    "rows_in": 100,
    "rows_out": 95,
    "rows_filtered": 0,
    "rows_quarantined": 5,
    "reasons": {"blank_text": 5},
    "units_total": 2,
    "units_done": 2,
    "units_skipped": 0,
    "units_quarantined": 0,
    "tokens": 1000,
    "padding_tokens": 10,
    "seconds": 3.0,
    "seconds_to_first_receipt": 2.0,
    "tokens_per_second": 500.0,
    "annotations": {"topic": {"model": None, "digest": None, "engine": None, "dtype": None, "tokens": 1000}},
}
HALF = Snapshot(3, 12, 300, 1200, 0, 1000, 10, 500.0, 9.0)


def outcome(exit_code=0, table=None, counts=None):
    return Outcome(dict(SUMMARY), exit_code, {"output": "out/topics"}, table, counts or {}, ())


class Job(types.ModuleType):
    """Stands where `jobs.kinds` and `jobs.annotate` stand, and does what a test tells it: they need Ray and a model."""

    def __init__(self, does):
        super().__init__("jobs.kinds")
        self.asked = []
        self.profiled = []
        self._does = does

    def run(self, path, overrides, watcher, began=None, profile=False):
        self.asked.append((path, list(overrides)))
        self.profiled.append(profile)
        return self._does(watcher)

    def retry(self, output, overrides, watcher, began=None, profile=False):
        return self.run(output, overrides, watcher, began, profile)

    def preview(self, path, overrides, rows):
        self.asked.append((path, list(overrides), rows))
        return self._does(None)

    def plan(self, path, overrides):
        self.asked.append((path, list(overrides)))
        return self._does(None)


@pytest.fixture
def job(monkeypatch):
    """`job(does)` puts a job in place."""

    def _job(does):
        made = Job(does)
        for name in ("kinds", "annotate"):
            monkeypatch.setitem(sys.modules, f"jobs.{name}", made)
            monkeypatch.setattr(jobs, name, made, raising=False)
        return made

    return _job


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def failing(error):
    def _does(watcher):
        raise error

    return _does


def stopped_by(error):
    def _does(watcher):
        watcher.advance(HALF)
        raise error

    return _does


# ----------------------------------------------------------------------------------------------------- the command line


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jobs.cli import main; code = main(['--help']);"
        "heavy = {'ray', 'torch', 'transformers', 'datasets', 'pandas', 'pyarrow', 'pydantic', 'numpy'};"
        "sys.exit(code or ', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in ("run", "preview", "plan", "status", "verify", "retry", "tasks"))


def test_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"corpusmill \S.*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rnu", "x.yaml"], "No such command 'rnu'"),
        (["run"], "Missing argument"),
        (["run", "x.yaml", "--frobnicate"], "No such option"),
        (["preview", "x.yaml", "-n", "0"], "'-n'"),
        (["preview", "x.yaml", "-n", "many"], "'-n'"),
    ],
)
def test_a_wrong_command_line_is_2(capsys, arguments, told):
    assert cli.main(arguments) == 2
    seen = capsys.readouterr()
    assert told in seen.err
    assert seen.out == ""


def test_overrides_and_numbers_reach_the_job(job, capsys):
    asked = job(lambda watcher: pa.table({"a": ["x"]}))
    assert cli.main(["preview", "x.yaml", "-n", "50", "-o", "a.b=1", "--override", "c=2"]) == 0
    assert asked.asked == [("x.yaml", ["a.b=1", "c=2"], 50)]
    assert capsys.readouterr().out == "a\nx\n"


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (CorpusmillError, 1),
        (RunError, 1),
        (LeaseError, 1),
        (JobError, 2),
        (ModelError, 2),
        (CorpusError, 2),
        (OutputError, 2),
        (PlacementError, 2),
    ],
)
@pytest.mark.parametrize("command", ["run", "preview", "plan", "retry"])
def test_an_error_is_one_line_and_its_exit_code(job, capsys, kind, code, command):
    job(failing(kind("the reason")))
    assert cli.main([command, "x"]) == code
    seen = capsys.readouterr()
    assert seen.err.splitlines()[-1] == "error: the reason"
    assert seen.out == ""


def test_several_errors_are_told_one_a_line_and_indented_lines_go_on(job, capsys):
    job(failing(JobError("x.yaml: a: wrong\nx.yaml: b: wrong too\n  because of c")))
    assert cli.main(["run", "x.yaml"]) == 2
    assert capsys.readouterr().err == "error: x.yaml: a: wrong\nerror: x.yaml: b: wrong too\n  because of c\n"


def test_an_unforeseen_error_is_one_line_and_a_file_with_the_traceback(job, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job(failing(ZeroDivisionError("division by zero")))
    assert cli.main(["run", "x.yaml"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "error: unexpected ZeroDivisionError: division by zero: this is a fault of corpusmill"
    where = re.fullmatch(r"the traceback is in (\S+): please report it", second)
    assert where
    trace = Path(where[1]).read_text()
    assert "Traceback" in trace
    assert "ZeroDivisionError: division by zero" in trace
    assert Path(where[1]).parent == tmp_path


def test_an_unforeseen_error_of_an_actor_is_told_by_its_last_line(job, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job(failing(RuntimeError("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n")))
    assert cli.main(["run", "x.yaml"]) == 1
    told = capsys.readouterr().err.splitlines()[0]
    assert told == "error: unexpected RuntimeError: KeyError: 'a': this is a fault of corpusmill"


def test_a_traceback_that_cannot_be_written_to_a_file_is_shown(job, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    job(failing(ZeroDivisionError()))
    assert cli.main(["run", "x.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: unexpected ZeroDivisionError: -: this is a fault of corpusmill\n")
    assert "Traceback" in told


# ------------------------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(int(signal.SIGTERM))])
def test_an_interruption_is_130_and_says_how_far_it_came(job, capsys, stop):
    job(stopped_by(stop))
    assert cli.main(["run", "x.yaml"]) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "interrupted: 3 of 12 units are committed; the same command goes on"


def test_an_interruption_before_the_first_receipt_is_130(job, capsys):
    job(failing(KeyboardInterrupt()))
    assert cli.main(["plan", "x.yaml"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: nothing was lost; the same command goes on"


def test_an_interruption_that_the_run_told_of_is_told_as_it_is(job, capsys):
    job(failing(Interrupted("interrupted: 1 of 2 units are committed; the same command goes on")))
    assert cli.main(["run", "x.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted: 1 of 2 units are committed; the same command goes on\n"


def test_another_exit_is_left_alone(job):
    job(failing(SystemExit(7)))
    assert cli.main(["run", "x.yaml"]) == 7


SCRIPT = """\
import sys, time, types
import jobs
from jobs import cli
from pipeline.progress import Snapshot

def run(path, overrides, watcher, began=None, profile=False):
    watcher.advance(Snapshot(3, 12, 300, 1200, 0, 1000, 10, 500.0, 9.0))
    time.sleep(60)

def plan(path, overrides):
    return {"much": "x" * 200_000}

jobs.kinds = sys.modules["jobs.kinds"] = types.ModuleType("jobs.kinds")
jobs.kinds.run, jobs.kinds.plan = run, plan
sys.exit(cli.main())
"""


@pytest.fixture
def command(tmp_path):
    """Starts `corpusmill` in a process of its own, with a job that waits."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    started = []

    def _start(*arguments):
        process = subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        with process:  # waits, and closes its pipes
            pass


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_cleanly(command, sent):
    process = command("run", "x.yaml")
    assert "300 of 1,200 rows" in process.stderr.readline()
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err) == ("", "interrupted: 3 of 12 units are committed; the same command goes on\n")


def test_a_reader_that_goes_away_is_no_error(command):
    process = command("plan", "x.yaml", "--json")
    process.stdout.read(10)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) == 0
    assert "Error" not in err
    assert "Broken" not in err


# ------------------------------------------------------------------------------------------------------------- answers


def test_json_is_one_object_on_standard_output_whatever_libraries_print(job, capsys):
    def _does(watcher):
        print("noise")
        watcher.phase("annotating")
        return outcome()

    asked = job(_does)
    assert cli.main(["run", "x.yaml", "--json"]) == 0
    seen = capsys.readouterr()
    assert json.loads(seen.out) == SUMMARY
    assert seen.out.count("\n") == 1
    assert "noise\n" in seen.err
    assert asked.asked == [("x.yaml", [])]


def test_people_see_rows_labels_and_how_to_go_on(job, capsys):
    table = pa.table({"title": ["a"], "topic_label": ["games"], "topic_score": [0.5]})
    job(lambda watcher: outcome(table=table, counts={"topic": {"games": 95}}))
    assert cli.main(["run", "x.yaml"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == ["title  topic_label  topic_score", "a      games              0.500", ""]
    assert "topic  games  ━━━" in out
    assert "rows       100 in, 95 out, 5 quarantined (5 blank_text)" in out
    assert out.splitlines()[-1] == "next       corpusmill retry out/topics: once more, when the cause is gone"


def test_a_run_over_its_limit_answers_and_is_3(job, capsys):
    job(lambda watcher: outcome(exit_code=3))
    assert cli.main(["retry", "out/topics", "--json"]) == 3
    seen = capsys.readouterr()
    assert json.loads(seen.out)["rows_quarantined"] == 5
    assert seen.err == (
        "warning: 5 of 100 rows are quarantined, more than limits.max_quarantined allows (exit code 3)\n"
    )


@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_run_and_a_retry_keep_where_the_time_went_when_asked(job, command):
    asked = job(lambda watcher: outcome())
    assert cli.main([command, "x", "--profile"]) == cli.main([command, "x"]) == 0
    assert asked.profiled == [True, False]


def test_a_plan_is_json_when_asked(job, capsys):
    job(lambda watcher: {"units": 3})
    assert cli.main(["plan", "x.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"units": 3}


def test_what_a_stream_cannot_write_is_replaced(job, capfd, monkeypatch):
    job(lambda watcher: pa.table({"a": ["café 日本"]}))
    with open(1, "w", encoding="ascii", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["preview", "x.yaml"]) == 0
    assert capfd.readouterr().out == "a\ncaf? ??\n"


# -------------------------------------------------------------------------------------------------------------- python


def test_the_same_stands_as_functions(job):
    asked = job(lambda watcher: outcome())
    assert jobs.run("x.yaml", ["a=1"]) == {"output": "out/topics"}
    assert jobs.retry("out/topics") == {"output": "out/topics"}
    assert jobs.preview("x.yaml", 7) is not None
    assert jobs.plan("x.yaml") is not None
    assert asked.asked == [("x.yaml", ["a=1"]), ("out/topics", []), ("x.yaml", [], 7), ("x.yaml", [])]
