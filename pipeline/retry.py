"""Retry: quarantined rows run once more; what is recovered goes into new parts, and a new receipt decides.

Repaired files are read as they are now; `max_chars`, `max_tokens` and `errors` may be changed for the occasion.
"""

import time

from pipeline.annotate import Outcome, compute, finish, new_run_id
from pipeline.errors import ModelError, OutputError
from pipeline.job import AnnotateJob
from pipeline.output import planfile, receipts
from pipeline.output.lease import Lease, sweep
from pipeline.output.storage import Store
from pipeline.planning import as_pinned, models_changed, pin_models, place
from pipeline.profiling import Profiling
from pipeline.progress import Watcher
from pipeline.run import Run
from pipeline.stages import Order
from pipeline.workers import Cluster

MAY_CHANGE = ("max_chars", "max_tokens", "errors")
"""Options of an annotation that a retry may change: they decide whether a row can be annotated, not what it gets."""


def retry(
    job: AnnotateJob, cluster: Cluster, watcher: Watcher, began: float | None = None, profile: bool = False
) -> Outcome:
    """Run the quarantined rows of the job's output again.

    `job` is the one that the plan holds, with what may change changed. `profile` as for `annotate`: of this execution.

    Raises OutputError where there is no finished output, ModelError where a model is not what it was.
    """
    began = time.monotonic() if began is None else began
    profiling = Profiling(watcher, began) if profile else None
    watcher = watcher if profiling is None else profiling.phases
    watcher.phase("planning")
    store = Store.at(job.output.path)
    plan = planfile.load(store)
    models = pin_models(job, plan)
    if changed := models_changed(models, plan):
        raise ModelError(f"{job.output.path} was annotated by other weights; restore them:\n  " + "\n  ".join(changed))
    with Lease.acquire(store, run_id := new_run_id()) as lease:
        standing, _ = receipts.load_all(store)
        unfinished = sum(unit.id not in standing for unit in plan.units)
        if unfinished:
            raise OutputError(
                f"{job.output.path} is not finished: {unfinished} of {len(plan.units)} units have no receipt; "
                "run its job to the end, then retry"
            )
        notes = sweep(store, standing, lease.epoch)
        pools = as_pinned(plan, place(cluster, job, models))
        run = Run(job, store, models, plan, pools, lease.epoch, run_id, standing, began, list(notes), profiling)
        orders = [Order(unit, retry=True) for unit in plan.units if standing[unit.id].reasons]
        tally = compute(run, orders, cluster, watcher)
        return finish(run, tally, len(plan.units) - len(orders), watcher)
