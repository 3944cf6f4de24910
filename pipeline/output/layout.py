"""Where everything of an output lies, said once; and which folders may become one.

    out/topics/
      data/section=games/part-6f1c…-1.parquet        what readers read
      quarantine/section=games/part-6f1c…-1.parquet  rows that could not be annotated
      metadata/plan.json, receipts/6f1c….json, manifest.json, epoch.json, lease, holder.json, tmp/
      metadata/profile.json, profile.png             where the time of the last profiled execution went
      metadata/calibration-53aa….safetensors         of models in int8

All paths in this package are relative to the output's root, with `/` between folders.
"""

import os
import re
from pathlib import Path

from pipeline.errors import OutputError

DATA = "data"
QUARANTINE = "quarantine"
METADATA = "metadata"
RECEIPTS = "metadata/receipts"
TMP = "metadata/tmp"
PLAN = "metadata/plan.json"
MANIFEST = "metadata/manifest.json"
EPOCH = "metadata/epoch.json"
LEASE = "metadata/lease"
HOLDER = "metadata/holder.json"
PROFILE = "metadata/profile.json"
PROFILE_PICTURE = "metadata/profile.png"

KIND_FOLDERS = {"data": DATA, "quarantine": QUARANTINE}
"""Kind of a file in a receipt -> its folder."""

_BEFORE_THE_PLAN = {EPOCH, LEASE, HOLDER}  # what stands when a first run is killed before its plan was written
_PART_NAME = re.compile(r"^part-([0-9a-f]+)-([0-9]+)\.parquet$")
_KIND_OF_FILE = {
    PLAN: "plan",
    MANIFEST: "manifest",
    EPOCH: "epoch",
    HOLDER: "holder",
    PROFILE: "profile",
    PROFILE_PICTURE: "profile",
}
_KIND_OF_FOLDER = {DATA: "part", QUARANTINE: "quarantine", RECEIPTS: "receipt", TMP: "temporary"}


def part_path(kind: str, folder: str, unit: str, epoch: int) -> str:
    """`data/section=games/part-6f1c…-1.parquet`; `kind` is "data" or "quarantine"."""
    return "/".join(filter(None, (KIND_FOLDERS[kind], folder, f"part-{unit}-{epoch}.parquet")))


def part_owner(path: str) -> tuple[str, int] | None:
    """The unit and epoch in a part's name; None where the name is not one that corpusmill gives."""
    match = _PART_NAME.match(path.rpartition("/")[2])
    return (match[1], int(match[2])) if match else None


def receipt_path(unit: str) -> str:
    """Where the receipt of a unit stands."""
    return f"{RECEIPTS}/{unit}.json"


def calibration_path(digest: str) -> str:
    """Where the calibration of a model in int8 stands, by its sha256."""
    return f"{METADATA}/calibration-{digest}.safetensors"


def kind_of(path: str) -> str:
    """What a file is, for failpoints and messages: part, receipt, plan …"""
    known = _KIND_OF_FILE.get(path)
    return known or next((kind for folder, kind in _KIND_OF_FOLDER.items() if path.startswith(folder + "/")), "file")


def check_output(root: str) -> None:
    """Refuse a folder that holds something else, or that cannot be one.

    What a first run leaves when it is killed before its plan was written is no reason to refuse.

    Raises OutputError.
    """
    folder = Path(root)
    if os.path.lexists(root) and not folder.is_dir():
        raise OutputError(f"output.path {root} is a file; name a folder, or one that does not exist yet")
    above = next((each for each in folder.parents if os.path.lexists(each)), folder)
    if not above.is_dir():
        raise OutputError(f"output.path {root} cannot be made: {above} is no folder; name another one")
    if not folder.is_dir() or os.path.lexists(folder / PLAN):
        return
    foreign = _foreign(root)
    if foreign is not None:
        raise OutputError(
            f"output.path {root} holds something else ({foreign}) and no {PLAN}: it is no output of corpusmill; "
            "name an empty folder, or one that does not exist yet"
        )


def _foreign(root: str) -> str | None:
    """The first thing in a folder without a plan that no killed first run of ours can have left there."""
    for folder, folders, files in os.walk(root):
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        if inside == TMP:
            folders.clear()
            continue
        prefix = "" if inside == "." else f"{inside}/"
        ours = {DATA, QUARANTINE, METADATA, RECEIPTS, TMP}
        for name in sorted(folders):
            if prefix + name not in ours:
                return prefix + name + "/"
        for name in sorted(files):
            if prefix + name not in _BEFORE_THE_PLAN:
                return prefix + name
    return None
