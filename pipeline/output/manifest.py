"""The manifest: what a finished output was made of, with what, and which files it is. Written last, so it means done.

{"version": 1, "epoch": 2, "runs": [{"epoch": 1, "run_id": "…", "started": "…"}, …], "job": {"corpus": …, …},
 "corpus": {"root": "/corpus", "files": [{"path": "a.parquet", "fingerprint": "91532-1763…", "rows": 4113}, …]},
 "models": {"topic": {"ref": "wheel:…", "digest": "53aa…", "engine": "torch", "dtype": "bfloat16", …}},
 "versions": {"python": "3.12.3", "torch": "2.13.0", …}, "totals": {"units": 12, "rows_out": 4110, …},
 "files": [{"path": "data/part-6f1c…-1.parquet", "kind": "data", "rows": 4095, "bytes": 812233, "sha256": "…"}, …],
 "plan": "sha256 of the plan file", "receipts": {"6f1c…": "sha256 of its receipt"}}
"""

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.errors import OutputError
from pipeline.output import epoch
from pipeline.output.layout import MANIFEST, PLAN
from pipeline.output.planfile import PinnedAnnotation, Plan
from pipeline.output.receipts import Receipt, totals
from pipeline.output.sealed import BrokenSealError, seal, unseal
from pipeline.output.storage import Store

VERSION = 1

_PACKAGES = ("corpusmill", "datasets", "numpy", "pyarrow", "ray", "tokenizers", "torch", "transformers")


def build(store: Store, plan: Plan, receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    """The manifest of what stands in the output now."""
    runs = epoch.runs(store)
    return {
        "version": VERSION,
        "epoch": max((run.epoch for run in runs), default=0),
        "runs": [asdict(run) for run in runs],
        "job": dict(plan.job),
        "corpus": {
            "root": plan.root,
            "files": [
                {"path": each.path, "fingerprint": each.fingerprint, "rows": None if each.problem else each.rows}
                for each in plan.fragments
            ],
        },
        "models": {name: _model(pinned) for name, pinned in plan.annotations.items()},
        "versions": {"python": platform.python_version(), **_versions()},
        "totals": dict(totals(receipts)),
        "files": files_of(receipts),
        "plan": hashlib.sha256(store.read(PLAN)).hexdigest(),
        "receipts": {unit: digest_of(receipt) for unit, receipt in sorted(receipts.items())},
    }


def files_of(receipts: Mapping[str, Receipt]) -> list[dict[str, Any]]:
    """All files that receipts name, sorted by path."""
    every = [asdict(file) for receipt in receipts.values() for file in receipt.files]
    return sorted(every, key=lambda file: str(file["path"]))


def digest_of(receipt: Receipt) -> str:
    """The sha256 of a receipt's file."""
    return hashlib.sha256(receipt.to_bytes()).hexdigest()


def save(store: Store, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    store.write(MANIFEST, seal(manifest))


def load(store: Store) -> dict[str, Any] | None:
    """The manifest; None before the first finished run, OutputError where it was damaged or edited."""
    data = store.find(MANIFEST)
    if data is None:
        return None
    try:
        return unseal(data)
    except BrokenSealError as error:
        raise OutputError(
            f"{MANIFEST} in {store.root}: {error}; restore it, or run the same command to have it written again"
        ) from error


def _model(pinned: PinnedAnnotation) -> dict[str, Any]:
    """What decided an annotation's values; a trial or a calibration only where there was one."""
    value = asdict(pinned) | {"tried": [asdict(each) for each in pinned.tried]}
    unmade = [name for name in ("tried", "calibration", "agreement") if not value[name]]
    return {name: each for name, each in value.items() if name not in unmade}


def _versions() -> dict[str, str]:
    """What is installed of the packages that values may depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source folder
            continue
    return found
