"""The annotate job as the command line and Python call it: from a job file to what came of it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings
from jobs import jobfile
from pipeline.errors import JobError
from pipeline.job import AnnotateJob
from pipeline.output import planfile
from pipeline.output.storage import Store
from pipeline.progress import Watcher

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from pipeline.annotate import Outcome as RunOutcome


PROFILES = True
"""A run can tell where its time went."""


class AnnotateFile(AnnotateJob):
    """A whole job file of kind `annotate`."""

    kind: Literal["annotate"]

    cluster: ClusterSettings = ClusterSettings()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves: for scripts (`summary`, `exit_code`), for Python (`manifest`) and for people (the rest)."""

    summary: Mapping[str, Any]
    exit_code: int
    manifest: Mapping[str, Any]
    table: "pa.Table | None"
    counts: Mapping[str, Mapping[str, int]]  # rows by label, by annotation
    notes: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """That more is quarantined than the job allows."""
        if not self.exit_code:
            return None
        rows = f"{self.summary['rows_quarantined']:,} of {self.summary['rows_in']:,} rows are quarantined"
        return f"{rows}, more than limits.max_quarantined allows"

    def shown(self, width: int) -> "list[RenderableType]":
        """Some rows, how often each label came, how good they are, and how to go on."""
        from jobs.figures import measured
        from jobs.summary import finished, label_counts
        from jobs.table import few_rows

        parts: list[RenderableType] = []
        if self.table is not None and self.table.num_rows:
            parts.append(few_rows(self.table, list(self.summary["annotations"]), width))
        if self.counts:
            parts.append(label_counts(self.counts, width))
        metrics = {name: each["metrics"] for name, each in self.summary["annotations"].items() if "metrics" in each}
        if metrics:
            parts.append(measured(metrics))
        return [*parts, finished(self.summary)]


def parse(document: Mapping[str, Any], source: str) -> AnnotateFile:
    """The checked job; `source` is the file that messages name. Raises JobError with all that is wrong with it."""
    return jobfile.parse(document, AnnotateFile, source)


def run(document: Mapping[str, Any], source: str, watcher: Watcher, began: float, profile: bool = False) -> Outcome:
    """Run a job to its end, or on from where an earlier run stopped; `profile` keeps where the time went."""
    job = parse(document, source)
    cluster = RayCluster(job.cluster)
    with cluster.prepared(_imports(job)):
        from pipeline.annotate import annotate  # a wrong job file is told before this is imported

        done = annotate(job, cluster, watcher, began, profile)
    return _outcome(job, done)


def _imports(job: AnnotateFile) -> list[str]:
    """What the workers of a run import, as far as the job tells."""
    return ["pipeline.stream", *(["torch"] if any(each.model is not None for each in job.annotations) else [])]


def preview(document: Mapping[str, Any], source: str, rows: int) -> "pa.Table":
    """A few annotated rows; nothing is written."""
    job = parse(document, source)
    from pipeline.preview import preview as look

    return look(job, RayCluster(job.cluster), rows)


def plan(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What a run would do: units, rows, bytes; tokens and time estimated."""
    job = parse(document, source)
    from pipeline.preview import plan_job

    return plan_job(job, RayCluster(job.cluster))


def retry(
    output: str, overrides: Sequence[str], watcher: Watcher, began: float | None = None, profile: bool = False
) -> Outcome:
    """Run the quarantined rows of an output again; `-o` may change max_chars, max_tokens, errors and the cluster.

    `profile` keeps where the time of it went.
    """
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
    job = parse(document, output)
    cluster = RayCluster(job.cluster)
    with cluster.prepared(_imports(job)):
        done = again(job, cluster, watcher, began, profile)
    return _outcome(job, done)


def _outcome(job: AnnotateJob, done: "RunOutcome") -> Outcome:
    from jobs.glance import glance

    table, counts = glance(Store.at(job.output.path), done.manifest, job)
    return Outcome(done.summary, done.exit_code, done.manifest, table, counts, done.notes)
