"""What the driver keeps of a profiled execution: files in `metadata/`, and words where there is no picture."""

import io
import json
import sys
import time
from pathlib import Path

import pytest

from pipeline.output.layout import PROFILE, PROFILE_PICTURE
from pipeline.output.storage import Store
from pipeline.profile import Span, as_told
from pipeline.profiling import Profiling
from pipeline.progress import Silent


class Noting(Silent):
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def profiled(watcher: Noting, units: int = 1) -> Profiling:
    """Of so many units that an actor did; planning took two seconds, annotating has just begun."""
    profiling = Profiling(watcher, time.monotonic() - 2)
    profiling.phases.phase("planning")
    profiling.phases.phase("annotating")
    now = time.time()
    for number in range(units):
        spans = [Span("forward", now + number, 0.7, 1), Span("unit", now + number, 0.9)]
        profiling.took(
            {"state": "done", "profile": [as_told("actor", spans), as_told("commit", [Span("commit", now, 0.1)])]}
        )
    return profiling


def test_a_profile_is_a_trace_and_a_picture_and_says_that_it_is_of_this_execution_alone(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    store, watcher = Store.at(str(tmp_path / "out")), Noting()
    found = profiled(watcher, 3).written(store, "r7", 3, units_before=5)
    assert found is not None
    assert (found["trace"], found["picture"]) == (str(store.full(PROFILE)), str(store.full(PROFILE_PICTURE)))
    assert found["seconds"]["actors"]["forward"] == pytest.approx(2.1)
    assert found["seconds"]["driver"]["imports"] == pytest.approx(2, abs=0.5)
    assert (found["actors"], found["units"], found["units_before"]) == (1, 3, 5)
    trace = json.loads(store.read(PROFILE))
    assert trace["otherData"]["shows"] == "this execution alone: 3 units; 5 were committed before it"
    assert [event["args"]["name"].split()[0] for event in trace["traceEvents"] if event["name"] == "process_name"] == [
        "driver",
        "actor",
        "commit",
    ]
    assert [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"][:3] == [
        "imports",
        "planning",
        "annotating",
    ]
    pixels = image.imread(io.BytesIO(store.read(PROFILE_PICTURE)))
    assert min(pixels.shape[:2]) > 200
    assert watcher.phases == ["planning", "annotating"]
    assert watcher.notes == []


def test_without_matplotlib_the_trace_is_written_and_the_missing_picture_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, watcher = Store.at(str(tmp_path / "out")), Noting()
    store.write(PROFILE_PICTURE, b"an earlier one")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = profiled(watcher).written(store, "r7", 1, units_before=0)
    assert found is not None
    assert found["picture"] is None
    assert store.exists(PROFILE)
    assert not store.exists(PROFILE_PICTURE)
    (note,) = watcher.notes
    assert note.startswith("there is no metadata/profile.png: ")
    assert note.endswith('matplotlib, which is not installed: pip install "corpusmill[evaluate]" brings it')


def test_an_execution_that_found_nothing_to_do_leaves_an_earlier_profile_alone(tmp_path: Path) -> None:
    store, watcher = Store.at(str(tmp_path / "out")), Noting()
    store.write(PROFILE, b"{}")
    assert profiled(watcher, 0).written(store, "r8", 0, units_before=5) is None
    assert store.read(PROFILE) == b"{}"
    assert watcher.notes == ["no unit was annotated: this execution has no profile"]
