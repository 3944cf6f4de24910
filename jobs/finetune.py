"""The finetune job as the command line and Python call it: from a job file to what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cluster.connect import RayCluster
from cluster.placement import TrainClusterSettings
from jobs import jobfile
from pipeline.progress import Watcher
from pipeline.training.job import FinetuneJob

if TYPE_CHECKING:
    from rich.console import RenderableType


class FinetuneFile(FinetuneJob):
    """A whole job file of kind `finetune`."""

    kind: Literal["finetune"]

    cluster: TrainClusterSettings = TrainClusterSettings()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fine-tuning leaves: for scripts (`summary`, `exit_code`), for Python (`manifest`) and for people."""

    summary: Mapping[str, Any]
    exit_code: int
    manifest: Mapping[str, Any]
    tables: Mapping[str, Any]  # of metrics.json: what each label came to
    notes: tuple[str, ...]

    @property
    def warning(self) -> str | None:
        """Why the model was not promoted."""
        if not self.exit_code:
            return None
        return f"the model is not promoted: {'; '.join(self.summary['gate']['reasons'])}"

    def shown(self, width: int) -> "list[RenderableType]":
        """The figures beside the baselines', the best and the worst labels, and what became of the model."""
        from jobs.figures import best_and_worst, measured
        from jobs.trained import trained

        parts: list[RenderableType] = []
        if self.summary["metrics"]:
            parts.append(measured({"": self.summary["metrics"]}, self.summary["baselines"]))
        labels = best_and_worst(self.tables, width)
        return [*parts, *([] if labels is None else [labels]), trained(self.summary)]


def parse(document: Mapping[str, Any], source: str) -> FinetuneFile:
    """The checked job; `source` is the file that messages name. Raises JobError with all that is wrong with it."""
    return jobfile.parse(document, FinetuneFile, source)


def run(document: Mapping[str, Any], source: str, watcher: Watcher, began: float) -> Outcome:
    """Run a fine-tuning to its end, or on from where an earlier run stopped."""
    job = parse(document, source)
    from pipeline.finetune import finetune

    done = finetune(job, RayCluster(job.cluster), watcher, began)
    return Outcome(done.summary, done.exit_code, done.manifest, done.tables, done.notes)
