"""From a job to its plan: look at the corpus and the models, check that each annotation is possible, cut units.

Everything that can be wrong with a job is found here, before anything is computed.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileSystem

from pipeline.agreement import can_compare
from pipeline.annotator import AnnotationSpec, columns_of
from pipeline.corpus.identity import IDENTITY
from pipeline.corpus.listing import file_system
from pipeline.corpus.plan import Fragment, UnitBounds, plan_units
from pipeline.corpus.reader import ReadPlan
from pipeline.corpus.sample import choose, choose_from
from pipeline.corpus.source import Corpus, CorpusSettings, list_files, open_corpus
from pipeline.errors import CorpusError, JobError, OutputError, PlacementError
from pipeline.gold import gold_columns, golds_of
from pipeline.inputs import compile_inputs, pools_in_order
from pipeline.job import AnnotateJob
from pipeline.models.device import WRITING, default_budget, may_pack, resolve_dtype
from pipeline.models.engines import AUTO, resolve_engine
from pipeline.models.inspection import DEFAULT_WINDOW_TOKENS
from pipeline.models.reference import ModelSettings, PinnedModel, at_commit, pin
from pipeline.output.planfile import VERSION as PLAN_VERSION
from pipeline.output.planfile import PinnedAnnotation, Plan, differences
from pipeline.tasks import find
from pipeline.tasks.base import OWN_MODULE, AnnotationSettings, Task
from pipeline.tasks.window import WindowTask
from pipeline.trial import Expected, group, may_choose, repays
from pipeline.workers import Cluster, Device, Pools, Workers, section

_BYTES_OF_A_TOKEN = 4
"""Of a row, uncompressed: at most so many tokens are in it, as not all columns are read."""


@dataclass(frozen=True, slots=True)
class Models:
    """The pinned model of each annotation, by the annotation's name; None where its task needs none."""

    by_annotation: Mapping[str, PinnedModel | None]

    @property
    def weights_bytes(self) -> int:
        """Bytes of all distinct weights together: what an actor holds that has them all."""
        return sum({model.digest: model.weights_bytes for model in self.by_annotation.values() if model}.values())

    def of_pools(self, job: AnnotateJob) -> dict[str | None, "Models"]:
        """The models of each pool of the job, in the order in which its annotations name pools."""
        pools: dict[str | None, dict[str, PinnedModel | None]] = {}
        for each in job.annotations:
            pools.setdefault(each.pool, {})[each.name] = self.by_annotation[each.name]
        return {pool: Models(models) for pool, models in pools.items()}


def pin_models(job: AnnotateJob, plan: Plan | None = None) -> Models:
    """Resolve every model reference of the job, each once; a branch or tag that a plan has resolved stays resolved.

    Raises ModelError.
    """
    pinned: dict[str, PinnedModel] = {}
    by_annotation: dict[str, PinnedModel | None] = {}
    for settings in job.annotations:
        needs = find(settings.task, allow_code=job.allow_code).needs
        if needs is None or settings.model is None:
            by_annotation[settings.name] = None
            continue
        wanted = _as_planned(settings.model, plan.annotations.get(settings.name) if plan else None)
        key = wanted.model_dump_json()
        if key not in pinned:
            pinned[key] = pin(wanted)
        by_annotation[settings.name] = replace(pinned[key], ref=settings.model.ref)
    return Models(by_annotation)


def _as_planned(settings: ModelSettings, pinned: PinnedAnnotation | None) -> ModelSettings:
    """The reference with the commit that the plan found for it, where it is one to the hub."""
    if pinned is None or pinned.revision is None or pinned.ref != settings.ref:
        return settings
    return settings.model_copy(update={"ref": at_commit(settings.ref, pinned.revision)})


def specs(job: AnnotateJob, models: Models, pins: Mapping[str, PinnedAnnotation]) -> tuple[AnnotationSpec, ...]:
    """The annotations as they travel to the actors."""
    codes = job.pinned()["code"]
    return tuple(
        AnnotationSpec(
            _portable(each),
            job.allow_code,
            models.by_annotation[each.name],
            pins[each.name],
            tuple(columns_of(task)),
            codes.get(each.name),
        )
        for each, task in zip(job.annotations, tasks_of(job, models), strict=True)
    )


def _portable(settings: AnnotationSettings) -> dict[str, object]:
    """Settings for a process with another current folder: a user's own task is named by its absolute path."""
    own_file = settings.task.endswith(".py")
    task = str(Path(settings.task).resolve()) if own_file else settings.task
    return settings.model_dump(mode="json") | {"task": task}


def new_plan(job: AnnotateJob, models: Models, pools: Pools) -> tuple[Plan, tuple[str, ...]]:
    """Plan a job on a fresh output; also what the user should be told about the corpus.

    Raises JobError, CorpusError, ModelError: whatever makes the job impossible.
    """
    corpus = open_corpus(job.corpus)
    tasks = tasks_of(job, models)
    pins = {task.config.name: _pinned(task, pools[task.config.pool]) for task in tasks}
    check_columns(job, tasks, corpus.schema)
    kept, pruned, selection = rows_wanted(job.corpus, corpus)
    units = plan_units(corpus.fragments, kept, selection, _bounds(pools))
    pins = _to_be_tried(tasks, pins, pools, corpus.fragments, sum(unit.rows for unit in units))
    plan = Plan(
        version=PLAN_VERSION,
        corpusmill=version("corpusmill"),
        job=job.pinned(),
        root=corpus.root,
        schema=corpus.schema,
        partition=corpus.partition,
        identity_carried=carries_identity(corpus.schema),
        annotations=pins,
        fragments=corpus.fragments,
        units=units,
        rows_pruned=pruned,
    )
    return plan, corpus.notes


def _bounds(pools: Pools) -> UnitBounds:
    """Units for the slowest kind of device, and for the pool with the most actors; all pools share one store."""
    every = pools.values()
    device: Device = "cpu" if any(workers.device == "cpu" for workers in every) else "cuda"
    store_bytes = next(iter(every)).store_bytes
    share_bytes = None if store_bytes is None else store_bytes // len(pools)
    actors, readers = (max(counts) for counts in zip(*((each.actors, each.readers) for each in every), strict=True))
    return UnitBounds.for_device(device, actors, share_bytes, readers)


def tasks_of(job: AnnotateJob, models: Models) -> list[Task]:
    """The task of each annotation, without weights."""
    return [
        find(each.task, allow_code=job.allow_code)(each, models.by_annotation[each.name]) for each in job.annotations
    ]


def _pinned(task: Task, workers: Workers) -> PinnedAnnotation:
    model = task.model
    if model is None:
        return PinnedAnnotation(None, None, None, None, None, workers.device, workers.threads, 0)
    wanted = task.config.dtype
    if wanted == "auto" and task.auto_dtype is not None:
        wanted = task.auto_dtype
    if wanted == "int8":
        _check_int8(task)
    dtype = resolve_dtype(wanted, workers.device)
    engine = resolve_engine(task, workers.device, dtype)
    return PinnedAnnotation(
        ref=model.ref,
        revision=model.revision,
        digest=model.digest,
        engine=engine,
        dtype=dtype,
        device=workers.device,
        threads=workers.threads,
        token_budget=default_budget(workers.device, may_pack(task.needs, model.config), engine, workers.threads),
    )


def _check_int8(task: Task) -> None:
    """Raises JobError for a task whose model cannot be quantised, or whose answers cannot be compared."""
    place, otherwise = f"annotation {task.config.name!r}: dtype: int8", "set `dtype: auto`"
    if task.needs in WRITING:
        raise JobError(f"{place} is for models that read, and the one of task {task.config.task!r} writes: {otherwise}")
    if task.needs == OWN_MODULE or (task.model is not None and task.model.allow_remote_code):
        raise JobError(f"{place} is for models of transformers, and this one brings code of its own: {otherwise}")
    if not can_compare(task.fields()):
        raise JobError(
            f"{place} is compared with float32 before it is used, as vectors, labels and words can be, and task "
            f"{task.config.task!r} gives numbers alone: {otherwise}"
        )


def _to_be_tried(
    tasks: Sequence[Task],
    pins: Mapping[str, PinnedAnnotation],
    pools: Pools,
    fragments: Sequence[Fragment],
    rows: int,
) -> dict[str, PinnedAnnotation]:
    """The pins, engine auto where a trial before the first unit repays itself for one of those that compute alike."""
    chosen = set()
    groups = [group for fragment in fragments for group in fragment.row_groups]
    bytes_of_a_row = sum(each.bytes for each in groups) / max(1, sum(each.rows for each in groups))
    for task in tasks:
        pin, workers = pins[task.config.name], pools[task.config.pool]
        if not may_choose(task, pin):
            continue
        assert task.model is not None
        window = task.window_tokens if isinstance(task, WindowTask) else DEFAULT_WINDOW_TOKENS
        expected = Expected(
            rows=rows,
            tokens_of_a_row=min(window, bytes_of_a_row / _BYTES_OF_A_TOKEN),
            weights_bytes=task.model.weights_bytes,
            threads=workers.threads,
            actors=workers.actors,
        )
        if repays(expected):
            chosen.add(group(task, pin))
    by_name = {task.config.name: task for task in tasks}

    def waits(name: str, pin: PinnedAnnotation) -> bool:
        return may_choose(by_name[name], pin) and group(by_name[name], pin) in chosen

    return {name: replace(pin, engine=AUTO) if waits(name, pin) else pin for name, pin in pins.items()}


def trials(job: AnnotateJob, models: Models, plan: Plan) -> list[list[str]]:
    """The annotations that wait for a trial, together those that compute alike."""
    found: dict[Hashable, list[str]] = {}
    for task in tasks_of(job, models):
        if (pin := plan.annotations[task.config.name]).engine == AUTO:
            found.setdefault(group(task, pin), []).append(task.config.name)
    return list(found.values())


def rows_wanted(
    settings: CorpusSettings, corpus: Corpus
) -> tuple[Mapping[int, Sequence[int]] | None, int, Mapping[int, Sequence[int]] | None]:
    """Row groups that the filter may match, rows that it prunes away, and the sampled positions."""
    if settings.filter is None:
        if settings.sample is None:
            return None, 0, None
        rows = [fragment.rows for fragment in corpus.fragments]
        return None, 0, choose(rows, settings.sample, settings.seed)
    from pipeline.corpus.filter import parse_filter
    from pipeline.corpus.pruning import matching, prune

    row_filter = parse_filter(settings.filter, corpus.schema)
    kept, pruned = prune(corpus.filesystem, corpus.root, corpus.fragments, corpus.schema, row_filter)
    if settings.sample is None:
        return kept, pruned, None
    # The sample is of the rows that the filter keeps, so the filter is asked first and has nothing left to do later.
    positions = matching(corpus.filesystem, corpus.root, corpus.fragments, corpus.schema, row_filter, kept)
    return kept, 0, choose_from(positions, settings.sample, settings.seed)


def file_system_of(settings: CorpusSettings) -> FileSystem:
    """Where the corpus lies."""
    paths = settings.path
    filesystem: FileSystem = file_system(paths if isinstance(paths, str) else paths[0])[0]
    return filesystem


def carries_identity(schema: pa.Schema) -> bool:
    """Whether the corpus is an output of ours, with rows that know where they first came from.

    Raises CorpusError where it has such names with other types.
    """
    names = [field.name for field in IDENTITY if field.name in schema.names]
    if not names:
        return False
    for field in IDENTITY:
        found = schema.field(field.name).type if field.name in schema.names else None
        if found != field.type:
            raise CorpusError(
                f"the corpus has a column '{names[0]}', but its '{field.name}' is {found or 'not there'} instead of "
                f"{field.type}: `_file` and `_row` name each row of an output; rename the column in the corpus"
            )
    return True


def check_columns(job: AnnotateJob, tasks: Sequence[Task], schema: pa.Schema) -> None:
    """Every input can be read, every task can use its model, no column is added twice or over one of the corpus.

    Raises CorpusError, ModelError; JobError where no order of the pools would do, or gold could not be compared.
    """
    columns = [columns_of(task) for task in tasks]
    reads = compile_inputs(tasks, columns, schema)
    pools_in_order(tasks, reads)
    for task, each in zip(tasks, reads, strict=True):
        if task.config.dtype == "int8" and each.after:
            raise JobError(
                f"annotation {task.config.name!r}: dtype: int8 is calibrated on rows of the corpus, and it reads what "
                f"{' and '.join(sorted(each.after))} adds: set `dtype: auto`"
            )
    added = Counter(column.name for each in columns for column in each)
    for name, count in added.items():
        if name in schema.names:
            raise CorpusError(
                f"the corpus has a column '{name}' already, and an annotation would add one of that name; give the "
                "annotation another `name`"
            )
        if count > 1:
            raise CorpusError(f"two annotations would add a column '{name}'; give one of them another `name`")
    if isinstance(job.output.columns, list):
        unknown = [name for name in job.output.columns if name not in schema.names]
        if unknown:
            raise CorpusError(
                f"output.columns names '{unknown[0]}', which is not in the corpus: {', '.join(schema.names)}"
            )
    golds_of(tasks, schema)


def added_columns(job: AnnotateJob, models: Models) -> tuple[pa.Field, ...]:
    """The columns of all annotations, in order."""
    return tuple(column for task in tasks_of(job, models) for column in columns_of(task))


def read_plan(job: AnnotateJob, models: Models, plan: Plan) -> ReadPlan:
    """What the readers of this plan's units need: columns that are carried or that annotations read, and the filter."""
    tasks = tasks_of(job, models)
    reads = compile_inputs(tasks, [columns_of(task) for task in tasks], plan.schema)
    carried = set(carried_columns(job, plan))
    wanted = [name for name in plan.schema.names if name in carried.union(*(each.corpus for each in reads))]
    sampled = job.corpus.sample is not None
    return ReadPlan(
        filesystem=file_system_of(job.corpus),
        root=plan.root,
        schema=plan.schema,
        columns=tuple(wanted),
        filter=None if sampled else job.corpus.filter,
        partition=plan.partition,
        identity_carried=plan.identity_carried,
    )


def passes(job: AnnotateJob, models: Models, plan: Plan, pools: Pools) -> Pools:
    """The pools in the order in which a unit passes them."""
    tasks = tasks_of(job, models)
    reads = compile_inputs(tasks, [columns_of(task) for task in tasks], plan.schema)
    return {pool: pools[pool] for pool in pools_in_order(tasks, reads)}


def carried_columns(job: AnnotateJob, plan: Plan) -> tuple[str, ...]:
    """The corpus's own columns that the parts keep; partition columns stand in the path, identity comes last."""
    return _carried(plan, job.output.columns, [each.gold for each in job.annotations])


def _carried(plan: Plan, columns: str | Sequence[str], golds: Sequence[str | None]) -> tuple[str, ...]:
    """Those that `output.columns` names, and gold."""
    wanted = {*{"all": plan.schema.names, "none": []}.get(str(columns), columns), *gold_columns(golds, plan.schema)}
    left_out = {*plan.partition, *(field.name for field in IDENTITY)}
    return tuple(name for name in plan.schema.names if name in wanted and name not in left_out)


def check_unchanged(job: AnnotateJob, models: Models, plan: Plan) -> None:
    """The job is the one that this output was made with, and its models have the digests they had.

    Raises OutputError with every difference, and how to add an annotation without computing the others again.
    """
    changed = changes(job, models, plan)
    if changed:
        raise OutputError(
            f"{job.output.path} was made by a job that differs:\n  " + "\n  ".join(changed) + "\n"
            "Run the job as it was, or name another output.path. To add an annotation to rows that are annotated "
            "already, put it into a job of its own with `output: {columns: none, path: <another folder>}`: a sidecar, "
            "whose rows join on `_file` and `_row`."
        )


def changes(job: AnnotateJob, models: Models, plan: Plan) -> list[str]:
    """One line for each difference between a job and the one that a plan was made for.

    Another gold is none where the parts hold it anyway: it changes no annotation, and is measured at the end.
    """
    old, new = plan.job, job.pinned()
    if _carried(plan, old["output"]["columns"], _golds(old)) == carried_columns(job, plan):
        old, new = _without_gold(old), _without_gold(new)
    return differences(old, new) + models_changed(models, plan)


def with_gold_of(plan: Plan, job: AnnotateJob) -> Plan:
    """The plan with the gold that the job names now; all else of the job is unchanged."""
    pinned = job.pinned()
    return plan if _golds(plan.job) == _golds(pinned) else replace(plan, job=pinned)


def _golds(job: Mapping[str, Any]) -> list[str | None]:
    return [each.get("gold") for each in job["annotations"]]


def _without_gold(job: Mapping[str, Any]) -> dict[str, Any]:
    annotations = [{key: value for key, value in each.items() if key != "gold"} for each in job["annotations"]]
    return {**job, "annotations": annotations}


def models_changed(models: Models, plan: Plan) -> list[str]:
    """One line for each annotation whose model no longer has the digest that the plan pinned."""
    return [
        f"model of '{name}' ({pinned.ref}): its digest was {pinned.digest}, is now {model.digest}"
        for name, pinned in plan.annotations.items()
        if (model := models.by_annotation.get(name)) is not None and model.digest != pinned.digest
    ]


def corpus_notes(job: AnnotateJob, plan: Plan) -> list[str]:
    """What became of the corpus since it was planned: files that came, went or changed."""
    planned = {fragment.path: fragment.fingerprint for fragment in plan.fragments}
    now = {file.path: file.fingerprint for file in list_files(job.corpus).files}
    notes = []
    for what, files in (
        ("were added since the plan and are left for a run on another output", sorted(now.keys() - planned.keys())),
        (
            "are gone since the plan; rows of theirs without a receipt will be quarantined",
            sorted(planned.keys() - now.keys()),
        ),
        (
            "changed since the plan; rows of theirs without a receipt will be quarantined",
            sorted(path for path in planned.keys() & now.keys() if planned[path] != now[path]),
        ),
    ):
        if files:
            notes.append(f"{len(files)} files {what}: {', '.join(files[:3])}{' …' if len(files) > 3 else ''}")
    return notes


def place(cluster: Cluster, job: AnnotateJob, models: Models) -> Pools:
    """Ask the cluster for pools of actors that hold the models of their annotations."""
    return cluster.workers({pool: each.weights_bytes for pool, each in models.of_pools(job).items()})


def as_pinned(plan: Plan, pools: Pools) -> Pools:
    """The pools with the threads that the plan pinned, so that a resumed run sums in the same order.

    Raises PlacementError where models would run on another kind of device than the plan pinned.
    """
    pool_of = {each["name"]: each.get("pool") for each in plan.job["annotations"]}
    threads = {}
    for name, pinned in plan.annotations.items():
        pool = pool_of[name]
        device = pools[pool].device
        if pinned.digest is not None and pinned.device != device:
            way = f"{section(pool)}.gpus_per_actor: " + ("0" if pinned.device == "cpu" else "1 on a machine with GPUs")
            raise PlacementError(
                f"this output was begun on device {pinned.device}, and the actors would compute on {device}, which "
                f"gives other values; go on with {way}, or name another output.path"
            )
        threads[pool] = pinned.threads  # all of a pool have the same
    return {pool: replace(workers, threads=threads[pool]) for pool, workers in pools.items()}
