"""The annotate job as the command line and Python call it: from a job file's path to what came of it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings
from jobs import jobfile
from jobs.complaints import choice
from pipeline.errors import JobError
from pipeline.job import AnnotateJob
from pipeline.output import planfile
from pipeline.output.storage import Store
from pipeline.progress import Watcher

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.annotate import Outcome as RunOutcome


class AnnotateFile(AnnotateJob):
    """A whole job file of kind `annotate`."""

    kind: Literal["annotate"]

    cluster: ClusterSettings = ClusterSettings()


KINDS: Mapping[str, type[AnnotateFile]] = {"annotate": AnnotateFile}
"""What `kind` may say."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves: for scripts (`summary`, `exit_code`), for Python (`manifest`) and for people (the rest)."""

    summary: Mapping[str, Any]
    exit_code: int
    manifest: Mapping[str, Any]
    table: "pa.Table | None"
    counts: Mapping[str, Mapping[str, int]]  # rows by label, by annotation
    notes: tuple[str, ...]


def load(path: str, overrides: Sequence[str] = ()) -> AnnotateFile:
    """The checked job of a file; JobError with all that is wrong with it."""
    document = jobfile.read(path, overrides)
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        raise JobError(
            f"{path}: `kind` is missing; known: {known}"
            if kind is None
            else f"{path}: {choice(f'kind: {kind!r} is not allowed', str(kind), list(KINDS))}"
        )
    return jobfile.parse(document, KINDS[kind], path)


def run(path: str, overrides: Sequence[str], watcher: Watcher, began: float | None = None) -> Outcome:
    """Run a job file to its end, or on from where an earlier run stopped; `began`: the process's start, monotonic."""
    began = time.monotonic() if began is None else began
    job = load(path, overrides)
    from pipeline.annotate import annotate  # a wrong job file is told before this is imported

    return _outcome(job, annotate(job, RayCluster(job.cluster), watcher, began))


def preview(path: str, overrides: Sequence[str], rows: int) -> "pa.Table":
    """A few annotated rows; nothing is written."""
    from pipeline.preview import preview as look

    job = load(path, overrides)
    return look(job, RayCluster(job.cluster), rows)


def plan(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What a run would do: units, rows, bytes; tokens and time estimated."""
    from pipeline.preview import plan_job

    job = load(path, overrides)
    return plan_job(job, RayCluster(job.cluster))


def retry(output: str, overrides: Sequence[str], watcher: Watcher, began: float | None = None) -> Outcome:
    """Run the quarantined rows of an output again; `-o` may change max_chars, max_tokens, errors and the cluster."""
    from pipeline.retry import MAY_CHANGE
    from pipeline.retry import retry as again

    began = time.monotonic() if began is None else began
    allowed = re.compile(rf"^(annotations\.\d+\.({'|'.join(MAY_CHANGE)})|cluster\.[\w.-]+|limits\.\w+)$")
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not allowed.match(key):
            raise JobError(
                f"-o {override}: a retry may change annotations.N.{{{', '.join(MAY_CHANGE)}}}, cluster and limits; "
                f"'{key}' decides what the other rows got"
            )
    document: dict[str, Any] = dict(planfile.load(Store.at(output)).job) | {"kind": "annotate"}
    document["output"] = {**document["output"], "path": output}
    del document["code"]  # not a setting: what the user's own task files were
    jobfile.override(document, overrides)
    job = jobfile.parse(document, AnnotateFile, output)
    return _outcome(job, again(job, RayCluster(job.cluster), watcher, began))


def _outcome(job: AnnotateJob, done: "RunOutcome") -> Outcome:
    from jobs.glance import glance

    table, counts = glance(Store.at(job.output.path), done.manifest, job)
    return Outcome(done.summary, done.exit_code, done.manifest, table, counts, done.notes)
