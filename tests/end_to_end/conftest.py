"""Jobs as users write them, run through the command: in a process of its own, on a Ray that tests share, or without."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

import pytest
import yaml

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings

COUNTING = Path(__file__).parent.parent / "chaos/counting.py"
SECONDS = 300
"""How long a command may take."""


@dataclass(frozen=True)
class Answer:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The JSON object that it printed last."""
        return dict(json.loads(self.out.splitlines()[-1]))


Command = Callable[..., Answer]


class OneRay:
    """An embedded Ray that corpusmill's own hand starts where a test needs one, and that lives until it is ended.

    Its three CPUs are what a run that finds it makes its two actors of, and the tasks beside them.
    """

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()

    def begin(self) -> None:
        import ray

        if not ray.is_initialized():
            cluster = RayCluster(ClusterSettings(actors=1, object_store_memory=200 << 20))
            cluster.workers({None: 0})
            self._running.enter_context(cluster.connected())

    def end(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def one_ray() -> Iterator[OneRay]:
    """The Ray that the tests of a module share."""
    shared = OneRay()
    yield shared
    shared.end()


@pytest.fixture
def corpusmill(one_ray: OneRay, tmp_path: Path) -> Command:
    """`corpusmill ARGUMENTS` in this process and the test's own folder, on the module's Ray."""

    def run(*arguments: str) -> Answer:
        one_ray.begin()
        return _in_this_process(arguments, tmp_path)

    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`corpusmill ARGUMENTS` in this process and the test's own folder: for what is decided before Ray starts."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Answer:
        from jobs.cli import main

        capfd.readouterr()
        code = main(list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        assert "starting Ray" not in err, err
        return Answer(code, out, err)

    return run


def _in_this_process(arguments: Sequence[str], folder: Path) -> Answer:
    """What the command leaves; signals, standard streams and the current folder are as before."""
    from jobs.cli import main

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            signal.signal(signal.SIGALRM, _late)
            signal.alarm(SECONDS)
            with contextlib.chdir(folder), _standard("stdout", 1, out), _standard("stderr", 2, err):
                code = main(list(arguments))
        finally:
            signal.alarm(0)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out.seek(0)
        err.seek(0)
        answer = Answer(code, out.read().decode(), err.read().decode())
    assert "Traceback" not in answer.err, answer.err
    return answer


def _late(number: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"the command took longer than {SECONDS} s")


@contextlib.contextmanager
def _standard(name: str, descriptor: int, file: IO[bytes]) -> Iterator[None]:
    """A file in the place of a standard stream and of its descriptor, which Ray's C++ parts and children write to."""
    before, saved = getattr(sys, name), os.dup(descriptor)
    before.flush()
    os.dup2(file.fileno(), descriptor)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", closefd=False) as stream:
            setattr(sys, name, stream)
            yield
    finally:
        setattr(sys, name, before)
        os.dup2(saved, descriptor)
        os.close(saved)


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """`corpusmill ARGUMENTS` in a process of its own with a Ray of its own, as users run it."""

    def run(
        *arguments: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> Answer:
        command = [*before, str(Path(sys.executable).with_name("corpusmill")), *arguments]
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=SECONDS
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., str]:
    """Write a job file around one annotation that costs nothing; keys are merged into its sections."""

    def write(folder: Path | str, annotation: Mapping[str, Any] | None = None, **sections: Any) -> str:
        counting = {"name": "size", "task": str(COUNTING), "text": "text"}
        document: dict[str, Any] = {
            "kind": "annotate",
            "allow_code": True,
            "corpus": {"path": str(folder)},
            "annotations": [counting | dict(annotation or {})],
            "output": {"path": "out"},
            "cluster": {"actors": 1},
        }
        for key, value in sections.items():
            document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
        return "job.yaml"

    return write
