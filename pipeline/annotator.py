"""The annotator: holds every model of a job, and turns the rows of one unit into their annotations. Without Ray.

AnnotationSpec(settings={"name": "topic", "task": "classify", …}, allow_code=False, model=PinnedModel(…), pinned=…)
annotator.annotate(table, leave_out={17}) -> Annotations(columns={"topic_label": […], "topic_score": […], …})
"""

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import tasks
from pipeline.batching import TokenBudget
from pipeline.cached import annotate_with
from pipeline.errors import CorpusmillError, ModelError, OutputError
from pipeline.inputs import compile_inputs
from pipeline.models.device import WRITING, lacks, may_pack
from pipeline.models.engines import OPENVINO, TORCH
from pipeline.models.ranges import digest_of
from pipeline.models.reference import PinnedModel, on_this_node
from pipeline.output.layout import calibration_path
from pipeline.output.planfile import PinnedAnnotation
from pipeline.output.storage import Store
from pipeline.profile import FIRST_PASS, timed
from pipeline.quarantine import Problem
from pipeline.repeats import Cache, Repeats, salt
from pipeline.survive import annotate_surviving
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts
from pipeline.text.travel import packed, unpacked
from pipeline.unit_texts import Rendered, Running, UnitTexts, of_all

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

_UNDECISIVE = frozenset({"name", "text", "where", "pool", "gold", "errors", "model", "engine", "int8_agreement"})
"""Options that change nothing of what is said of a text, or that the pinned model stands for."""

_DECISIVE = ("digest", "engine", "dtype", "device", "calibration")
"""What the plan has pinned of it."""


@dataclass(frozen=True, slots=True)
class AnnotationSpec:
    """One annotation as it travels to an actor: plain values, so that a user's own task is found again by its path."""

    settings: Mapping[str, Any]
    allow_code: bool
    model: PinnedModel | None
    pinned: PinnedAnnotation
    added: tuple[pa.Field, ...] = ()  # its columns, for pools that have neither its model nor its files
    code: str | None = None  # the sha256 of a user's own task
    calibration: bytes | None = None  # what a model in int8 is quantised by

    @property
    def name(self) -> str:
        """The prefix of its columns."""
        return str(self.settings["name"])

    @property
    def pool(self) -> str | None:
        """The pool whose actors hold its model; None: the job's own."""
        pool = self.settings.get("pool")
        return None if pool is None else str(pool)

    @property
    def reads_alone(self) -> bool:
        """Whether it only reads, with an encoder of a family that is well known to us, and no code of a user's own."""
        model = self.model
        if self.code is not None or model is None:
            return self.code is None
        if model.allow_remote_code or model.gguf_file is not None:
            return False
        if self.pinned.engine == OPENVINO:  # it is converted in another process
            return True
        return may_pack(self._kind().needs, model.config)

    def decisive(self) -> dict[str, Any]:
        """What decides, besides the text, what is said of it."""
        options = {name: value for name, value in self.settings.items() if name not in _UNDECISIVE}
        remote_code = self.model is not None and self.model.allow_remote_code
        pinned = {each: getattr(self.pinned, each) for each in _DECISIVE}
        if self.pinned.calibration is None:  # the keys of caches stay what they were
            del pinned["calibration"]
        return {"options": options, "code": self.code, "remote_code": remote_code, **pinned}

    def _kind(self) -> type[Task]:
        return tasks.find(str(self.settings["task"]), allow_code=self.allow_code)

    def task(self) -> Task:
        """The task of this annotation, without weights."""
        kind = self._kind()
        return kind(kind.Config.model_validate(dict(self.settings)), self.model)

    def with_calibration(self, store: Store) -> "AnnotationSpec":
        """The same with what the plan pins of it brought from the output.

        Raises OutputError where that is gone, or not what was written there.
        """
        digest = self.pinned.calibration
        if digest is None:
            return self
        data = store.find(calibration_path(digest))
        if data is None or digest_of(data) != digest:
            raise OutputError(
                f"{calibration_path(digest)} in {store.root}, by which annotation '{self.name}' is quantised, is "
                f"{'gone' if data is None else 'not what was written there'}: restore it, or name another output.path"
            )
        return replace(self, calibration=data)

    def on_this_node(self) -> "AnnotationSpec":
        """The same with the model's files where this process runs; ModelError where they cannot be had."""
        return self if self.model is None else replace(self, model=on_this_node(self.model))


@dataclass(slots=True)
class Annotations:
    """What the models said of N rows: columns of N values, and the rows that failed."""

    columns: dict[str, pa.Array]
    problems: list[Problem]
    tokens: int = 0  # real tokens that went through models
    padding_tokens: int = 0
    tokens_by_annotation: dict[str, int] = field(default_factory=dict)
    seconds_by_annotation: dict[str, float] = field(default_factory=dict)  # in models
    repeated_by_annotation: dict[str, int] = field(default_factory=dict)  # texts of which it was known already
    lowered_budget: dict[str, int] = field(default_factory=dict)  # where memory ran out: padded tokens of a micro-batch


def columns_of(task: Task) -> list[pa.Field]:
    """The columns that an annotation adds, with its prefix, in order."""
    name = task.config.name
    added = [each.with_name(f"{name}_{each.name}") for each in task.fields()]
    added += [pa.field(f"{name}_tokens", pa.int32()), pa.field(f"{name}_truncated", pa.bool_())]
    if task.config.errors == "keep":
        added.append(pa.field(f"{name}_error", pa.string()))
    return added


class Annotator:
    """The models of a job or pool, loaded once; annotations that share texts have them rendered and tokenised once."""

    def __init__(
        self,
        specs: Sequence[AnnotationSpec],
        schema: pa.Schema,
        only: Collection[AnnotationSpec] | None = None,
        repeats: Repeats = Repeats(),  # noqa: B008 - frozen
        *,
        look: bool = True,
    ) -> None:
        """Prepare the annotations over rows of this schema; `load` brings the weights.

        `specs` are all of the job. Where `only` some are to be made here, the tables have the columns of those before;
        the models of the others are not looked for on this node; nor is any where somebody has looked (`look`). Raises
        JobError for a cache that cannot be used.
        """
        self._repeats = repeats
        self._budgets: dict[str, TokenBudget] = {}  # by annotation, of its model
        self._cache = None if repeats.cache is None else Cache(repeats.cache)
        elsewhere = {spec.name: spec.added for spec in specs if only is not None and spec not in only}
        # Tasks read the model's folder when they are made, and the driver's may be on another node.
        here = [spec for spec in specs if spec.name not in elsewhere]
        self._specs = [spec.on_this_node() for spec in here] if look else here
        self._tasks = [spec.task() for spec in self._specs]
        columns = [columns_of(task) for task in self._tasks]
        self._reads = compile_inputs(self._tasks, columns, schema, elsewhere)
        self._modules: dict[str, Any] = {}
        self._added = frozenset(column.name for added in (*elsewhere.values(), *columns) for column in added)

    @property
    def columns(self) -> list[pa.Field]:
        """All columns that it adds, in the order of the annotations."""
        return [column for task in self._tasks for column in columns_of(task)]

    @property
    def writes(self) -> bool:
        """Whether one of its models writes."""
        return any(task.needs in WRITING for task in self._tasks)

    def import_libraries(self) -> None:
        """Import torch and transformers, where a model is to be loaded; it takes seconds that are no model's."""
        if any(spec.model is not None and task.needs for spec, task in zip(self._specs, self._tasks, strict=True)):
            import pipeline.models.loading  # noqa: F401

    def load(self, apart: bool = False) -> None:
        """Load each distinct model once and hand it to the tasks that use it.

        `apart`: what takes much memory for a moment happens in another process.
        Raises ModelError where one cannot be loaded or a task cannot start with it.
        """
        held: dict[tuple[object, ...], LoadedModel] = {}
        for spec, task in zip(self._specs, self._tasks, strict=True):
            if spec.model is None or task.needs is None:
                continue
            try:
                module = task.build()
                # A module of the task's own is nobody else's.
                own = (spec.name,) if module is not None else ()
                pinned = spec.pinned
                computes = (pinned.engine, pinned.dtype, pinned.calibration, pinned.device, pinned.token_budget)
                key = (spec.model.digest, task.needs, *computes, *own)
                if key not in held:
                    with timed("weights"):
                        held[key] = self._loaded(spec, task.needs, module, apart)
                with timed(FIRST_PASS):
                    task.start(held[key])
                self._budgets[spec.name] = held[key].budget
                self._modules[spec.name] = held[key].module
            except CorpusmillError:
                raise
            except Exception as error:  # a user's own code may raise anything
                words = f"{type(error).__name__}: {error}"
                raise ModelError(f"annotation '{task.config.name}': its task could not start: {words}") from error

    def slow_here(self) -> list[str]:
        """A sentence for each annotation whose number format this node's processor computes in software.

        For `dtype: auto`: who names a format has chosen.
        """
        host = socket.gethostname()
        return [
            f"annotation '{spec.name}': `dtype: auto` became {pinned.dtype} on the driver's node, and on node {host} "
            f"it is slow, whose processor has not {needed}: have nodes alike, or begin anew with `dtype: float32`"
            for spec in self._specs
            if (pinned := spec.pinned).dtype is not None
            and spec.settings.get("dtype") == "auto"
            and (needed := lacks(pinned.dtype, pinned.device)) is not None
        ]

    def take_tokenizers(self) -> None:
        """Load the tokenizers alone, for `tokenise`; ModelError where one cannot be loaded."""
        from pipeline.models.pretrained import prepared_tokenizer

        held: dict[str, Any] = {}
        for spec, task in zip(self._specs, self._tasks, strict=True):
            if spec.model is not None and task.needs is not None:
                if spec.model.digest not in held:
                    held[spec.model.digest] = prepared_tokenizer(spec.model, threads=1)
                task.take_tokenizer(held[spec.model.digest])

    @staticmethod
    def _loaded(spec: AnnotationSpec, needs: str, module: Any, apart: bool) -> "LoadedModel":
        pinned = spec.pinned
        assert spec.model is not None
        assert pinned.dtype is not None, "a pinned model has a dtype"
        if pinned.dtype == "int8" and (needed := lacks(pinned.dtype, pinned.device)) is not None:
            raise ModelError(
                f"annotation '{spec.name}': dtype: int8 was planned on another node, and the processor of node "
                f"{socket.gethostname()} has not {needed}: have nodes alike, or set `dtype: auto`"
            )
        if module is not None:
            from pipeline.models.own import load_own

            return load_own(module, spec.model, pinned.dtype, pinned.device, pinned.threads, pinned.token_budget)
        from pipeline.models.loading import load  # torch takes seconds; a job without models needs none

        how = (pinned.dtype, pinned.device, pinned.threads, pinned.token_budget, pinned.engine or TORCH)
        return load(spec.model, needs, *how, calibration=spec.calibration, apart=apart)

    def module(self, name: str) -> Any:
        """The torch module of an annotation's model, once it is loaded."""
        return self._modules[name]

    def texts(self, table: pa.Table, leave_out: Collection[int] = ()) -> list[tuple[Task, Texts]]:
        """What each annotation reads of the N rows of `table`; none of one that reads what another adds."""
        unit = UnitTexts(table, self._added, leave_out, None, False, self._repeats.once)
        return [
            (task, unit.texts(task, unit.rendered(task, reads)))
            for task, reads in zip(self._tasks, self._reads, strict=True)
            if not reads.after
        ]

    def tokenise(self, table: pa.Table, leave_out: Collection[int] = ()) -> pa.Table:
        """Tokens of the N rows of `table`, for the `annotate` of another process; it has the tokenizers.

        Texts that an earlier annotation adds are not there yet.
        """
        offsets = any(task.reads_offsets for task in self._tasks)
        unit = UnitTexts(table, self._added, leave_out, None, offsets, self._repeats.once)
        found: dict[str, tuple[list[int], Sequence[Any]]] = {}
        for task, reads in zip(self._tasks, self._reads, strict=True):
            if not reads.after:
                rendered = unit.rendered(task, reads)
                texts = unit.texts(task, rendered)
                task.tokenise(texts)
                found |= {name: (rendered.firsts_U, tokens) for name, tokens in texts.tokenised.items()}
        return packed(found, table.num_rows)

    def annotate(
        self,
        table: pa.Table,
        leave_out: Collection[int] = (),
        running: Running | None = None,
        tokens: pa.Table | None = None,
    ) -> Annotations:
        """Annotate the N rows of `table`; rows in `leave_out` are at fault already and get nulls.

        `tokens` are what another process has found ahead.

        A row that fails is told in `problems`; where its annotation keeps errors, in `<name>_error` instead. A row that
        an annotation's `where` leaves out, or that failed in one that it reads, holds nulls.
        """
        found = Annotations({}, [])
        offsets = any(task.reads_offsets for task in self._tasks)
        ahead = {} if tokens is None else unpacked(tokens)
        unit = UnitTexts(table, self._added, leave_out, running, offsets, self._repeats.once, ahead)
        for spec, task, reads in zip(self._specs, self._tasks, self._reads, strict=True):
            cache = self._cache if spec.model is not None else None
            _annotate_one(spec, task, unit.rendered(task, reads), unit, found, cache)
        lowered = {id(budget): budget.told() for budget in self._budgets.values()}  # several may share one
        for name, budget in self._budgets.items():
            if (tokens_at_once := lowered[id(budget)]) is not None:
                found.lowered_budget[name] = tokens_at_once
        return found


def _annotate_one(
    spec: AnnotationSpec, task: Task, rendered: Rendered, unit: UnitTexts, found: Annotations, cache: Cache | None
) -> None:
    settings: AnnotationSettings = task.config
    with timed("annotate", annotation=settings.name):
        if cache is None:
            annotation, computed = annotate_surviving(task, unit.texts(task, rendered)), len(rendered.firsts_U)
        else:
            annotation, computed = annotate_with(cache, salt(spec.decisive()), task, rendered, unit)
    annotation = of_all(annotation, rendered.which_R)
    failures = dict(rendered.failures)
    failures |= {rendered.rows_R[index]: failure for index, failure in annotation.failures.items()}
    columns = _over_all_rows(task, annotation, rendered.rows_R, unit.rows)
    if settings.errors == "keep":
        errors = [
            f"{failures[row].reason}: {failures[row].detail}" if row in failures else None for row in range(unit.rows)
        ]
        columns[f"{settings.name}_error"] = pa.array(errors, pa.string())
    else:
        found.problems += [Problem(row, settings.name, why.reason, why.detail) for row, why in sorted(failures.items())]
    unit.add(columns)
    found.columns |= columns
    found.tokens += annotation.forward_tokens
    found.padding_tokens += annotation.padding_tokens
    found.tokens_by_annotation[settings.name] = int(annotation.tokens_R.sum())
    found.seconds_by_annotation[settings.name] = annotation.model_seconds
    found.repeated_by_annotation[settings.name] = len(rendered.rows_R) - computed


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
