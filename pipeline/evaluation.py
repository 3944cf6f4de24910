"""An evaluation as a job of its own: a model, labeled rows, and an output that says how well they agree.

objective: classify
model: models/sections
data: {path: labeled/, text: description, label: section}
output: {path: out/evaluation}

out/evaluation/
  metrics.json     {"main": "accuracy", "figures": {"accuracy": {"value": 0.766, "low": 0.753, …}, …}, "tables": …}
  rows/            the rows, where lists of tokens and labels had to become texts with spans
  predictions/     what the model says of each row: an output of an annotate job
  plots/           pictures of the tables
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.corpus.apart import check_apart
from pipeline.corpus.source import CorpusSettings, open_corpus
from pipeline.errors import JobError, OutputError
from pipeline.evaluate import TEXT, Baselines, Evaluated, annotate_job, evaluate
from pipeline.gold import check_libraries
from pipeline.job import AnnotateJob
from pipeline.metrics import baselines, plots
from pipeline.metrics.base import Measured
from pipeline.models.inspection import window_of
from pipeline.models.reference import pin
from pipeline.output.layout import PLAN
from pipeline.output.planfile import differences
from pipeline.output.storage import Store
from pipeline.progress import Watcher
from pipeline.settings import Settings
from pipeline.training import objectives
from pipeline.training.job import EvaluationData, ModelOf, ObjectiveOf
from pipeline.training.judged import ROWS, rewritten
from pipeline.training.objectives.base import Objective, Prediction
from pipeline.versions import installed
from pipeline.workers import Cluster

METRICS = "metrics.json"
PREDICTIONS = "predictions"
PLOTS = "plots"

NAME = "predicted"
"""What the annotations of an evaluation are named after."""

_PACKAGES = ("rouge-score", "sacrebleu", "scikit-learn", "scipy", "seqeval")


class EvaluationOutput(Settings):
    """Where predictions and figures go."""

    path: str = Field(min_length=1)
    """A folder; it is made when it is not there."""


class EvaluateJob(Settings):
    """A model's answers to labeled rows are measured."""

    allow_code: bool = False
    """Let `objective: path/to/file.py` run Python code of the user's own."""

    objective: ObjectiveOf

    model: ModelOf

    data: EvaluationData

    group: str | None = Field(default=None, min_length=1)
    """A column, a dotted path or a template: rows that agree in it are no independent samples, and the intervals are
    over groups (packages of one source, pages of one book). Default: every row is a sample."""

    output: EvaluationOutput

    def pinned(self) -> dict[str, Any]:
        """What must not change on an output, in canonical form."""
        own = self.objective.name
        code = {"code": hashlib.sha256(Path(own).read_bytes()).hexdigest()} if own.endswith(".py") else {}
        return self.model_dump(mode="json", include=set(EvaluateJob.model_fields) - {"output"}) | code

    @property
    def corpus(self) -> CorpusSettings:
        """The rows, without what is read of each."""
        return CorpusSettings(
            path=self.data.path, filter=self.data.filter, sample=self.data.sample, seed=self.data.seed
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation leaves for its caller; `summary` is what `--json` prints."""

    summary: Mapping[str, Any]
    report: Mapping[str, Any]  # metrics.json
    exit_code: int
    notes: tuple[str, ...]


def evaluate_job(job: EvaluateJob, cluster: Cluster, watcher: Watcher, began: float | None = None) -> Outcome:
    """Run an evaluation to its end, or on from where an earlier run of it stopped.

    Raises JobError and its kinds before anything is computed, or where no row can be judged; RunError half-way,
    Interrupted on Ctrl-C.
    """
    began = time.monotonic() if began is None else began
    watcher.phase("planning")
    store = Store.at(job.output.path)
    check_apart(job.corpus, store.root)
    _check_output(store, job)
    check_libraries(["matplotlib"])
    objective = objective_over(job)
    prediction = objective.prediction(NAME)
    found = evaluate(
        prediction,
        job.model,
        rewritten(job.corpus, objective, store, watcher) if objective.rewrites_rows else job.corpus,
        str(store.full(PREDICTIONS)),
        cluster,
        watcher,
        text=str(prediction.annotations[0].get("text", job.data.text)),
        group=job.group,
        baselines=baselines_of(prediction),
        began=began,
    )
    report = _report(job, found)
    for name, picture in pictures_of(found.measured).items():
        store.write(f"{PLOTS}/{name}.png", picture)
    store.write(METRICS, json.dumps(report, indent=1, allow_nan=False).encode())
    return Outcome(_summary(job, found, report, began), report, found.predictions.exit_code, found.predictions.notes)


def predictions_of(job: EvaluateJob) -> AnnotateJob:
    """The annotate job whose output an evaluation measures. Raises JobError and its kinds."""
    objective = objective_over(job)
    if objective.rewrites_rows:
        raise JobError(
            f"data.label '{job.data.label}' labels tokens, which become texts with spans as the evaluation runs: there "
            "is nothing to preview or plan before; `corpusmill run` evaluates"
        )
    store = Store.at(job.output.path)
    return annotate_job(objective.prediction(NAME), job.model, job.corpus, str(store.full(PREDICTIONS)))


def objective_over(job: EvaluateJob) -> Objective:
    """The objective, which knows the label column: its `prediction` is how an annotate job answers as it trains.

    Raises CorpusError: the label column is not there, or of a type that the objective can make nothing of; ModelError:
    the objective has to ask the model's tokenizer, and cannot.
    """
    kind = objectives.find(job.objective.name, allow_code=job.allow_code)
    objective: Objective = kind(job.objective, job.data)
    objective.look_at(open_corpus(job.corpus).schema)
    if objective.asks_tokenizer:
        from pipeline.models.pretrained import prepared_tokenizer

        model = pin(job.model)
        objective.start(prepared_tokenizer(model, 1), model, window_of(Path(model.folder), model.config))
    return objective


def baselines_of(prediction: Prediction) -> Baselines | None:
    """What takes no model, from the judged rows' own gold: the best answer that is the same for every row.

    For texts it is their beginning, as long as gold is on average. None: there is nothing to compare with.
    """
    made = _BASELINES.get(prediction.kind)
    return None if made is None else lambda rows: made(rows, rows[prediction.columns["gold"]])


def _majority(rows: pa.Table, gold: pa.ChunkedArray) -> dict[str, pa.Table]:
    counts = {each["values"]: each["counts"] for each in gold.cast(pa.string()).value_counts().to_pylist()}
    return {"majority": pa.table({"predicted": baselines.majority(counts, len(rows))})}


def _commonest(rows: pa.Table, gold: pa.ChunkedArray) -> dict[str, pa.Table]:
    counts = {each["values"]: each["counts"] for each in pc.list_flatten(gold).value_counts().to_pylist()}
    if not counts:
        return {}
    return {"commonest": pa.table({"predicted": baselines.commonest(counts, len(rows), len(rows))})}


def _mean(rows: pa.Table, gold: pa.ChunkedArray) -> dict[str, pa.Table]:
    mean = pc.mean(gold).as_py()
    return {"mean": pa.table({"predicted": baselines.mean(float(mean), len(rows))})}


def _lead(rows: pa.Table, gold: pa.ChunkedArray) -> dict[str, pa.Table]:
    words = [len(text.split()) for text in gold.to_pylist() if text is not None]
    many = max(1, round(sum(words) / max(1, len(words))))
    return {f"lead_{many}": pa.table({"predicted": baselines.lead(rows[TEXT], many)})}


_BASELINES: Mapping[str, Callable[[pa.Table, pa.ChunkedArray], dict[str, pa.Table]]] = {
    "labels": _majority,
    "multilabels": _commonest,
    "numbers": _mean,
    "texts": _lead,
}
"""By kind of metric."""


def pictures_of(measured: Measured) -> dict[str, bytes]:
    """PNG files of the tables that can be drawn, by name: `confusion`, `reliability`, `per_class`."""
    tables, found = measured.tables, {}
    if tables.get("confusion"):
        found["confusion"] = plots.confusion(tables["confusion"])
    if tables.get("reliability"):
        ece = measured.figures.get("ece")
        found["reliability"] = plots.reliability(tables["reliability"], ece=None if ece is None else ece.value)
    if tables.get("per_class"):
        found["per_class"] = plots.classes(tables["per_class"])
    return found


def _check_output(store: Store, job: EvaluateJob) -> None:
    """Refuse a folder that holds something else, or the evaluation of another job. Raises OutputError."""
    if store.exists(PLAN):
        raise OutputError(f"output.path {store.root} is the output of another kind of job; name another folder")
    if (written := store.find(METRICS)) is not None:
        try:
            old = json.loads(written)["job"]
            told = differences(old, json.loads(json.dumps(job.pinned())))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OutputError(
                f"output.path {store.root} holds a {METRICS} that no evaluation wrote; name another folder"
            ) from None
        if told:
            raise OutputError(
                f"{store.root} was made by an evaluation that differs:\n  " + "\n  ".join(told) + "\n"
                "Run the job as it was, or name another output.path."
            )
        return
    folder = store.full("")
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output.path {store.root} is a file; name a folder, or one that does not exist yet")
    ours = {PREDICTIONS, PLOTS, ROWS, "metadata"}
    foreign = sorted(each.name for each in folder.iterdir() if each.name not in ours) if folder.is_dir() else []
    if foreign:
        raise OutputError(
            f"output.path {store.root} holds something else ({foreign[0]}); name an empty folder, or one that does not "
            "exist yet"
        )


def _report(job: EvaluateJob, found: Evaluated) -> dict[str, Any]:
    """What stands in metrics.json; the same for every run of the job."""
    done = found.predictions
    dtypes = {each["dtype"] for each in done.manifest["models"].values()}
    return {
        "kind": "evaluate",
        "job": job.pinned(),
        "model": {"ref": job.model.ref, "digest": found.digest, "dtype": "/".join(sorted(dtypes))},
        "rows": _rows(found),
        **found.measured.to_json(),
        "baselines": {name: each.to_json() for name, each in found.baselines.items()},
        "versions": {**done.manifest["versions"], **installed(*_PACKAGES)},
    }


def _rows(found: Evaluated) -> dict[str, int]:
    """How many were judged, left out (without gold, unreadable), and set aside without an answer."""
    left_out: Mapping[str, int] = found.measured.tables["left_out"]
    return {
        "judged": len(found.rows),
        "left_out": sum(left_out.values()),
        "without_prediction": int(found.measured.tables.get("without_prediction", 0)),
    }


def _summary(job: EvaluateJob, found: Evaluated, report: Mapping[str, Any], began: float) -> dict[str, Any]:
    """The one object that `--json` prints."""
    done = found.predictions.summary
    return {
        "run_id": done["run_id"],
        "output": job.output.path,
        "metrics": report["figures"],
        "baselines": {name: each["figures"] for name, each in report["baselines"].items()},
        "rows": report["rows"],
        "seconds": round(time.monotonic() - began, 3),
        "tokens_per_second": done["tokens_per_second"],
        "model": job.model.ref,
        "digest": found.digest,
    }
