"""An evaluation: labeled rows are annotated with a model, and what it says is measured against what is right.

    evaluate(Prediction([{"name": "said", "task": "classify", …}], "labels", {"gold": "section", "predicted":
             "said_label"}), model, CorpusSettings(path="labeled/"), "out/predictions", cluster, watcher)
    -> Evaluated(measured=…, baselines={"majority": …}, rows=…, predictions=Outcome(…), digest="53aa…")

The predictions are an ordinary output of an ordinary annotate job, so a later one with the same model says the same, a
killed evaluation goes on where it stopped, and a row that cannot be annotated stands in the quarantine: it was asked,
and has no answer.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import metrics
from pipeline.annotate import Outcome, annotate
from pipeline.annotator import columns_of
from pipeline.corpus.column import ColumnPath, find_dotted
from pipeline.corpus.source import CorpusSettings, open_corpus
from pipeline.corpus.text import compile_text
from pipeline.gold import check_comparable, measured_rows, partition_fields
from pipeline.job import AnnotateJob
from pipeline.metrics.base import Kind, Measured
from pipeline.models.reference import ModelSettings
from pipeline.output import epoch, planfile
from pipeline.output import manifest as manifests
from pipeline.output.planfile import differences
from pipeline.output.rows import OutputRows, Wanted, read_rows
from pipeline.output.storage import Store
from pipeline.planning import Models, models_changed, pin_models, tasks_of
from pipeline.progress import Watcher
from pipeline.tasks.base import Task
from pipeline.training.objectives.base import Prediction
from pipeline.workers import Cluster

TEXT = "text"
"""The column that `baselines` find the text in."""

_GROUP = "\0group"
_OF_A_REFERENCE = re.compile(r"annotations\.\d+\.model\.ref: ")
_MOST_CHARS = 10_000_000

Baselines = Callable[[pa.Table], Mapping[str, pa.Table]]
"""From the judged rows (the gold column, and `text`) to what simpler methods say of them: tables of as many rows, whose
columns are named as the prediction's are, or as the metric calls them (`predicted`)."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came of it."""

    measured: Measured
    baselines: Mapping[str, Measured]
    rows: pa.Table  # those that were judged: `_file`, `_row`, the compared columns; sorted by the first two
    predictions: Outcome  # of the annotate run
    digest: str  # of the model


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is asked, and which columns of the predictions answer it."""

    job: AnnotateJob
    models: Models
    kind: Kind
    wanted: Wanted
    compared: frozenset[str]  # the columns that the kind reads
    schema: pa.Schema  # of the corpus
    text: str | None
    group: str | None


def evaluate(
    prediction: Prediction,
    model: ModelSettings,
    rows: CorpusSettings,
    output: str,
    cluster: Cluster,
    watcher: Watcher,
    *,
    text: str | None = None,
    group: str | None = None,
    baselines: Baselines | None = None,
    began: float | None = None,
) -> Evaluated:
    """Annotate the rows with the model into `output`, and measure; the same call goes on where a killed one stopped.

    `text` (what the baselines read) and `group` (rows that agree in it are drawn together for the intervals) are
    columns, dotted paths or templates.

    Raises JobError and its kinds before anything is computed: columns that are not there or cannot be compared,
    whatever makes the annotate job impossible; afterwards where no row can be judged. RunError half-way, Interrupted on
    Ctrl-C.
    """
    reading = _reading(prediction, model, rows, output, text, group)
    store = Store.at(output)
    done = _moved(reading, store) or annotate(reading.job, cluster, watcher, began)
    watcher.phase("measuring")
    plan = planfile.load(store)
    found = read_rows(store, done.manifest["files"], partition_fields(plan), reading.wanted)
    judged = _with_text_and_group(found, reading)
    measured = measured_rows(reading.kind, judged, found.left_out(), _GROUP if group else None)
    return Evaluated(
        measured=measured,
        baselines={} if baselines is None else _baselines(baselines(judged), prediction, judged, group is not None),
        rows=judged.select(dict.fromkeys(["_file", "_row", *prediction.columns.values()])),
        predictions=done,
        digest=next(pin.digest for pin in plan.annotations.values() if pin.digest is not None),
    )


def annotate_job(prediction: Prediction, model: ModelSettings, rows: CorpusSettings, output: str) -> AnnotateJob:
    """The annotate job that gives the predictions, with the compared columns of the corpus beside them.

    Raises JobError and its kinds as `evaluate` does.
    """
    return _reading(prediction, model, rows, output, None, None).job


def _reading(
    prediction: Prediction,
    model: ModelSettings,
    rows: CorpusSettings,
    output: str,
    text: str | None,
    group: str | None,
) -> _Reading:
    """The annotate job that gives the predictions, and what is read of its output."""
    schema = open_corpus(rows).schema
    document = {
        "allow_code": prediction.code,
        "corpus": rows.model_dump(),
        "annotations": [{**each, "model": model.model_dump()} for each in prediction.annotations],
        "output": {"path": output, "columns": "none"},
        "limits": {"max_quarantined": 1.0},  # a row without an answer is a wrong one
    }
    job = AnnotateJob.model_validate(document)
    models = pin_models(job)
    tasks = tasks_of(job, models)
    added = {field.name: field.type for task in tasks for field in columns_of(task)}
    paths = {
        name: ColumnPath((name,), added[name]) if name in added else find_dotted(schema, name)
        for name in prediction.columns.values()
    }
    read = {path.names[0] for name, path in paths.items() if name not in added}
    beside = {name for source in _sources(text, group) for name in compile_text(source, schema).columns}
    paths |= {name: ColumnPath((name,), schema.field(name).type) for name in beside}
    kind = metrics.find(prediction.kind)(**prediction.columns, **(_known(tasks, prediction) | dict(prediction.options)))
    wanted = Wanted(paths, present=prediction.columns.get("gold"))
    check_comparable(kind, wanted)
    carried = [name for name in schema.names if name in read | beside]
    job = job.model_copy(update={"output": job.output.model_copy(update={"columns": carried})})
    return _Reading(job, models, kind, wanted, frozenset(prediction.columns.values()), schema, text, group)


def _moved(reading: _Reading, store: Store) -> Outcome | None:
    """Finished predictions of the same weights, which lay elsewhere then: a candidate that has its name now."""
    if not planfile.exists(store):
        return None
    plan, manifest = planfile.load(store), manifests.load(store)
    told = differences(plan.job, reading.job.pinned())
    moved = told and all(_OF_A_REFERENCE.match(difference) for difference in told)
    if not moved or models_changed(reading.models, plan):
        return None
    if manifest is None or manifest["epoch"] != epoch.newest(store):
        return None
    return Outcome({"run_id": manifest["runs"][-1]["run_id"], "tokens_per_second": None}, manifest, 0, ())


def _sources(text: str | None, group: str | None) -> list[str]:
    return [each for each in (text, None if group is None else _braced(group)) if each is not None]


def _braced(group: str) -> str:
    """As a template, for which numbers are good too."""
    return group if "{" in group else "{" + group + "}"


def _known(tasks: Sequence[Task], prediction: Prediction) -> dict[str, Any]:
    """What the task that is compared tells of itself: the labels that its model knows."""
    for task in tasks:
        comparison = task.compared()
        if comparison is not None and comparison.kind == prediction.kind:
            return dict(comparison.options)
    return {}


def _with_text_and_group(found: OutputRows, reading: _Reading) -> pa.Table:
    """The judged rows beside the texts that their baselines read, and the group of each."""
    table = found.table
    sources = {TEXT: reading.text, _GROUP: None if reading.group is None else _braced(reading.group)}
    rendered = {
        name: pa.array(compile_text(source, reading.schema).render(table, _MOST_CHARS)[0], pa.large_string())
        for name, source in sources.items()
        if source is not None and name not in reading.compared
    }
    kept = table.select([name for name in table.column_names if name not in rendered])
    for name, values in rendered.items():
        kept = kept.append_column(name, values)
    return kept


def _baselines(
    tables: Mapping[str, pa.Table], prediction: Prediction, judged: pa.Table, grouped: bool
) -> dict[str, Measured]:
    """Measured as the prediction is, on the same rows."""
    found = {}
    meant_by = {name: meant for meant, name in prediction.columns.items()}
    kept = [name for name in (prediction.columns.get("gold"), _GROUP if grouped else None) if name is not None]
    for baseline, said in tables.items():
        columns = {meant_by.get(name, name): name for name in said.column_names}
        table = judged.select(kept)
        for name in said.column_names:
            if name not in kept:
                table = table.append_column(name, said[name])
        gold = {"gold": prediction.columns["gold"]} if "gold" in prediction.columns else {}
        kind = metrics.find(prediction.kind)(**{**columns, **gold, **prediction.options})
        found[baseline] = measured_rows(kind, table, {}, _GROUP if grouped else None)
    return found
