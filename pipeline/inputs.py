"""What each annotation of a job reads: columns of the corpus, columns of earlier annotations, and of which rows.

    compile_inputs([translation, topic], schema) ->
        [Reads(sources={"text": TextSource("body")}, where=None, corpus={"body"}, earlier={}),
         Reads(sources={"text": TextSource("translation_translation")}, where=RowFilter("lang = 'de'"),
               corpus={"lang"}, earlier={"translation"}, after={"translation"})]

Pure: schemas and tables, no models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.column import ColumnPath, find_dotted
from pipeline.corpus.row_filter import RowFilter
from pipeline.corpus.text import TextSource, compile_text
from pipeline.errors import CorpusError, JobError
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import ColumnInput, Input, Task


@dataclass(frozen=True, slots=True)
class ColumnSource:
    """A column or nested field whose values are read as they are, as far as they are UTF-8."""

    expression: str
    path: ColumnPath

    @property
    def columns(self) -> tuple[str, ...]:
        """The top-level column that it reads."""
        return self.path.names[:1]

    def render(self, table: pa.Table, _max_chars: int) -> tuple[list[Any], dict[int, Failure]]:
        """The value of each row; null is a value, and only texts have a bound of characters."""
        column = table.column(self.path.names[0])
        if len(self.path.names) > 1:
            column = pc.struct_field(column, list(self.path.names[1:]))
        try:
            return column.to_pylist(), {}
        except UnicodeDecodeError:
            return self._one_by_one(column)

    def _one_by_one(self, column: pa.ChunkedArray) -> tuple[list[Any], dict[int, Failure]]:
        values: list[Any] = [None] * len(column)
        failures = {}
        for row in range(len(column)):
            try:
                values[row] = column[row].as_py()
            except UnicodeDecodeError as error:
                detail = f"'{self.expression}' is not UTF-8: byte 0x{error.object[error.start]:02x}"
                failures[row] = Failure(Reason.NOT_UTF8, detail)
        return values, failures


@dataclass(frozen=True, slots=True)
class SameWords:
    """The same text for every row."""

    expression: str
    columns: tuple[str, ...] = ()

    def render(self, table: pa.Table, _max_chars: int) -> tuple[list[Any], dict[int, Failure]]:
        """The text, for each row."""
        return [self.expression] * table.num_rows, {}


Source = TextSource | ColumnSource | SameWords


@dataclass(frozen=True, slots=True)
class Reads:
    """What one annotation reads."""

    sources: Mapping[str, Source]  # by the task's own names, the main one first
    where: RowFilter | None
    corpus: frozenset[str]  # columns of the corpus
    earlier: frozenset[str]  # annotations before it that its sources read
    after: frozenset[str]  # those, and the ones that `where` asks for

    def wanted(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which of the table's N rows `where` keeps; a predicate that is null keeps none."""
        if self.where is None:
            return np.ones(table.num_rows, np.bool_)
        named = table.select(list(self.where.columns))
        numbered = named.append_column("\0row", pa.array(np.arange(table.num_rows)))
        wanted_N = np.zeros(table.num_rows, np.bool_)
        wanted_N[numbered.filter(self.where.expression)["\0row"].to_numpy()] = True
        return wanted_N


def compile_inputs(
    tasks: Sequence[Task],
    columns: Sequence[Sequence[pa.Field]],
    schema: pa.Schema,
    elsewhere: Mapping[str, Sequence[pa.Field]] | None = None,
) -> list[Reads]:
    """What the tasks read of rows of this schema and of each other; `columns` are those that each of them adds.

    `elsewhere` are the columns that annotations of other pools add, by annotation; the order was checked when the job
    was planned.

    Raises CorpusError: an unknown column (one of a later annotation told as such), a type that has no text, a wrong
    predicate.
    """
    owners = {field.name: name for name, added in (elsewhere or {}).items() for field in added}
    later = {field.name: task.config.name for task, added in zip(tasks, columns, strict=True) for field in added}
    before = [field for added in (elsewhere or {}).values() for field in added if field.name not in schema.names]
    known = pa.schema([*schema, *before])
    reads = []
    for task, added in zip(tasks, columns, strict=True):
        name = task.config.name
        try:
            reads.append(_reads(task, known, owners))
        except CorpusError as error:
            raise CorpusError(f"annotation '{name}': {error}{_of_a_later_one(str(error), later, owners)}") from error
        for field in added:
            if field.name not in known.names:  # a doubled column is told by the planner
                known = known.append(field)
                owners[field.name] = name
    return reads


def _reads(task: Task, schema: pa.Schema, owners: Mapping[str, str]) -> Reads:
    sources = {name: source_of(wanted, schema) for name, wanted in task.inputs().items()}
    where = None
    if task.config.where is not None:
        from pipeline.corpus.filter import parse_filter  # most jobs have no predicate

        try:
            where = parse_filter(task.config.where, schema)
        except CorpusError as error:
            raise CorpusError(f"where: {error}") from error
    read = {column for source in sources.values() for column in source.columns}
    asked = set() if where is None else set(where.columns)
    return Reads(
        sources,
        where,
        frozenset(column for column in read | asked if column not in owners),
        frozenset(owners[column] for column in read if column in owners),
        frozenset(owners[column] for column in read | asked if column in owners),
    )


def pools_in_order(tasks: Sequence[Task], reads: Sequence[Reads]) -> tuple[str | None, ...]:
    """The pools of the tasks in the order in which a unit passes them, each once; as they first come where it may be.

    Raises JobError where annotations of two pools read each other's columns to and fro.
    """
    pool_of: dict[str, str | None] = {task.config.name: task.config.pool for task in tasks}
    waits = [
        (name, earlier)
        for name, each in zip(pool_of, reads, strict=True)
        for earlier in sorted(each.after)
        if pool_of[earlier] != pool_of[name]
    ]
    left = list(dict.fromkeys(pool_of.values()))
    order: list[str | None] = []
    while left:
        waits = [(name, earlier) for name, earlier in waits if pool_of[earlier] in left]
        waiting = {pool_of[name] for name, _ in waits}
        free = [pool for pool in left if pool not in waiting]
        if not free:
            told = ", ".join(
                f"'{name}' ({_pool(pool_of[name])}) reads '{earlier}' ({_pool(pool_of[earlier])})"
                for name, earlier in waits
            )
            raise JobError(
                f"annotations of two pools read each other's columns, and a unit passes each pool once: {told}; give "
                "one of them another `pool`"
            )
        order.append(free[0])
        left.remove(free[0])
    return tuple(order)


def _pool(name: str | None) -> str:
    return "without a pool" if name is None else f"pool '{name}'"


def source_of(wanted: Input, schema: pa.Schema) -> Source:
    """Where an input of a task comes from. Raises CorpusError: an unknown column, a type that has no text."""
    if isinstance(wanted, ColumnInput):
        return ColumnSource(wanted.path, find_dotted(schema, wanted.path))
    expression = wanted.expression
    is_template = "{" in expression or "}" in expression
    if wanted.may_be_words and not is_template and " " in expression and expression not in schema.names:
        return SameWords(expression)
    return compile_text(expression, schema)


def _of_a_later_one(message: str, later: Mapping[str, str], owners: Mapping[str, str]) -> str:
    """A hint where the column that is not known is one that an annotation further down adds."""
    for column, owner in later.items():
        if column not in owners and f"no column '{column}'" in message:
            return f"; annotation '{owner}' adds it, and it comes later: move it up"
    return ""
