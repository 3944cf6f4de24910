"""The proof, from what stands on disk alone, that an output is whole: each row in one place, and nothing changed since.

    report = verify("out/topics")
    report.faults        ("data/part-6f1c…-1.parquet: its digest is not the one in its receipt", …)
    report.unfinished    ("2 of 12 units have no receipt: …",)
    report.finished      nothing is left to do
    report.sound         finished, and no fault

The input is not read.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.plan import Unit
from pipeline.errors import OutputError
from pipeline.output import epoch, manifest, planfile
from pipeline.output.coverage import Seen, overlaps
from pipeline.output.layout import EPOCH, KIND_FOLDERS, MANIFEST, PLAN, part_owner, receipt_path
from pipeline.output.planfile import Plan
from pipeline.output.receipts import Receipt, load_all, totals
from pipeline.output.storage import Store
from pipeline.output.unit_proof import prove

_THREADS = 4  # each holds a row group of a part


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found; each fault is one sentence that names the file."""

    path: str
    finished: bool
    faults: tuple[str, ...]
    unfinished: tuple[str, ...] = ()  # what a run of the same command would still do
    units_done: int = 0
    units_total: int = 0
    files: int = 0
    rows_read: int = 0
    rows_filtered: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0

    @property
    def sound(self) -> bool:
        """Finished and without a fault."""
        return self.finished and not self.faults


def verify(path: str) -> Report:
    """Prove an output, or tell why not; OutputError where there is none at all."""
    store = Store.at(path)
    try:
        plan = planfile.load(store)
    except OutputError as error:
        if not planfile.exists(store):
            raise
        return Report(path, finished=False, faults=(f"{error}; without it nothing else can be proven",))
    receipts, damaged = load_all(store)
    faults = [*damaged, *(f"{PLAN}: two units claim the same rows of {file}" for file in overlaps(plan))]
    unfinished: list[str] = []
    planned = {unit.id: unit for unit in plan.units}
    faults += [f"{receipt_path(unit)}: the plan has no such unit" for unit in receipts if unit not in planned]
    done = {unit: receipt for unit, receipt in receipts.items() if unit in planned}
    _check_units(planned, done, unfinished)
    _check_strays(store, planned, receipts, faults, unfinished)
    _check_manifest(store, plan, receipts, faults, unfinished)
    faults += _prove_units(store, plan, planned, done)
    sums = totals(done)
    return Report(
        path=path,
        finished=not unfinished,
        faults=tuple(faults),
        unfinished=tuple(unfinished),
        units_done=len(done),
        units_total=len(planned),
        files=sum(len(receipt.files) for receipt in done.values()),
        rows_read=sums["rows_read"],
        rows_filtered=sums["rows_filtered"],
        rows_out=sums["rows_out"],
        rows_quarantined=sums["rows_quarantined"],
    )


def _prove_units(store: Store, plan: Plan, planned: Mapping[str, Unit], done: Mapping[str, Receipt]) -> list[str]:
    """Read all parts of all units that have a receipt."""
    seen = Seen() if plan.identity_carried else None

    def proven(unit: str) -> list[str]:
        return prove(store, plan, planned[unit], done[unit], seen)

    with ThreadPoolExecutor(_THREADS) as pool:
        return [fault for faults in pool.map(proven, done) for fault in faults]


def _check_units(planned: Mapping[str, Unit], done: Mapping[str, Receipt], unfinished: list[str]) -> None:
    """Every planned unit owes a receipt."""
    missing = [receipt_path(unit) for unit in planned if unit not in done]
    if missing:
        unfinished.append(f"{len(missing)} of {len(planned)} units have no receipt: {_some(missing)}")


def _check_strays(
    store: Store, planned: Mapping[str, Unit], receipts: Mapping[str, Receipt], faults: list[str], unfinished: list[str]
) -> None:
    """Nothing may stand in the folders that readers read but what a receipt names."""
    named = {file.path for receipt in receipts.values() for file in receipt.files}
    waiting = []
    for folder in KIND_FOLDERS.values():
        for path in store.list(folder, recursive=True):
            owner = part_owner(path)
            if path in named:
                continue
            if owner is not None and owner[0] in planned and owner[0] not in receipts:
                waiting.append(path)
            else:
                faults.append(f"{path}: no receipt names this file")
    if waiting:
        unfinished.append(f"{len(waiting)} files are of units without a receipt, and do not count: {_some(waiting)}")


def _check_manifest(
    store: Store, plan: Plan, receipts: Mapping[str, Receipt], faults: list[str], unfinished: list[str]
) -> None:
    """The manifest must be there, be of the last run, and say what the plan and the receipts say."""
    try:
        last = epoch.newest(store)
        standing = manifest.load(store)
    except OutputError as error:
        faults.append(str(error))
        return
    newest = max((receipt.epoch for receipt in receipts.values()), default=0)
    if newest > last:
        faults.append(f"{EPOCH}: the last run is {last}, but a receipt is of run {newest}")
    if standing is None:
        unfinished.append(f"there is no {MANIFEST}: the run did not come to its end")
    elif standing["epoch"] < last:
        unfinished.append(f"{MANIFEST} is of run {standing['epoch']}, and run {last} did not come to its end")
    else:
        faults += _manifest_faults(store, plan, receipts, standing)


def _manifest_faults(
    store: Store, plan: Plan, receipts: Mapping[str, Receipt], standing: Mapping[str, Any]
) -> list[str]:
    """Where the manifest of the last run contradicts the rest of the output."""
    faults = []
    if standing["plan"] != hashlib.sha256(store.read(PLAN)).hexdigest():
        faults.append(f"{PLAN}: its digest is not the one in {MANIFEST}")
    told: Mapping[str, str] = standing["receipts"]
    faults += [f"{receipt_path(unit)}: it is gone, {MANIFEST} names it" for unit in told if unit not in receipts]
    for unit, receipt in receipts.items():
        if unit not in told:
            faults.append(f"{receipt_path(unit)}: {MANIFEST} does not name it")
        elif told[unit] != manifest.digest_of(receipt):
            faults.append(f"{receipt_path(unit)}: its digest is not the one in {MANIFEST}")
    fresh = manifest.build(store, plan, receipts)
    differing = [
        key for key in ("epoch", "job", "corpus", "models", "totals", "files") if standing.get(key) != fresh[key]
    ]
    if differing and not faults:
        faults.append(f"{MANIFEST}: what it says of {', '.join(differing)} is not what the plan and the receipts say")
    return faults


def _some(paths: list[str]) -> str:
    shown = 3
    return ", ".join(paths[:shown]) + (f" and {len(paths) - shown} more" if len(paths) > shown else "")
