"""The road of a fine-tuning: labeled rows become examples, a model is trained, judged on rows it never saw, promoted.

job -> model pinned, rows planned -> examples (Ray Data) -> checkpoints (Ray Train) -> metadata/candidate
    -> predictions (an annotate run over the test rows) -> metrics.json -> gate -> model/, by one rename, last

Each part leaves its mark when it is done, so the same command goes on where a killed one stopped.
"""

import json
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.annotate import new_run_id
from pipeline.corpus.apart import check_apart
from pipeline.errors import CorpusError, Interrupted, JobError, OutputError
from pipeline.models.device import resolve_dtype, training_budget
from pipeline.models.digest import digest_of, file_digests
from pipeline.models.inspection import positions_tokens, window_of
from pipeline.models.reference import ModelSettings, PinnedModel, pin
from pipeline.output.layout import MANIFEST, PLAN, TMP, check_output
from pipeline.output.lease import Lease
from pipeline.output.planfile import differences
from pipeline.output.storage import Store
from pipeline.progress import Watcher
from pipeline.training import report
from pipeline.training import rows as training_rows
from pipeline.training.examples import Counts, Examples, receipt_of
from pipeline.training.gate import judged
from pipeline.training.job import FinetuneJob, check_sharding
from pipeline.training.objectives.base import Learned, Objective
from pipeline.training.order import Order
from pipeline.training.promote import CANDIDATE, MODEL, promote
from pipeline.training.rows import Rows, plan_rows
from pipeline.training.schedule import Schedule
from pipeline.training.split import Subset
from pipeline.training.standing import METRICS, TRAINED
from pipeline.workers import TrainCluster, TrainWorkers

NOT_PROMOTED = 5
"""Exit code of a run whose model did not pass its gate."""

_JUDGING: tuple[Subset, ...] = ("validation", "test")
"""The subsets that judge a model."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fine-tuning leaves for its caller; `summary` is what `--json` prints."""

    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    tables: Mapping[str, Any]  # of metrics.json
    exit_code: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class Run:
    """One execution of a job on one output, under its lease."""

    job: FinetuneJob
    store: Store
    model: PinnedModel
    rows: tuple[Rows, ...]
    plan: Mapping[str, Any]
    workers: TrainWorkers
    cluster: TrainCluster
    watcher: Watcher
    run_id: str
    began: float
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """The units of all corpora, in order."""
        return tuple(self.plan["units"])


def finetune(job: FinetuneJob, cluster: TrainCluster, watcher: Watcher, began: float | None = None) -> Outcome:
    """Run a job to its end, or on from where an earlier run of it stopped.

    Raises JobError and its kinds before anything is computed, RunError half-way, Interrupted on Ctrl-C.
    """
    began = time.monotonic() if began is None else began
    watcher.phase("planning")
    store = Store.at(job.output.path)
    for _, settings in training_rows.corpora(job.data):
        check_apart(settings, store.root)
    check_output(store.root)
    model = pin(job.model)
    rows, notes = plan_rows(job)
    objective = training_rows.objective_over(job, rows[0].read.schema)
    objective.check_model(model)
    report.check(job, objective)
    workers = cluster.train_workers(model.weights_bytes)
    check_sharding(job, workers)
    plan = _plan(job, model, objective.larger(model), rows, workers)
    with Lease.acquire(store, run_id := new_run_id()):
        plan = _pinned(store, plan)
        run = Run(job, store, model, rows, plan, workers, cluster, watcher, run_id, began, list(notes))
        for note in run.notes:
            watcher.note(note)
        try:
            return _run(run)
        except KeyboardInterrupt:
            raise Interrupted("interrupted: what is done stays; the same command goes on") from None


def _run(run: Run) -> Outcome:
    if (done := _finished(run)) is not None:
        return done
    run.watcher.phase("starting Ray")
    with run.cluster.connected():
        counts = encode(run)
        objective, learned = learn(run, counts)
        counts = settle(run, objective, learned, counts)
        trained = train(run, objective, learned, counts)
        candidate = assemble(run, objective, learned, trained)
        return conclude(run, objective, learned, counts, trained, candidate)


def _finished(run: Run) -> Outcome | None:
    """What an earlier run of the same job came to; None where it came to no end, or was judged by another gate."""
    content = run.store.find(MANIFEST)
    if content is None:
        return None
    manifest = json.loads(content)
    asked = None if run.job.gate is None else run.job.gate.model_dump(mode="json")
    if asked != manifest["gate"]["asked"]:
        if not manifest["promoted"]:
            return None
        run.notes.append(f"the model was promoted by another gate, and stays: {json.dumps(manifest['gate']['asked'])}")
    return _outcome(run, manifest, json.loads(run.store.read(METRICS))["tables"])


# -------------------------------------------------------------------------------------------------------------- plan


def _plan(
    job: FinetuneJob, model: PinnedModel, larger: PinnedModel | None, rows: tuple[Rows, ...], workers: TrainWorkers
) -> dict[str, Any]:
    """What must not change while this output is made, and what a resumed run takes from the first."""
    return {
        "kind": "finetune",
        "version": 1,
        "corpusmill": version("corpusmill"),
        "job": job.pinned(),
        "model": {"ref": model.ref, "revision": model.revision, "digest": model.digest},
        "teacher": None if larger is None else {"ref": larger.ref, "digest": larger.digest},
        "units": [f"{source}-{unit.id}" for source, each in enumerate(rows) for unit in each.units],
        "max_tokens": window(job, model),
        "micro_batch_tokens": job.training.micro_batch_tokens or training_budget(workers.device),
        "device": workers.device,
        "dtype": resolve_dtype(job.training.dtype, workers.device),
        "threads": workers.threads,
    }


def window(job: FinetuneJob, model: PinnedModel) -> int:
    """Tokens of a text, special ones included. Raises JobError: more than the model has positions."""
    asked, bound = job.training.max_tokens, positions_tokens(model.config)
    if asked is not None and bound is not None and asked > bound:
        raise JobError(f"training.max_tokens: {asked} is more than the {bound} positions of {model.ref!r}")
    return asked or window_of(Path(model.folder), model.config)


def _pinned(store: Store, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan that this output was begun with, or this one where it is fresh. Raises OutputError where they differ."""
    content = store.find(PLAN)
    if content is None:
        store.write(PLAN, json.dumps(plan, default=str).encode())
        return plan
    old: dict[str, Any] = json.loads(content)
    if old.get("kind") != "finetune":
        raise OutputError(f"output.path {store.root} is the output of an annotate job; name another one")
    told = differences(old["job"], json.loads(json.dumps(plan["job"], default=str)))
    if old["model"]["digest"] != plan["model"]["digest"]:
        told.append(
            f"model {plan['model']['ref']}: its digest was {old['model']['digest']}, is {plan['model']['digest']}"
        )
    if not told and old["teacher"] != plan["teacher"]:
        told.append(f"teacher: it was {old['teacher']}, is {plan['teacher']}")
    if not told and old["units"] != plan["units"]:
        told.append("data: files came, went or changed since this output was begun")
    if old["device"] != plan["device"]:
        told.append(f"device: it was {old['device']}, is {plan['device']}")
    if told:
        raise OutputError(
            f"{store.root} was begun by a job that differs:\n  " + "\n  ".join(told) + "\n"
            "Run the job as it was, or name another output.path."
        )
    return old


# ------------------------------------------------------------------------------------------------------------- parts


def encode(run: Run) -> Counts:
    """Every unit read, divided and tokenised, unless it has its receipt already."""
    return _encoded(run, {name for name in run.names if receipt_of(run.store, name) is None}, None)


def _encoded(run: Run, names: Collection[str], learned: Learned | None) -> Counts:
    """These units read, divided and tokenised; what all units come to."""
    from pipeline.stream import each_unit

    work = training_rows.Work(run.store, run.job.document(), run.model, run.plan["max_tokens"], run.rows, learned)
    every = [training_rows.Order(source, unit) for source, each in enumerate(run.rows) for unit in each.units]
    orders = [order for order in every if order.name in names]
    if orders:
        run.watcher.phase(f"tokenising {len(orders)} unit{'' if len(orders) == 1 else 's'}")
        for _ in each_unit(orders, training_rows.encode_unit, work):
            pass
    found = [receipt_of(run.store, name) for name in run.names]
    assert None not in found, "every unit has its receipt now"
    return Counts.of(each for each in found if each is not None)


def learn(run: Run, counts: Counts) -> tuple[Objective, Learned]:
    """What the training rows decide. Raises CorpusError: there are none, or nothing can be learned from them."""
    if not counts.rows.get("train"):
        left = f"; {sum(counts.left_out.values())} rows were left out: {counts.left_out}" if counts.left_out else ""
        raise CorpusError(f"data: no row is left to train with{left}")
    objective = training_rows.started(run.job, run.model, run.plan["max_tokens"], run.rows[0].read.schema)
    return objective, objective.learned(counts.counted.get("train", {}))


def settle(run: Run, objective: Objective, learned: Learned, counts: Counts) -> Counts:
    """What the rows come to without those whose labels no training row has, where the job leaves these out.

    Their units are made again, with what was learned: a unit whose receipt tells of such labels is not yet done.

    Raises CorpusError: there are such rows, and the job does not leave them out; a gate has no rows to judge by.
    """
    if run.job.data.unseen_labels == "error":
        for subset in _JUDGING:
            objective.check_known(learned, counts.counted.get(subset, {}), subset)
    elif unsettled := {name for name in run.names if _asks_for_unseen(run, name, objective, learned)}:
        counts = _encoded(run, unsettled, learned)
    if run.job.gate is not None and not counts.rows.get("test"):
        raise CorpusError(f"gate: no row of the corpus fell to the test rows, of {sum(counts.rows.values())} in all")
    return counts


def _asks_for_unseen(run: Run, name: str, objective: Objective, learned: Learned) -> bool:
    receipt = receipt_of(run.store, name)
    assert receipt is not None, "every unit has its receipt now"
    counted = receipt["counted"]
    return not all(training_rows.knows(objective, learned, counted.get(subset, {}), subset) for subset in _JUDGING)


def train(run: Run, objective: Objective, learned: Learned, counts: Counts) -> dict[str, Any]:
    """The training, to its last step; what it left, as metadata/trained.json has it."""
    if (done := run.store.find(TRAINED)) is not None:
        return dict(json.loads(done))
    from pipeline.training.fit import fit
    from pipeline.training.work import Work

    settings = run.job.training
    examples = Examples.of(run.store, "train", run.names)
    order = Order(examples.lengths_E, settings.batch_rows, settings.seed, settings.group_by_length)
    has_validation = counts.rows.get("validation", 0) > 0
    schedule = Schedule.of(settings, order.steps_per_epoch, objective.validation_figures(), has_validation)
    work = Work(
        store=run.store,
        job=run.job.document(),
        model=run.model,
        max_tokens=run.plan["max_tokens"],
        schema=run.rows[0].read.schema,
        names=run.names,
        learned=learned,
        schedule=schedule,
        device=run.plan["device"],
        threads=run.plan["threads"],
        micro_batch_tokens=run.plan["micro_batch_tokens"],
        bf16=run.plan["dtype"] == "bfloat16",
    )
    run.watcher.phase(f"starting {run.workers.count} worker{'' if run.workers.count == 1 else 's'}")
    trained = asdict(fit(work, run.workers, run.watcher))
    run.store.write(TRAINED, json.dumps(trained).encode())
    return trained


def assemble(run: Run, objective: Objective, learned: Learned, trained: Mapping[str, Any]) -> str:
    """The chosen checkpoint as a model folder; where it lies."""
    for place in (MODEL, CANDIDATE):
        if run.store.exists(place):
            return str(run.store.full(place))
    from pipeline.training.loading import load_checkpoint

    temporary = run.store.full(f"{TMP}/candidate")
    shutil.rmtree(temporary, ignore_errors=True)  # half of one, of a killed run: who holds the lease is alone here
    module = load_checkpoint(objective, learned, run.job.training, trained["checkpoint"])
    temporary.mkdir(parents=True)
    objective.save(objective.finish(module, learned), str(temporary))
    temporary.rename(run.store.full(CANDIDATE))
    return str(run.store.full(CANDIDATE))


def conclude(
    run: Run,
    objective: Objective,
    learned: Learned,
    counts: Counts,
    trained: Mapping[str, Any],
    candidate: str,
) -> Outcome:
    """Judge the candidate, promote it if it passes, and say all there is to say; the manifest comes last.

    A gate that changed since a run that promoted nothing is asked anew: what was trained and predicted stays.
    """
    if run.store.exists(MODEL):  # promoted by a run that was killed right after it: its metrics stand
        metrics = json.loads(run.store.read(METRICS))
    else:
        metrics = _judged(run, objective, learned, counts, trained, candidate)
        if metrics["gate"]["passed"]:
            promote(run.store, facts(run, objective, metrics))
    manifest = {name: each for name, each in metrics.items() if name not in ("tables", "intervals")}
    manifest["promoted"] = metrics["gate"]["passed"]
    manifest["run_id"] = run.run_id
    run.store.write(MANIFEST, json.dumps(manifest, indent=1).encode())
    return _outcome(run, manifest, metrics["tables"])


def _judged(
    run: Run,
    objective: Objective,
    learned: Learned,
    counts: Counts,
    trained: Mapping[str, Any],
    candidate: str,
) -> dict[str, Any]:
    """What stands in metrics.json afterwards."""
    found = report.Judged()
    if counts.rows.get("test"):
        found = report.judge(run.job, run.store, candidate, objective, learned, run.names, run.cluster, run.watcher)
    for note in found.notes:
        run.notes.append(note)
        run.watcher.note(note)
    compared = None if found.compared is None else {name: each.value for name, each in found.compared.figures.items()}
    verdict = judged(run.job.gate, found.figures, compared)
    digest = digest_of(file_digests(Path(candidate)))
    metrics = report.metrics(run.job, run.plan, counts, trained, found, verdict, digest)
    if (larger := objective.larger(run.model)) is not None:
        from pipeline.training.shrink import gain

        run.watcher.phase("timing the model beside the one that taught it")
        examples = Examples.of(run.store, "train", run.names)
        gained = gain(pin(ModelSettings(ref=candidate)), larger, objective.needs, examples, run.plan["device"])
        metrics["speed"] = gained.to_json()
    report.draw(run.store, trained, found)
    run.store.write(METRICS, json.dumps(metrics, indent=1, allow_nan=False).encode())
    return metrics


def facts(run: Run, objective: Objective, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's own folder tells of it: metrics.json without tables and curves."""
    return {
        "name": run.store.full(MODEL).parent.name,
        "objective": run.job.objective.name,
        "needs": objective.needs,
        "synthetic": report.synthetic(run.rows[0].read.schema),
        **{name: each for name, each in metrics.items() if name not in ("kind", "tables", "intervals", "training")},
        "baselines": {name: each["figures"] for name, each in metrics["baselines"].items()},
        "training": {name: each for name, each in metrics["training"].items() if name != "history"},
    }


def _outcome(run: Run, manifest: Mapping[str, Any], tables: Mapping[str, Any]) -> Outcome:
    training = manifest["training"]
    summary = {
        "run_id": manifest["run_id"],
        "output": run.job.output.path,
        "promoted": manifest["promoted"],
        "metrics": manifest["figures"],
        "baselines": {name: each["figures"] for name, each in manifest["baselines"].items()},
        "rows": {name: count for name, count in manifest["rows"].items() if name != "reasons"},
        "seconds": round(time.monotonic() - run.began, 3),
        "tokens_per_second": training["tokens_per_second"],
        "steps": training["steps"],
        "best_step": training["best_step"],
        "model": {"ref": f"{run.job.output.path.rstrip('/')}/{MODEL}", **manifest["model"]},
        "gate": {name: manifest["gate"][name] for name in ("passed", "metric", "value", "reasons")},
        **({"speed": manifest["speed"]} if "speed" in manifest else {}),
    }
    return Outcome(summary, manifest, tables, 0 if manifest["promoted"] else NOT_PROMOTED, tuple(run.notes))
