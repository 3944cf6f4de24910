"""Jobs as users write them, run through the command in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

COUNTING = Path(__file__).parent.parent / "chaos/counting.py"


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


@pytest.fixture
def corpusmill(tmp_path: Path) -> Command:
    """`corpusmill ARGUMENTS` in the test's own folder."""

    def run(
        *arguments: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> Answer:
        command = [*before, str(Path(sys.executable).with_name("corpusmill")), *arguments]
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

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
