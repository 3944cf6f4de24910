"""One execution of a job on one output: all that it knows, and what of it travels to the stages."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pipeline.job import AnnotateJob
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt
from pipeline.output.storage import Store
from pipeline.planning import Models, added_columns, carried_columns, passes, read_plan, specs
from pipeline.profiling import Profiling
from pipeline.repeats import Repeats
from pipeline.stages import Work
from pipeline.workers import Pools


@dataclass(slots=True)
class Run:
    """One execution of a job on one output, under its lease."""

    job: AnnotateJob
    store: Store
    models: Models
    plan: Plan
    pools: Pools
    epoch: int
    run_id: str
    receipts: dict[str, Receipt]
    began: float
    notes: list[str] = field(default_factory=list)
    profiling: Profiling | None = None

    def work(self) -> Work:
        """What the stages of this run share."""
        pins = self.plan.annotations
        return Work(
            store=self.store,
            epoch=self.epoch,
            run_id=self.run_id,
            read=read_plan(self.job, self.models, self.plan),
            fragments=self.plan.fragments,
            annotations=specs(self.job, self.models, pins),
            carried=carried_columns(self.job, self.plan),
            added=added_columns(self.job, self.models),
            footer={
                "run_id": self.run_id,
                "corpusmill": version("corpusmill"),
                "models": {
                    name: {"ref": pin.ref, "digest": pin.digest, "engine": pin.engine, "dtype": pin.dtype}
                    for name, pin in pins.items()
                },
                "annotations": self.plan.job["annotations"],
            },
            token_budget={name: pin.token_budget for name, pin in pins.items()},
            pools=passes(self.job, self.models, self.plan, self.pools),
            repeats=repeats_of(self.job),
            profile=self.profiling is not None,
        )


def repeats_of(job: AnnotateJob) -> Repeats:
    """The folder as processes with another current folder find it."""
    cache = job.repeats.cache
    return Repeats(job.repeats.once, None if cache is None else str(Path(cache).expanduser().resolve()))
