"""Gold: a column that holds what an annotation should have said, and how it is measured against it.

    annotations: [{name: topic, task: classify, gold: section, …}]
    -> {"topic": Measured(main="accuracy", figures={"accuracy": 0.766 [0.753, 0.779] of 4,096 rows, …}, …)}

The gold's column stands in the parts (whatever `output.columns` says), so what is measured can be measured again from
the output alone, and rows that were set aside are found in the quarantine: they were asked, and have no answer.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import metrics
from pipeline.annotator import columns_of
from pipeline.corpus.column import ColumnPath, find_dotted
from pipeline.errors import CorpusError, JobError
from pipeline.metrics.base import Kind, Measured, measure
from pipeline.metrics.libraries import library
from pipeline.output.planfile import Plan
from pipeline.output.rows import SET_ASIDE, Wanted, read_rows
from pipeline.output.storage import Store
from pipeline.tasks.base import Task

_LIBRARIES = ("scipy", "sklearn")
"""What every kind needs; found missing before anything is computed."""


_MOST_RESAMPLES, _LEAST_RESAMPLES = 1000, 200
_MOST_DRAWS = 200_000_000
"""Rows times resamples: a million rows have narrow intervals by 200 resamples, which take seconds."""


@dataclass(frozen=True, slots=True)
class Gold:
    """What one annotation is measured against."""

    annotation: str
    kind: Kind
    wanted: Wanted
    where: bool  # not every row was asked


def golds_of(tasks: Sequence[Task], schema: pa.Schema) -> list[Gold]:
    """The annotations that name gold, over rows of this schema.

    Raises CorpusError: no such column, or one of a type that cannot be compared; JobError: a task without a metric, or
    a library that is missing.
    """
    found = []
    for task in tasks:
        if task.config.gold is None:
            continue
        name = task.config.name
        others = [field for each in tasks if each is not task for field in columns_of(each)]
        try:
            found.append(_gold_of(task, pa.schema([*schema, *others])))
        except CorpusError as error:
            raise CorpusError(f"annotation '{name}': gold: {error}") from error
        except JobError as error:
            raise JobError(f"annotation '{name}': gold: {error}") from error
    return found


def gold_columns(golds: Sequence[str | None], schema: pa.Schema) -> set[str]:
    """The corpus's columns that these golds stand in."""
    found = set()
    for gold in golds:
        if gold is not None:
            try:
                found.add(find_dotted(schema, gold).names[0])
            except CorpusError:  # a column of another annotation, which stands in the parts anyway
                continue
    return found


def _gold_of(task: Task, schema: pa.Schema) -> Gold:
    name, gold = task.config.name, task.config.gold
    comparison = task.compared()
    if comparison is None:
        raise JobError(f"there is no metric for what `task: {task.config.task}` says; leave it out")
    own = {field.name: field.type for field in columns_of(task)}
    columns = {meant: f"{name}_{field}" for meant, field in comparison.columns.items()}
    columns["gold"] = gold
    kind = metrics.find(comparison.kind)(**columns, **comparison.options)
    tokens, error = f"{name}_tokens", f"{name}_error"
    paths = {each: ColumnPath((each,), own[each]) for each in (*columns.values(), tokens, error) if each in own}
    wanted = Wanted(paths | {gold: find_dotted(schema, gold)}, present=gold)
    check_comparable(kind, wanted)
    return Gold(name, kind, wanted, task.config.where is not None)


def check_comparable(kind: Kind, wanted: Wanted) -> None:
    """Refuse what could not be measured once it is computed.

    Raises JobError: columns of other types than the kind compares; a library that is missing.
    """
    check_libraries(_LIBRARIES)
    kind.left_out(pa.schema([(name, path.type) for name, path in wanted.columns.items()]).empty_table())


def check_libraries(modules: Sequence[str]) -> None:
    """Look for libraries without importing them. Raises JobError for one that is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            library(module)


def measured(gold: Gold, store: Store, plan: Plan, files: Sequence[Mapping[str, Any]]) -> Measured:
    """Measure one annotation of a finished output, whose manifest names the `files`.

    Raises JobError where no row can be judged.
    """
    rows = read_rows(store, files, partition_fields(plan), gold.wanted)
    asked = rows.table.filter(_asked(gold, rows.table)) if gold.where else rows.table
    left_out = rows.left_out() | {"`where` leaves it out": len(rows.table) - len(asked)}
    return measured_rows(gold.kind, asked, left_out)


def measured_rows(kind: Kind, table: pa.Table, left_out: Mapping[str, int], group: str | None = None) -> Measured:
    """Measure the rows of an output; `left_out` tells of those that are not in the table."""
    told = {reason: count for reason, count in left_out.items() if count}
    if not len(table):
        why = "".join(f"; {reason}: {count:,}" for reason, count in told.items())
        raise JobError(f"there is nothing to measure{why}")
    resamples = max(_LEAST_RESAMPLES, min(_MOST_RESAMPLES, _MOST_DRAWS // len(table)))
    found = measure(kind, table, resamples=resamples, group=group)
    return replace(found, tables={**found.tables, "left_out": told | found.tables["left_out"]})


def _asked(gold: Gold, table: pa.Table) -> pa.ChunkedArray:
    """Rows of which the annotation has said something, or failed to; what `where` leaves out has no tokens."""
    failed = pa.array(
        [
            failures is not None and not {gold.annotation, ""}.isdisjoint(failures)
            for failures in table[SET_ASIDE].to_pylist()
        ],
        pa.bool_(),
    )
    asked = pc.or_(table[f"{gold.annotation}_tokens"].is_valid(), failed)
    error = f"{gold.annotation}_error"
    return pc.or_(asked, table[error].is_valid()) if error in table.column_names else asked


def partition_fields(plan: Plan) -> list[pa.Field]:
    """The columns of an output that stand in its folders' names."""
    return [plan.schema.field(name) for name in plan.partition]
