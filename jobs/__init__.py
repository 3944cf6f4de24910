"""What `corpusmill` does, as functions; heavy imports wait until one is called.

    from jobs import run, verify
    manifest = run("topics.yaml", ["annotations.0.dtype=float32"])
    assert not verify(manifest["output"]).faults

All raise `pipeline.errors.CorpusmillError` with a message for people.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.progress import Silent, Watcher

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.output.status import Status
    from pipeline.output.verify import Report
    from pipeline.training.standing import Standing

__all__ = ["plan", "preview", "retry", "run", "status", "verify"]


def run(
    path: str, overrides: Sequence[str] = (), watcher: Watcher | None = None, profile: bool = False
) -> Mapping[str, Any]:
    """Run a job file to its end, or on from where an earlier run stopped; the manifest of its output.

    `profile` keeps where the time of labeling went, in the output's `metadata/profile.json` and `profile.png`.
    """
    from jobs import kinds

    return kinds.run(path, overrides, watcher or Silent(), profile=profile).manifest


def preview(path: str, rows: int = 10, overrides: Sequence[str] = ()) -> "pa.Table":
    """The first rows of the corpus with their annotations; nothing is written."""
    from jobs import kinds

    return kinds.preview(path, overrides, rows)


def plan(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a run would do: units, rows, bytes; tokens and seconds, estimated."""
    from jobs import kinds

    return kinds.plan(path, overrides)


def status(output: str) -> "Status | Standing":
    """How far an output is, from what stands on disk; a Standing of a fine-tuning."""
    from pipeline.output.status import status as look
    from pipeline.output.storage import Store
    from pipeline.training.standing import is_finetuning, standing

    return standing(output) if is_finetuning(Store.at(output)) else look(output)


def verify(output: str) -> "Report":
    """Prove from what stands on disk that no row of an output is lost, doubled or damaged.

    Of a fine-tuning: that the model is the one that was judged, and its predictions are whole.
    """
    from pipeline.output.storage import Store
    from pipeline.output.verify import verify as prove
    from pipeline.training.standing import is_finetuning, proved

    return proved(output) if is_finetuning(Store.at(output)) else prove(output)


def retry(
    output: str, overrides: Sequence[str] = (), watcher: Watcher | None = None, profile: bool = False
) -> Mapping[str, Any]:
    """Run the quarantined rows of an output once more; its new manifest. `profile` as for `run`."""
    from jobs import annotate

    return annotate.retry(output, overrides, watcher or Silent(), profile=profile).manifest
