"""Kinds of jobs: what `kind` may say, and who runs it. A new kind is one more module here, and its name in `KINDS`.

    kind: annotate   -> jobs.annotate.run(document, "topics.yaml", watcher, began)

A kind's module has `parse` and `run`, which take the document of a job file and the name that messages give it; also
`preview` and `plan` where the kind has rows to look at before it runs, and `PROFILES = True` where its `run` takes
`profile`.
"""

import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from jobs import jobfile
from jobs.complaints import choice
from pipeline.errors import JobError
from pipeline.progress import Watcher
from pipeline.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

KINDS = ("annotate", "evaluate", "finetune", "steps")
"""What `kind` may say: the names of modules in this folder."""


class Outcome(Protocol):
    """What any job leaves: for scripts (`summary`, `exit_code`), for Python (`manifest`) and for people."""

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `--json` prints."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What Python gets: all that is known of the output."""
        ...

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        ...

    @property
    def warning(self) -> str | None:
        """Why the exit code is not 0."""
        ...

    def shown(self, width: int) -> "list[RenderableType]":
        """What a person sees, for a terminal of that width."""
        ...


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job file whose kind is known; nothing else of it was looked at."""

    document: Mapping[str, Any]
    path: str
    kind: str

    @property
    def module(self) -> ModuleType:
        """Who runs it."""
        return module_of(self.kind)

    def parsed(self) -> Settings:
        """The checked job; JobError with all that is wrong with it."""
        job: Settings = self.module.parse(self.document, self.path)
        return job


def load(path: str, overrides: Sequence[str] = ()) -> JobFile:
    """A job file and its kind; JobError where it cannot be read or says no kind that there is."""
    document = jobfile.read(path, overrides)
    return JobFile(document, path, kind_of(document, path))


def kind_of(document: Mapping[str, Any], path: str) -> str:
    """What `kind` says. Raises JobError: nothing, or no kind that there is."""
    kind = document.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        return kind
    raise JobError(
        f"{path}: `kind` is missing; known: {', '.join(KINDS)}"
        if kind is None
        else f"{path}: {choice(f'kind: {kind!r} is not allowed', str(kind), list(KINDS))}"
    )


def module_of(kind: str) -> ModuleType:
    """Who runs the jobs of a kind that there is."""
    return importlib.import_module(f"jobs.{kind}")


def run(
    path: str, overrides: Sequence[str], watcher: Watcher, began: float | None = None, profile: bool = False
) -> Outcome:
    """Run a job file to its end, or on from where an earlier run stopped; `began`: the process's start, monotonic.

    `profile` keeps where the time went. Raises JobError for a kind that cannot tell.
    """
    began = time.monotonic() if began is None else began
    job = load(path, overrides)
    if profile and not can_profile(job.kind):
        raise JobError(
            f"{path}: --profile shows where the time of labeling went, and there is none for a job of kind {job.kind}; "
            "run it without"
        )
    done: Outcome = job.module.run(job.document, path, watcher, began, **({"profile": True} if profile else {}))
    return done


def can_profile(kind: str) -> bool:
    """Whether the `run` of that kind takes `profile`, as its module says."""
    return bool(getattr(module_of(kind), "PROFILES", False))


def preview(path: str, overrides: Sequence[str], rows: int) -> "pa.Table":
    """A few annotated rows; nothing is written. Raises JobError for a kind that has none."""
    job = load(path, overrides)
    table: pa.Table = _asked(job, "preview")(job.document, path, rows)
    return table


def plan(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What a run would do: units, rows, bytes; tokens and time estimated.

    Raises JobError for a kind that cannot tell.
    """
    job = load(path, overrides)
    told: dict[str, Any] = _asked(job, "plan")(job.document, path)
    return told


def _asked(job: JobFile, command: str) -> Any:
    function = getattr(job.module, command, None)
    if function is None:
        raise JobError(f"{job.path}: there is no `corpusmill {command}` for a job of kind {job.kind}; `run` runs it")
    return function
