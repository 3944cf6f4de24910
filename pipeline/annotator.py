"""The annotator: holds every model of a job, and turns the rows of one unit into their annotations. Without Ray.

AnnotationSpec(settings={"name": "topic", "task": "classify", …}, allow_code=False, model=PinnedModel(…), pinned=…)
annotator.annotate(table, leave_out={17}) -> Annotations(columns={"topic_label": […], "topic_score": […], …})
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import tasks
from pipeline.corpus.text import TextSource, compile_text
from pipeline.errors import CorpusmillError, ModelError
from pipeline.models.reference import PinnedModel
from pipeline.output.planfile import PinnedAnnotation
from pipeline.quarantine import Failure, Problem
from pipeline.survive import annotate_surviving
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

Running = Callable[[Sequence[int]], None]
"""Told the rows that are about to go through a model; the crash journal listens."""


@dataclass(frozen=True, slots=True)
class AnnotationSpec:
    """One annotation as it travels to an actor: plain values, so that a user's own task is found again by its path."""

    settings: Mapping[str, Any]
    allow_code: bool
    model: PinnedModel | None
    pinned: PinnedAnnotation

    def task(self) -> Task:
        """The task of this annotation, without weights."""
        kind = tasks.find(str(self.settings["task"]), allow_code=self.allow_code)
        return kind(kind.Config.model_validate(dict(self.settings)), self.model)


@dataclass(slots=True)
class Annotations:
    """What the models said of N rows: columns of N values, and the rows that failed."""

    columns: dict[str, pa.Array]
    problems: list[Problem]
    tokens: int = 0  # real tokens that went through models
    padding_tokens: int = 0
    tokens_by_annotation: dict[str, int] = field(default_factory=dict)


def columns_of(task: Task) -> list[pa.Field]:
    """The columns that an annotation adds, with its prefix, in order."""
    name = task.config.name
    added = [each.with_name(f"{name}_{each.name}") for each in task.fields()]
    added += [pa.field(f"{name}_tokens", pa.int32()), pa.field(f"{name}_truncated", pa.bool_())]
    if task.config.errors == "keep":
        added.append(pa.field(f"{name}_error", pa.string()))
    return added


class Annotator:
    """Every model of a job, loaded once; annotations that share texts have them rendered and tokenised once."""

    def __init__(self, specs: Sequence[AnnotationSpec], schema: pa.Schema) -> None:
        """Prepare the annotations over rows of this schema; `load` brings the weights."""
        self._specs = specs
        self._tasks = [spec.task() for spec in specs]
        self._sources = [compile_text(task.config.text, schema) for task in self._tasks]

    @property
    def columns(self) -> list[pa.Field]:
        """All columns that the job adds, in the order of its annotations."""
        return [column for task in self._tasks for column in columns_of(task)]

    def load(self) -> None:
        """Load each distinct model once and hand it to the tasks that use it.

        Raises ModelError where one cannot be loaded or a task cannot start with it.
        """
        held: dict[tuple[object, ...], LoadedModel] = {}
        for spec, task in zip(self._specs, self._tasks, strict=True):
            if spec.model is None or task.needs is None:
                continue
            from pipeline.models.loading import load  # torch takes seconds; a job without models needs none

            pinned = spec.pinned
            assert pinned.dtype is not None, "a pinned model has a dtype"
            key = (spec.model.digest, task.needs, pinned.dtype, pinned.device, pinned.token_budget)
            if key not in held:
                held[key] = load(
                    spec.model,
                    task.needs,
                    dtype=pinned.dtype,
                    device=pinned.device,
                    threads=pinned.threads,
                    token_budget=pinned.token_budget,
                )
            try:
                task.start(held[key])
            except CorpusmillError:
                raise
            except Exception as error:  # a user's own code may raise anything
                words = f"{type(error).__name__}: {error}"
                raise ModelError(f"annotation '{task.config.name}': its task could not start: {words}") from error

    def annotate(self, table: pa.Table, leave_out: Collection[int] = (), running: Running | None = None) -> Annotations:
        """Annotate the N rows of `table`; rows in `leave_out` are at fault already and get nulls.

        A row that fails is told in `problems`; where its annotation keeps errors, in `<name>_error` instead.
        """
        found = Annotations({}, [])
        rendered: dict[tuple[TextSource, int], _Rendered] = {}
        for task, source in zip(self._tasks, self._sources, strict=True):
            key = (source, task.config.max_chars)
            if key not in rendered:
                rendered[key] = _render(source, table, task.config.max_chars, leave_out, running)
            _annotate_one(task, rendered[key], table.num_rows, found)
        return found


@dataclass(slots=True)
class _Rendered:
    """The good texts of a unit, the row of each, and the rows whose text is at fault."""

    texts: Texts
    rows_R: list[int]
    failures: dict[int, Failure]  # by row


def _render(
    source: TextSource, table: pa.Table, max_chars: int, leave_out: Collection[int], running: Running | None
) -> _Rendered:
    values, failures = source.render(table, max_chars)
    rows_R = [row for row, value in enumerate(values) if value is not None and row not in leave_out]
    texts = Texts([value for row, value in enumerate(values) if value is not None and row not in leave_out])
    if running is not None:
        texts.running = lambda indices: running([rows_R[index] for index in indices])
    return _Rendered(texts, rows_R, {row: why for row, why in failures.items() if row not in leave_out})


def _annotate_one(task: Task, rendered: _Rendered, rows: int, found: Annotations) -> None:
    settings: AnnotationSettings = task.config
    annotation = annotate_surviving(task, rendered.texts)
    failures = dict(rendered.failures)
    failures |= {rendered.rows_R[index]: failure for index, failure in annotation.failures.items()}
    found.columns |= _over_all_rows(task, annotation, rendered.rows_R, rows)
    if settings.errors == "keep":
        errors = [f"{failures[row].reason}: {failures[row].detail}" if row in failures else None for row in range(rows)]
        found.columns[f"{settings.name}_error"] = pa.array(errors, pa.string())
    else:
        found.problems += [Problem(row, settings.name, why.reason, why.detail) for row, why in sorted(failures.items())]
    found.tokens += annotation.forward_tokens
    found.padding_tokens += annotation.padding_tokens
    found.tokens_by_annotation[settings.name] = int(annotation.tokens_R.sum())


def _over_all_rows(task: Task, annotation: Annotation, rows_R: list[int], rows: int) -> dict[str, pa.Array]:
    """The annotation's columns over all rows: rows without a good text hold null."""
    good_R = np.ones(len(rows_R), np.bool_)
    good_R[list(annotation.failures)] = False
    columns = {
        f"{task.config.name}_{each.name}": annotation.columns[each.name].cast(each.type) for each in task.fields()
    }
    columns[f"{task.config.name}_tokens"] = pa.array(annotation.tokens_R, pa.int32(), mask=~good_R)
    columns[f"{task.config.name}_truncated"] = pa.array(annotation.truncated_R, pa.bool_(), mask=~good_R)
    if len(rows_R) == rows:
        return columns
    places_N = np.full(rows, -1, np.int64)
    places_N[rows_R] = np.arange(len(rows_R))
    indices = pa.array(places_N, mask=places_N < 0)
    return {name: column.take(indices) for name, column in columns.items()}
