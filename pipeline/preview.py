"""A look before the run: a few annotated rows, or how much there is to do and for how long. Nothing is written.

Both work in this process, without Ray: the same reader and annotator as an actor's.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.annotator import Annotator, columns_of
from pipeline.calibration import calibrated
from pipeline.corpus.apart import check_apart
from pipeline.corpus.plan import Unit
from pipeline.corpus.reader import ReadUnit, UnitReader
from pipeline.inputs import compile_inputs
from pipeline.job import AnnotateJob
from pipeline.output.layout import check_output
from pipeline.output.planfile import Plan
from pipeline.output.storage import Store
from pipeline.planning import (
    Models,
    carried_columns,
    new_plan,
    passes,
    pin_models,
    place,
    read_plan,
    specs,
    tasks_of,
    trials,
)
from pipeline.stages import with_columns
from pipeline.tasks.base import Task
from pipeline.workers import Cluster, Pools

ESTIMATE_ROWS = 256
"""Rows of the sampled unit that an estimate runs: a second or two of work."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan will cost, from one unit's rows."""

    tokens: int
    seconds: float  # of computing, with all actors; starting them comes on top
    sampled_rows: int
    notes: tuple[str, ...]  # how far annotations in int8 agree with float32 there


def preview(job: AnnotateJob, cluster: Cluster, rows: int) -> pa.Table:
    """The first `rows` rows with their annotations, as parts would hold them, and why a row would be quarantined.

    A column `quarantine` holds the reasons of the rows that failed, null elsewhere.
    """
    models, _, plan, _ = _planned(job, cluster)
    read = read_plan(job, models, plan)
    shown_too = {*read.columns, *plan.partition}  # parts have them in their path, a terminal has no path
    read = replace(read, columns=tuple(name for name in plan.schema.names if name in shown_too))
    table = _first_rows(UnitReader(read), plan, rows)
    every, _ = calibrated(specs(job, models, plan.annotations), table.table)
    annotator = Annotator(every, table.table.schema)
    annotator.load()
    found = annotator.annotate(table.table, {problem.row for problem in table.problems})
    shown = table.table.select([*carried_columns(job, plan), *plan.partition, "_file", "_row"])
    for column in annotator.columns:
        shown = shown.append_column(column, found.columns[column.name])
    reasons: dict[int, list[str]] = {}
    for problem in table.problems + found.problems:
        reasons.setdefault(problem.row, []).append(f"{problem.reason}: {problem.detail}")
    told = ["; ".join(reasons[row]) if row in reasons else None for row in range(shown.num_rows)]
    return shown.append_column("quarantine", pa.array(told, pa.string()))


def first_texts(job: AnnotateJob, cluster: Cluster, rows: int) -> tuple[Task, list[str]]:
    """The first annotation's task, without weights, and what it would read of the first `rows` rows.

    Rows whose text is at fault are left out.
    """
    models, _, plan, _ = _planned(job, cluster)
    table = _first_rows(UnitReader(read_plan(job, models, plan)), plan, rows).table
    (task, *_) = tasks_of(job, models)
    (reads,) = compile_inputs([task], [columns_of(task)], table.schema)
    values, failures = next(iter(reads.sources.values())).render(table, task.config.max_chars)
    return task, [value for row, value in enumerate(values) if row not in failures]


def plan_job(job: AnnotateJob, cluster: Cluster) -> dict[str, Any]:
    """What a run of the job would do: units, rows, bytes, models; tokens and seconds estimated from a sampled unit."""
    models, pools, plan, notes = _planned(job, cluster)
    estimate = _estimate(job, models, plan, pools)
    unreadable = [fragment for fragment in plan.fragments if fragment.problem is not None]
    return {
        "output": job.output.path,
        "files": len(plan.fragments),
        "files_unreadable": len(unreadable),
        "partitions": len({fragment.folder for fragment in plan.fragments}),
        "units": len(plan.units),
        "rows": plan.rows,
        "rows_pruned": plan.rows_pruned,
        "bytes": sum(fragment.size for fragment in plan.fragments),
        "pools": [
            {"pool": pool, "actors": workers.actors, "threads": workers.threads, "device": workers.device}
            for pool, workers in pools.items()
        ],
        "tokens_estimated": None if estimate is None else estimate.tokens,
        "seconds_estimated": None if estimate is None else round(estimate.seconds, 1),
        "rows_sampled": 0 if estimate is None else estimate.sampled_rows,
        "annotations": {
            name: {"model": pin.ref, "digest": pin.digest, "engine": pin.engine, "dtype": pin.dtype}
            for name, pin in plan.annotations.items()
        },
        "notes": [
            *notes,
            *_waiting(job, models, plan),
            *(() if estimate is None else estimate.notes),
            *(f"{each.path}: {each.problem[1]}" for each in unreadable[:5] if each.problem),
        ],
    }


def _waiting(job: AnnotateJob, models: Models, plan: Plan) -> list[str]:
    """What a trial will choose, which the estimate does not know."""
    return [
        f"{', '.join(names)}: a trial before the first unit chooses torch, by which this is judged, or openvino"
        for names in trials(job, models, plan)
    ]


def _planned(job: AnnotateJob, cluster: Cluster) -> tuple[Models, Pools, Plan, tuple[str, ...]]:
    root = Store.at(job.output.path).root
    check_apart(job.corpus, root)
    check_output(root)
    models = pin_models(job)
    pools = place(cluster, job, models)
    plan, notes = new_plan(job, models, pools)
    return models, passes(job, models, plan, pools), plan, notes


def _first_rows(reader: UnitReader, plan: Plan, rows: int) -> ReadUnit:
    """The first rows that the filter keeps, over as many units as that takes."""
    tables, problems, seen = [reader.empty()], [], 0
    for unit in plan.units:
        found = _read(reader, plan, unit)
        problems += [replace(each, row=each.row + seen) for each in found.problems]
        tables.append(found.table)
        seen += found.table.num_rows
        if seen >= rows:
            break
    table = pa.concat_tables(tables).slice(0, rows)
    return ReadUnit(table, [each for each in problems if each.row < table.num_rows], [], table.num_rows, 0)


def _estimate(job: AnnotateJob, models: Models, plan: Plan, pools: Pools) -> Estimate | None:
    """Annotate some rows of the middle unit; None where there is no row to go by."""
    reader = UnitReader(read_plan(job, models, plan))
    sampled = next((found for found in _from_the_middle(reader, plan) if found.table.num_rows), None)
    if sampled is None:
        return None
    rows = table = sampled.table.slice(0, ESTIMATE_ROWS)
    tokens, slowest_seconds = 0, 0.0  # the pools work at the same time
    every, notes = calibrated(specs(job, models, plan.annotations), rows)
    for pool, workers in pools.items():
        annotator = Annotator(every, rows.schema, [spec for spec in every if spec.pool == pool])
        annotator.load()
        annotator.annotate(table.slice(0, 8))  # the first batch pays for what is made once
        began = time.monotonic()
        found = annotator.annotate(table, {each.row for each in sampled.problems})
        slowest_seconds = max(slowest_seconds, (time.monotonic() - began) / workers.actors)
        tokens += found.tokens
        table = with_columns(table, pa.table(found.columns))
    kept = plan.rows * (sampled.table.num_rows / sampled.rows_read) if sampled.rows_read else 0.0
    scale = kept / rows.num_rows
    return Estimate(round(tokens * scale), slowest_seconds * scale, rows.num_rows, notes)


def _from_the_middle(reader: UnitReader, plan: Plan) -> Iterator[ReadUnit]:
    """Units from the middle of the plan on: the first files of a corpus are seldom like the others."""
    middle = len(plan.units) // 2
    for unit in (*plan.units[middle:], *plan.units[:middle]):
        yield _read(reader, plan, unit)


def _read(reader: UnitReader, plan: Plan, unit: Unit) -> ReadUnit:
    return reader.read(unit, {span.fragment: plan.fragments[span.fragment] for span in unit.spans})
