"""What a plan leaves open until the first unit: which engine computes, what int8 is quantised by, in which versions.

    calibrate(run, orders, watcher)         # `dtype: int8`
    choose_engines(run, orders, watcher)    # `engine: auto`, where a trial repays itself; of int8, quantised ones
    pin_versions(run, watcher)

Ray runs already; what is pinned decides for all units, of this execution and of those that go on with it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from pipeline.calibration import Answer, calibrate_units, can_judge, exact_units, judge, round_units
from pipeline.corpus.plan import Unit
from pipeline.errors import CorpusmillError, RunError, WorkerDiedError
from pipeline.output import planfile
from pipeline.planning import trials
from pipeline.progress import Watcher
from pipeline.run import Run
from pipeline.stages import Order
from pipeline.trial import decided, try_out
from pipeline.versions import computing, differing
from pipeline.workers import Workers, section

CALIBRATIONS = 3
"""Processes that may die while they calibrate an annotation, each by other rows."""


def choose_engines(run: Run, orders: Sequence[Order], watcher: Watcher) -> None:
    """Try out what the plan leaves to a trial, and pin what it says before anything is computed.

    A trial that fails leaves torch: it ends no run.
    """
    for names in trials(run.job, run.models, run.plan):
        from pipeline.stream import on_a_worker

        watcher.phase(f"trying engines for {', '.join(names)}")
        pool = next(each.pool for each in run.job.annotations if each.name == names[0])
        units = sorted((order.unit for order in orders), key=lambda unit: -unit.rows)  # the first ones are small
        try:
            tried = on_a_worker(try_out, run.work(), units, names, like=run.pools[pool])
        except CorpusmillError as error:
            tried = ()
            run.notes.append(f"annotation '{names[0]}': the trial of engines failed, so torch computes it: {error}")
            watcher.note(run.notes[-1])
        run.plan = replace(run.plan, annotations=decided(run.plan.annotations, names, tried))
        planfile.save(run.store, run.plan)


def calibrate(run: Run, orders: Sequence[Order], watcher: Watcher) -> None:
    """Find what models in int8 are quantised by, where the plan does not know yet, and pin it there.

    Where no row could be annotated, bfloat16 is pinned: the units come to their end as they do without int8. Raises
    JobError where quantising a model would lose more than the job allows, RunError where process after process dies.
    """
    for each in run.job.annotations:
        pin = run.plan.annotations[each.name]
        if pin.dtype != "int8" or pin.calibration is not None:
            continue
        watcher.phase(f"calibrating {each.name}")
        found = _calibration(run, [order.unit for order in orders], each.name, each.pool)
        if found is None:
            pin = replace(pin, dtype="bfloat16")
            told = ": there is no row to calibrate it by, of all that were read, so bfloat16 computes it"
        else:
            digest, agrees, engine = found
            pin = replace(pin, calibration=digest, agreement=agrees.figure, engine=engine)
            told = f", beside float32: {agrees}"
        run.plan = replace(run.plan, annotations={**run.plan.annotations, each.name: pin})
        planfile.save(run.store, run.plan)
        run.notes.append(f"annotation '{each.name}' in int8{told}")
        watcher.note(run.notes[-1])


def pin_versions(run: Run, watcher: Watcher) -> None:
    """Pin which versions compute, and tell where rows of this output are of others too; that refuses no run."""
    models = [pin for pin in run.plan.annotations.values() if pin.digest is not None]
    if not models:
        return
    now = computing({pin.engine for pin in models})
    before = run.plan.computed_by or ({"corpusmill": run.plan.corpusmill},)  # an older one, which told no more
    every = (now,) if not run.receipts else before if now in before else (*before, now)
    if every != run.plan.computed_by:
        run.plan = replace(run.plan, computed_by=every)
        planfile.save(run.store, run.plan)
    if len(every) > 1:
        run.notes.append(
            f"rows of this output are computed by several versions ({differing(every)}), and may differ in their last "
            "bits from those of one"
        )
        watcher.note(run.notes[-1])


def _calibration(run: Run, units: list[Unit], name: str, pool: str | None) -> Answer | None:
    """As `calibrate_units`, by other rows where those killed the process."""
    like = run.pools[pool]
    for attempt in range(CALIBRATIONS):
        try:
            return _attempt(run, units, name, attempt, like)
        except WorkerDiedError as error:
            died = error
    raise RunError(
        f"the process that calibrated annotation '{name}' in int8 died {CALIBRATIONS} times, by other rows each time, "
        f"most likely for want of memory; ask for fewer actors ({section(pool)}.actors, now {like.actors}), or set "
        "`dtype: bfloat16`"
    ) from died


def _attempt(run: Run, units: list[Unit], name: str, attempt: int, like: Workers) -> Answer | None:
    """By two processes at once, where there will be as many actors.

    Two threads in one would do it as well on idle cores, but wait for each other where another program has one of them:
    117 s on two cores instead of 15.
    """
    from pipeline.stream import on_a_worker, on_workers

    given = (run.work(), units, name, attempt)
    if like.actors > 1:
        halves = [partial(half, *given) for half in (round_units, exact_units)]
        rounded, wanted = on_workers(halves, like=like)
        if rounded is None:
            return None
        if can_judge(run.work(), name, rounded, wanted):
            return judge(run.work(), name, rounded, wanted)
    return on_a_worker(calibrate_units, *given, like=like)
