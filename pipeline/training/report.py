"""What a trained model is worth: it is judged on the test rows, beside simpler methods and other models.

judge(run, objective, learned, watcher) -> Judged(measured=…, baselines={"majority": …}, compared=…)
metrics(…)                              -> metrics.json:
  {"kind": "finetune", "model": {"digest": "53aa…"}, "base": {"ref": "wheel:…"}, "data": {"fingerprint": "9f0c…"},
   "rows": {"train": 12288, …}, "training": {"steps": 1536, "best_step": 1152, "history": […], …},
   "main": "accuracy", "figures": {"accuracy": {"value": 0.766, "low": 0.753, …}, …}, "tables": {…},
   "baselines": {"majority": {…}}, "gate": {"passed": true, …}, "versions": {…}}
  and of a smaller model made from a larger one: "speed": {"ratio": 1.7, …}, with "teacher" among the baselines
"""

import hashlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.corpus.source import CorpusSettings
from pipeline.errors import JobError
from pipeline.evaluate import Evaluated, evaluate
from pipeline.evaluation import PLOTS, PREDICTIONS, pictures_of
from pipeline.gold import check_libraries
from pipeline.metrics import find, plots
from pipeline.metrics.base import Measured, difference
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.storage import Store
from pipeline.progress import Watcher
from pipeline.training.examples import Counts, Examples
from pipeline.training.gate import Verdict, check_gate
from pipeline.training.job import FinetuneJob
from pipeline.training.objectives.base import Learned, Objective
from pipeline.training.rows import EXAMPLES
from pipeline.versions import installed
from pipeline.workers import Cluster

NAME = "predicted"
"""What the annotations of the predictions are named after."""

COMPARED = "metadata/compared"
"""Where other models' predictions of the test rows lie, by their digests."""

TEACHER = "teacher"
"""The larger model that a smaller one is made from, among the baselines."""

UNTRAINED = "untrained"
"""The model before it was trained, among the baselines."""

_SPEAKS_UNTRAINED = frozenset({"perplexity", "retrieval"})
"""Kinds of metrics for which a model has an answer before anybody trained it: it needs no new head."""

_LIBRARIES = ("scipy", "sklearn")
_LIBRARIES_OF = {"Texts": ("rouge_score", "sacrebleu")}
"""By kind: what it measures with."""

_PACKAGES = (
    *("corpusmill", "accelerate", "datasets", "matplotlib", "numpy", "peft", "pyarrow", "ray", "rouge-score"),
    *("sacrebleu", "scikit-learn", "scipy", "seqeval", "tokenizers", "torch", "transformers"),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the test rows say of a model; of no test rows there is nothing."""

    measured: Measured | None = None
    baselines: Mapping[str, Measured] = field(default_factory=dict)
    compared: Measured | None = None  # the model that this one must not be worse than
    notes: tuple[str, ...] = ()

    @property
    def figures(self) -> dict[str, float]:
        """The values."""
        return {} if self.measured is None else _values(self.measured)


def check(job: FinetuneJob, objective: Objective) -> None:
    """Refuse, before anything is trained, what could not be judged afterwards.

    Raises JobError: the gate asks for a figure that no evaluation of this objective has, or of no test rows; a library
    is missing. ModelError: the model to compare with is not there.
    """
    kind = find(objective.prediction(NAME).kind)
    check_gate(job.gate, kind.figures)
    check_libraries(["matplotlib", *_LIBRARIES, *_LIBRARIES_OF.get(kind.__name__, ())])
    for option, package in (("log", job.training.log), ("lora", "peft" if job.training.lora else None)):
        if package is not None and importlib.util.find_spec(package) is None:
            raise JobError(f"training.{option} needs {package}, which is not installed: pip install {package}")
    figures = ("loss", *objective.validation_figures())
    if job.training.best is not None and job.training.best not in figures:
        raise JobError(
            f"training.best: a validation of {job.objective.name} has no figure {job.training.best!r}; it has "
            f"{', '.join(figures)}"
        )
    if job.gate is None:
        return
    split = job.data.split
    by_shares = split.files is None and split.column is None
    if (split.files is not None and split.files.test is None) or (by_shares and not split.test):
        raise JobError("gate: there are no test rows that it could ask; give data.split some, or leave the gate out")
    if job.gate.not_worse_than is not None:
        pin(job.gate.not_worse_than)


def judge(
    job: FinetuneJob,
    store: Store,
    candidate: str,
    objective: Objective,
    learned: Learned,
    names: Sequence[str],
    cluster: Cluster,
    watcher: Watcher,
) -> Judged:
    """Have the test rows of the examples annotated by the candidate (a folder), and measure. `names` are the units'.

    Its predictions are an ordinary output, so what a killed run had judged is not judged again.

    Raises JobError: no row can be judged, a library is missing, the model to compare with cannot answer.
    """
    prediction = objective.prediction(NAME)
    train = Examples.of(store, "train", names)
    text = str(prediction.annotations[0].get("text", job.data.text))
    rows = CorpusSettings(path=str(store.full(f"{EXAMPLES}/*-test.parquet")))

    def ask(model: ModelSettings, folder: str, *, baselines: bool = False) -> Evaluated:
        return evaluate(
            prediction,
            model,
            rows,
            str(store.full(folder)),
            cluster,
            watcher,
            text=text,
            group=job.data.split.group,
            baselines=(lambda judged: objective.baselines(learned, judged, train)) if baselines else None,
        )

    watcher.phase("judging the model on the test rows")
    found = ask(ModelSettings(ref=candidate), PREDICTIONS, baselines=True)
    beside, notes = dict(found.baselines), []
    if prediction.kind in _SPEAKS_UNTRAINED:
        watcher.phase("judging the model as it was before")
        try:
            beside[UNTRAINED] = ask(job.model, f"{COMPARED}/{UNTRAINED}").measured
        except JobError as error:  # a model whose head was made for this training has nothing to say without it
            notes.append(f"there is no baseline '{UNTRAINED}': {error}")
    if (larger := objective.larger(objective.model)) is not None:
        watcher.phase(f"judging {larger.ref}, which taught it")
        beside[TEACHER] = ask(ModelSettings(ref=larger.folder), f"{COMPARED}/{larger.digest[:16]}").measured
    compared = None
    if job.gate is not None and job.gate.not_worse_than is not None:
        watcher.phase(f"judging {job.gate.not_worse_than.ref}")
        folder = f"{COMPARED}/{pin(job.gate.not_worse_than).digest[:16]}"
        try:
            compared = ask(job.gate.not_worse_than, folder).measured
        except JobError as error:
            raise JobError(f"gate.not_worse_than: {error}") from error
    return Judged(found.measured, beside, compared, tuple(notes))


def metrics(
    job: FinetuneJob,
    plan: Mapping[str, Any],
    counts: Counts,
    trained: Mapping[str, Any],
    judged: Judged,
    verdict: Verdict,
    digest: str,
) -> dict[str, Any]:
    """What stands in metrics.json. `digest` is the trained model's."""
    found: dict[str, Any] = {
        "kind": "finetune",
        "job": plan["job"],
        "model": {"digest": digest},
        "base": plan["model"],
        "data": {"fingerprint": fingerprint(plan["units"])},
        "rows": counts.to_json(),
        "training": training(plan, counts, trained),
        **({"main": None, "figures": {}, "tables": {}} if judged.measured is None else judged.measured.to_json()),
        "baselines": {name: each.to_json() for name, each in judged.baselines.items()},
        "gate": gate(job, judged, verdict),
        "versions": installed(*_PACKAGES),
    }
    return found


def fingerprint(units: Sequence[str]) -> str:
    """One sha256 of what was read: the units' names hold their files' paths, sizes, times and rows."""
    return hashlib.sha256("\n".join(units).encode()).hexdigest()


def synthetic(schema: pa.Schema) -> str | None:
    """What a corpus says of itself in the key `synthetic` of its Parquet metadata; None: that it is not, or nothing."""
    said = (schema.metadata or {}).get(b"synthetic", b"").decode("utf-8", "replace").strip()
    return None if said.lower() in ("", "0", "false", "no") else said


def training(plan: Mapping[str, Any], counts: Counts, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Steps, tokens, seconds, and the curves; numbers that are not finite are null, as JSON has none."""
    seconds = trained["seconds"]
    return {
        "steps": trained["steps"],
        "best_step": trained["step"],
        "tokens": trained["tokens"],
        "padding_tokens": trained["padding_tokens"],
        "seconds": round(seconds, 3),
        "tokens_per_second": round(trained["tokens"] / seconds, 1) if seconds else None,
        "truncated_rows": counts.truncated,
        **{key: plan[key] for key in ("device", "dtype", "max_tokens", "micro_batch_tokens")},
        "history": [{name: _finite(value) for name, value in each.items()} for each in trained["history"]],
    }


def gate(job: FinetuneJob, judged: Judged, verdict: Verdict) -> dict[str, Any]:
    """What the gate asked and what it says; beside the model that must not be better, how far they are apart."""
    asked = None if job.gate is None else job.gate.model_dump(mode="json")
    told = {**asdict(verdict), "value": _finite(verdict.value), "reasons": list(verdict.reasons)}
    found: dict[str, Any] = {**told, "asked": asked}
    if judged.compared is not None and judged.measured is not None:
        apart = difference(judged.measured, judged.compared)
        found["compared"] = {name: each.to_json() for name, each in judged.compared.figures.items()}
        found["difference"] = {name: each.to_json() for name, each in apart.items()}
    return found


def draw(store: Store, trained: Mapping[str, Any], judged: Judged) -> None:
    """Pictures of the training and of what the test rows say."""
    pictures = {} if judged.measured is None else pictures_of(judged.measured)
    if any("loss" in each or "eval_loss" in each for each in trained["history"]):
        pictures["training"] = plots.course(trained["history"])
    for name, picture in pictures.items():
        store.write(f"{PLOTS}/{name}.png", picture)


def _values(measured: Measured) -> dict[str, float]:
    return {name: figure.value for name, figure in measured.figures.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
