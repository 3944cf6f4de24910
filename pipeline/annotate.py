"""The main road: a corpus becomes an output, unit by unit, and whatever happens on the way, no row is lost or doubled.

job -> models pinned -> plan (the old one, where this output has one) -> units without a receipt
    -> what the plan leaves to a worker: engines, int8
    -> Ray Data: read, annotate, commit -> receipts -> manifest, last
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.choosing import calibrate, choose_engines, pin_versions
from pipeline.corpus.apart import check_apart
from pipeline.errors import CorpusmillError, Interrupted, JobError, RunError
from pipeline.gold import golds_of, measured
from pipeline.job import AnnotateJob
from pipeline.metrics.base import Measured
from pipeline.output import manifest as manifests
from pipeline.output import planfile, receipts
from pipeline.output.layout import MANIFEST, RECEIPTS, check_output
from pipeline.output.lease import Lease, sweep
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt
from pipeline.output.storage import Store
from pipeline.planning import (
    Models,
    as_pinned,
    changes,
    check_unchanged,
    corpus_notes,
    new_plan,
    pin_models,
    place,
    tasks_of,
    with_gold_of,
)
from pipeline.profiling import Profiling
from pipeline.progress import Watcher
from pipeline.repeats import Cache
from pipeline.run import Run, repeats_of
from pipeline.stages import Order
from pipeline.summary import Pace, Quarantine, Startup, Tally, lowered_budgets, over_limit
from pipeline.workers import Cluster, Pools

OVER_LIMIT = 3
"""Exit code of a run that is done, but with more in the quarantine than the job allows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run leaves for its caller; `summary` is what `--json` prints."""

    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    exit_code: int
    notes: tuple[str, ...]


def annotate(
    job: AnnotateJob, cluster: Cluster, watcher: Watcher, began: float | None = None, profile: bool = False
) -> Outcome:
    """Run a job to its end, or on from where an earlier run of it stopped.

    `began` is the monotonic second at which the process started, for the summary. `profile` keeps where the time of
    this execution went, as a trace and a picture, in `metadata/`.

    Raises JobError and its kinds before anything is computed, RunError half-way, Interrupted on Ctrl-C.
    """
    began = time.monotonic() if began is None else began
    profiling = Profiling(watcher, began) if profile else None
    watcher = watcher if profiling is None else profiling.phases
    watcher.phase("planning")
    store = Store.at(job.output.path)
    check_apart(job.corpus, store.root)
    check_output(store.root)
    if (cache := repeats_of(job).cache) is not None:
        Cache(cache)  # one that cannot be used is told before anything is computed
    begun = planfile.load(store) if planfile.exists(store) else None
    models = pin_models(job, begun)
    pools = place(cluster, job, models)
    # A job that is refused leaves no folder behind, so it is planned before anything is written.
    fresh = new_plan(job, models, pools) if begun is None else None
    with Lease.acquire(store, run_id := new_run_id()) as lease:
        run = _open(job, models, store, pools, fresh, lease.epoch, run_id, began)
        run.profiling = profiling
        for note in run.notes:
            watcher.note(note)
        orders = [Order(unit) for unit in run.plan.units if unit.id not in run.receipts]
        skipped = len(run.plan.units) - len(orders)
        tally = compute(run, orders, cluster, watcher)
        return finish(run, tally, skipped, watcher)


def _open(
    job: AnnotateJob,
    models: Models,
    store: Store,
    pools: Pools,
    fresh: tuple[Plan, tuple[str, ...]] | None,
    epoch: int,
    run_id: str,
    began: float,
) -> Run:
    """Take the plan that this output was begun with, else a fresh one; clear what killed runs left."""
    standing, damaged = receipts.load_all(store)
    plan = planfile.load(store) if planfile.exists(store) else None
    begun = bool(standing or damaged) or store.exists(MANIFEST)
    if plan is not None and (begun or not changes(job, models, plan)):
        check_unchanged(job, models, plan)
        notes = corpus_notes(job, plan)
        if (renewed := with_gold_of(plan, job)) is not plan:
            plan = renewed
            planfile.save(store, plan)
    else:  # there is nothing yet that a changed job could spoil
        plan, told = fresh or new_plan(job, models, pools)
        notes = list(told)
        planfile.save(store, plan)
    for why in damaged:  # a receipt that cannot be trusted is none: its unit is computed again
        notes.append(f"{why}; its unit is computed again")
        store.delete(why.split(":")[0])
    notes += sweep(store, standing, epoch)
    return Run(job, store, models, plan, as_pinned(plan, pools), epoch, run_id, standing, began, notes)


def compute(run: Run, orders: list[Order], cluster: Cluster, watcher: Watcher) -> Tally:
    """Send the orders through Ray, and take their receipts in."""
    actors = sum(workers.actors for workers in run.pools.values())
    tally = Tally(
        units_total=len(run.plan.units),
        rows_total=run.plan.rows,
        began=time.monotonic(),
        quarantine=Quarantine(run.job.limits, run.plan),
        pace=Pace(actors),
        startup=(startup := Startup(run.began, time.time() - time.monotonic())),
    )
    again = {order.unit.id for order in orders}
    tally.stands(receipt for unit, receipt in run.receipts.items() if unit not in again)
    if not orders:
        return tally
    try:
        _check_limit(run, tally)
        watcher.phase(f"starting Ray and {actors} actors")
        startup.planned = time.monotonic()
        with cluster.connected(run.work().imports):
            startup.connected = time.monotonic()
            calibrate(run, orders, watcher)
            choose_engines(run, orders, watcher)
            pin_versions(run, watcher)
            startup.chosen = time.monotonic()
            watcher.phase("annotating")
            for receipt, told in _receipts(run, orders):
                tally.came(receipt, run.receipts.get(receipt.unit), time.monotonic(), told)
                run.receipts[receipt.unit] = receipt
                for slow in set(told.get("slow") or ()).difference(run.notes):  # on one node as on another, once each
                    run.notes.append(slow)
                    watcher.note(slow)
                watcher.advance(tally.snapshot(time.monotonic()))
                _check_limit(run, tally)
    except KeyboardInterrupt:
        committed = len(run.store.list(RECEIPTS))  # also those whose word was still on its way
        raise Interrupted(
            f"interrupted: {committed} of {tally.units_total} units are committed; the same command goes on"
        ) from None
    except RunError as error:
        if (logs := cluster.log_folder()) is not None:
            error.add_note(f"Ray's own logs lie in {logs}")
        raise
    except _TooManyQuarantined:
        watcher.note(
            f"stopped early: {tally.quarantine.rows} rows are quarantined, limits.max_quarantined is "
            f"{run.job.limits.max_quarantined}; with a higher one the same command goes on"
        )
    return tally


class _TooManyQuarantined(Exception):  # noqa: N818 - never leaves this module
    """The limit cannot be kept any more."""


def _check_limit(run: Run, tally: Tally) -> None:
    """Stop a run that may stop early and has to."""
    if run.job.limits.stop_early and tally.quarantine.over_limit:
        raise _TooManyQuarantined


def _receipts(run: Run, orders: list[Order]) -> Iterator[tuple[Receipt, Mapping[str, Any]]]:
    """Receipts as they are committed; the first fatal word of any stage ends the run."""
    from pipeline.stream import stream_with_suspects  # Ray: a finished run needs none

    for told in stream_with_suspects(orders, run.work()):
        if run.profiling is not None:
            run.profiling.took(told)
        if told["state"] == "fatal":
            raise _error_of(told)
        if told["state"] == "kept":  # a retry that could read less than before
            continue
        receipt = receipts.load(run.store, told["unit"])
        assert receipt is not None, "a commit that ended well has left its receipt"
        yield receipt, told


def _error_of(told: Mapping[str, Any]) -> Exception:
    """The error that a stage met, as the kind it was; one that is no kind of ours is a fault of ours."""
    kinds: dict[str, type[CorpusmillError]] = {}
    waiting: list[type[CorpusmillError]] = [CorpusmillError]
    while waiting:
        kind = waiting.pop()
        kinds[kind.__name__] = kind
        waiting += kind.__subclasses__()
    return kinds.get(told["kind"], RuntimeError)(told["message"])


def finish(run: Run, tally: Tally, skipped: int, watcher: Watcher) -> Outcome:
    """Measure and write the manifest where every unit has its receipt, and sum up."""
    complete = all(unit.id in run.receipts for unit in run.plan.units)
    manifest = manifests.build(run.store, run.plan, run.receipts)
    metrics = _metrics(run, manifest["files"], watcher) if complete else {}
    if metrics:
        manifest["metrics"] = {name: each.to_json() for name, each in metrics.items()}
    if complete:
        manifests.save(run.store, manifest)
    for name, (tokens, units) in lowered_budgets(run.receipts.values(), run.plan).items():
        planned = run.plan.annotations[name].token_budget
        run.notes.append(
            f"annotation '{name}': memory ran out, so micro-batches of {units} of {len(run.plan.units)} units had "
            f"{tokens:,} tokens at most instead of {planned:,}; their receipts tell"
        )
        watcher.note(run.notes[-1])
    over = over_limit(run.job.limits, run.receipts.values(), run.plan)
    if not complete and not (over and run.job.limits.stop_early):
        missing = sum(unit.id not in run.receipts for unit in run.plan.units)
        raise RunError(f"{missing} of {len(run.plan.units)} units came to no end; the same command goes on")
    summary = _summary(run, tally, skipped, metrics)
    if run.profiling is not None:
        summary["profile"] = run.profiling.written(run.store, run.run_id, summary["units_done"], skipped)
    return Outcome(summary, manifest, OVER_LIMIT if over else 0, tuple(run.notes))


def _metrics(run: Run, files: list[dict[str, Any]], watcher: Watcher) -> dict[str, Measured]:
    """What is measured of each annotation that names gold; what cannot be is told, and ends no run."""
    found = {}
    for gold in golds_of(tasks_of(run.job, run.models), run.plan.schema):
        watcher.phase(f"measuring {gold.annotation}")
        try:
            found[gold.annotation] = measured(gold, run.store, run.plan, files)
        except JobError as error:
            run.notes.append(f"annotation '{gold.annotation}': gold: {error}")
            watcher.note(run.notes[-1])
    return found


def _summary(run: Run, tally: Tally, skipped: int, metrics: Mapping[str, Measured]) -> dict[str, Any]:
    """The one object that `--json` prints: rows of the whole output, tokens and seconds of this run."""
    sums = receipts.totals(run.receipts)
    pace, now = tally.pace, time.monotonic()
    return {
        "run_id": run.run_id,
        "output": run.job.output.path,
        "rows_in": sums["rows_read"] + run.plan.rows_pruned,
        "rows_out": sums["rows_out"],
        "rows_filtered": sums["rows_filtered"] + run.plan.rows_pruned,
        "rows_quarantined": sums["rows_quarantined"],
        "reasons": sums["reasons"],
        "units_total": len(run.plan.units),
        "units_done": tally.units_done - skipped,
        "units_skipped": skipped,
        "units_quarantined": sums["units_quarantined"],
        "tokens": tally.tokens,
        "padding_tokens": tally.padding_tokens,
        "seconds": round(now - run.began, 3),
        "seconds_to_first_receipt": None if pace.first is None else round(pace.first - run.began, 3),
        "startup": None if tally.startup is None else tally.startup.seconds(),
        "tokens_per_second": pace.tokens_per_second(),
        "computed_by": list(run.plan.computed_by),
        "annotations": {
            name: {
                "model": pin.ref,
                "digest": pin.digest,
                "engine": pin.engine,
                "dtype": pin.dtype,
                "token_budget": pin.token_budget,
                **({} if pin.agreement is None else {"agreement": pin.agreement}),
                "tokens": tally.tokens_by_annotation.get(name, 0),
                "repeated": tally.repeated_by_annotation.get(name, 0),
                "model_seconds": round(tally.seconds_by_annotation.get(name, 0.0), 3),
            }
            | ({"tried": [asdict(each) for each in pin.tried]} if pin.tried else {})
            | ({"metrics": metrics[name].to_json()["figures"]} if name in metrics else {})
            for name, pin in run.plan.annotations.items()
        },
    }


def new_run_id() -> str:
    """`20260102-030405-9f0c3a`: sortable by eye, and unlike any other even when the clock was set back."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
