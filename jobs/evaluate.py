"""The evaluate job as the command line and Python call it: from a job file to what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings
from jobs import jobfile
from pipeline.evaluation import EvaluateJob
from pipeline.progress import Watcher

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType


class EvaluateFile(EvaluateJob):
    """A whole job file of kind `evaluate`."""

    kind: Literal["evaluate"]

    cluster: ClusterSettings = ClusterSettings()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation leaves: for scripts (`summary`), for Python (`manifest`: metrics.json) and for people."""

    summary: Mapping[str, Any]
    exit_code: int
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """Nothing: what could not be annotated counts as wrong."""
        return None

    def shown(self, width: int) -> "list[RenderableType]":
        """The figures with their intervals, beside the baselines'; the best and the worst labels; where it all lies."""
        from jobs.figures import best_and_worst, evaluated, measured

        tables = self.manifest["tables"]
        labels = best_and_worst(tables, width)
        return [
            measured({"": self.summary["metrics"]}, self.summary["baselines"]),
            *([] if labels is None else [labels]),
            evaluated(self.summary, tables),
        ]


def parse(document: Mapping[str, Any], source: str) -> EvaluateFile:
    """The checked job; `source` is the file that messages name. Raises JobError with all that is wrong with it."""
    return jobfile.parse(document, EvaluateFile, source)


def run(document: Mapping[str, Any], source: str, watcher: Watcher, began: float) -> Outcome:
    """Run an evaluation to its end, or on from where an earlier run stopped."""
    job = parse(document, source)
    cluster = RayCluster(job.cluster)
    with cluster.prepared(["pipeline.stream", "torch"]):
        from pipeline.evaluation import evaluate_job

        done = evaluate_job(job, cluster, watcher, began)
    return Outcome(done.summary, done.exit_code, done.report, done.notes)


def preview(document: Mapping[str, Any], source: str, rows: int) -> "pa.Table":
    """A few rows with what is right and what the model says; nothing is written."""
    job = parse(document, source)
    from pipeline.evaluation import predictions_of
    from pipeline.preview import preview as look

    return look(predictions_of(job), RayCluster(job.cluster), rows)


def plan(document: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the annotating of the rows will take."""
    job = parse(document, source)
    from pipeline.evaluation import predictions_of
    from pipeline.preview import plan_job

    return plan_job(predictions_of(job), RayCluster(job.cluster))
