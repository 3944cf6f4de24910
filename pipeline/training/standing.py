"""How far a fine-tuning is, and the proof that what it left is what it promoted, from what stands on disk.

standing("models/sections") -> Standing(state="training", units_done=12, units_total=12, step=420, steps=1536, …)
proved("models/sections")   -> Report(path=…, finished=True, faults=())
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.errors import ModelError, OutputError
from pipeline.models.digest import digest_of, file_digests
from pipeline.output import lease
from pipeline.output.layout import MANIFEST, PLAN
from pipeline.output.storage import Store
from pipeline.output.verify import Report, verify
from pipeline.training.examples import receipt_of
from pipeline.training.promote import CANDIDATE, FACTS, MODEL

TRAINED = "metadata/trained.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions"
PROGRESS = "metadata/tmp/training.json"

State = Literal["encoding", "training", "judging", "finished"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands in a fine-tuning's output at this moment."""

    path: str
    finished: bool
    running: lease.Holder | None
    state: State  # what is done next, or now
    units_done: int  # of rows that were tokenised
    units_total: int
    step: int | None  # that the last log told of; None before the first
    steps: int | None
    promoted: bool | None  # None: not judged yet
    reasons: tuple[str, ...]  # for which it was not
    model: str | None
    digest: str | None


def is_finetuning(store: Store) -> bool:
    """Whether a fine-tuning wrote this output."""
    return _plan(store) is not None


def standing(path: str) -> Standing:
    """Look at the output of a fine-tuning. Raises OutputError where there is none."""
    store = Store.at(path)
    plan = _plan(store)
    if plan is None:
        raise OutputError(f"{store.root} is no output of a finetune job")
    manifest, told = _json(store, MANIFEST), _json(store, PROGRESS) or {}
    trained = _json(store, TRAINED)
    if trained is not None:
        told = {"step": trained["steps"], "steps": trained["steps"]}
    encoded = sum(receipt_of(store, name) is not None for name in plan["units"])
    return Standing(
        path=path,
        finished=manifest is not None,
        running=lease.holder(store),
        state=_state(encoded < len(plan["units"]), trained is None, manifest is None),
        units_done=encoded,
        units_total=len(plan["units"]),
        step=told.get("step"),
        steps=told.get("steps"),
        promoted=None if manifest is None else manifest["promoted"],
        reasons=() if manifest is None else tuple(manifest["gate"]["reasons"]),
        model=f"{path.rstrip('/')}/{MODEL}" if store.exists(MODEL) else None,
        digest=None if manifest is None else manifest["model"]["digest"],
    )


def _state(encodes: bool, trains: bool, judges: bool) -> State:
    if encodes:
        return "encoding"
    return "training" if trains else "judging" if judges else "finished"


def proved(path: str) -> Report:
    """Prove that the model is the one that was judged, that its card's facts are its own, and that the predictions are
    whole. Raises OutputError where there is no output.
    """
    store = Store.at(path)
    manifest = _json(store, MANIFEST)
    if manifest is None:
        unfinished = (f"there is no {MANIFEST}: the same `corpusmill run` goes on",)
        return Report(path=path, finished=False, faults=(), unfinished=unfinished)
    faults = _model_faults(store, manifest)
    if not store.exists(PREDICTIONS):
        return Report(path=path, finished=True, faults=tuple(faults))
    report = verify(str(store.full(PREDICTIONS)))
    faults += [f"{PREDICTIONS}/{fault}" for fault in report.faults]
    return replace(report, path=path, faults=tuple(faults))


def _model_faults(store: Store, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the model's folder."""
    place, wanted = MODEL if manifest["promoted"] else CANDIDATE, manifest["model"]["digest"]
    if not store.exists(place):
        return [f"{place} is not there"]
    try:
        found = digest_of(file_digests(store.full(place)))
    except (ModelError, OSError) as error:
        return [f"{place}: {error}"]
    faults = [] if found == wanted else [f"{place}: its digest is {found}, and {wanted} was judged"]
    facts = _json(store, f"{place}/{FACTS}")
    if manifest["promoted"] and (facts is None or facts["model"]["digest"] != wanted):
        faults.append(f"{place}/{FACTS} is missing, or tells of another model")
    return faults


def _plan(store: Store) -> dict[str, Any] | None:
    found = _json(store, PLAN)
    return found if found is not None and found.get("kind") == "finetune" else None


def _json(store: Store, path: str) -> dict[str, Any] | None:
    """A file's object; None where there is none, or nothing that can be read."""
    content = store.find(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
