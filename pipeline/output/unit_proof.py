"""The proof of one unit: its files are those of its receipt, and its rows are those of the plan, each once.

A unit is the bound of memory: files are hashed in pieces and decoded by row groups, and of rows only numbers are kept.
"""

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.plan import Unit
from pipeline.errors import RunError
from pipeline.output.coverage import Cover, Rows, Seen
from pipeline.output.encoding import FOOTER_KEY
from pipeline.output.layout import part_owner, part_path, receipt_path
from pipeline.output.planfile import Plan
from pipeline.output.receipts import PartFile, Receipt
from pipeline.output.storage import Store, words_of

_PIECE_BYTES = 1 << 20
_ENTRY = ("_file", "_row", "annotation", "reason", "detail")


def prove(store: Store, plan: Plan, unit: Unit, receipt: Receipt, seen: Seen | None) -> list[str]:
    """One sentence for each fault of a unit; `seen` is given where the corpus brought its rows' identity along."""
    faults: list[str] = []
    data: list[tuple[str, pa.Table]] = []
    quarantine: list[tuple[str, pa.Table]] = []
    for file in receipt.files:
        rows = _read(store, unit, receipt, file, faults)
        if rows is not None:
            (data if file.kind == "data" else quarantine).append((file.path, rows))
    cover = None if seen is not None else Cover.of(plan, unit, receipt)
    _check_counts(plan, receipt, cover, faults)
    if len(data) + len(quarantine) < len(receipt.files):
        return faults  # what stood in a file that cannot be read is not known: its own fault is told
    entries = pa.concat_tables([rows for _, rows in quarantine]) if quarantine else None
    if entries is not None:
        _check_entries(quarantine[0][0], receipt, entries, faults)
    elif receipt.rows_quarantined or receipt.reasons:
        faults.append(f"{receipt_path(unit.id)}: it counts quarantined rows and names no quarantine file")
    if cover is not None:
        _check_rows(cover, plan, receipt, data, entries, faults)
    else:
        _check_carried(seen, receipt, data, entries, faults)
    return faults


def _read(store: Store, unit: Unit, receipt: Receipt, file: PartFile, faults: list[str]) -> pa.Table | None:
    """Check one file against its receipt and its own checksums; the columns that say which rows it holds, or None."""
    owner = part_owner(file.path)
    if owner is None or owner[1] > receipt.epoch or file.path != part_path(file.kind, unit.folder, unit.id, owner[1]):
        faults.append(
            f"{file.path}: this is no place for a {file.kind} file of unit {unit.id} in {unit.folder or 'no folder'}"
        )
    try:
        digest, size = _digest(store, file.path)
        if size != file.bytes:
            faults.append(f"{file.path}: it has {size} bytes, its receipt says {file.bytes}")
        elif digest != file.sha256:
            faults.append(f"{file.path}: its digest is not the one in its receipt")
        with store.open_input(file.path) as opened, pq.ParquetFile(opened, page_checksum_verification=True) as part:
            footer = _footer(part.schema_arrow)
            rows = _decode(part, _ENTRY if file.kind == "quarantine" else _ENTRY[:2])
    except RunError as error:
        faults.append(f"{file.path}: it cannot be read: {_cause(error)}")
        return None
    except (OSError, pa.ArrowException, KeyError) as error:
        faults.append(f"{file.path}: it does not decode whole: {str(error).splitlines()[0]}")
        return None
    if rows.num_rows != file.rows:
        faults.append(f"{file.path}: it has {rows.num_rows} rows, its receipt says {file.rows}")
    if owner is not None and (footer.get("unit"), footer.get("epoch")) != owner:
        faults.append(f"{file.path}: its footer says unit {footer.get('unit')}, epoch {footer.get('epoch')}")
    return rows


def _cause(error: RunError) -> str:
    """Why a file cannot be read, without the advice for a run."""
    return words_of(error.__cause__) if isinstance(error.__cause__, OSError) else str(error)


def _digest(store: Store, path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with store.open_input(path) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def _footer(schema: pa.Schema) -> dict[str, Any]:
    """What our footer says; nothing where it is not ours."""
    try:
        footer = json.loads((schema.metadata or {})[FOOTER_KEY])
    except (KeyError, ValueError):
        return {}
    return footer if isinstance(footer, dict) else {}


def _decode(part: pq.ParquetFile, columns: tuple[str, ...]) -> pa.Table:
    """Decode and check every column of every row group; keep the named ones."""
    kept = [part.schema_arrow.empty_table().select(list(columns))]
    for group in range(part.num_row_groups):
        table = part.read_row_group(group)
        for column in table.columns:
            _validate(column)
        kept.append(table.select(list(columns)))
    return pa.concat_tables(kept)


def _validate(column: pa.ChunkedArray) -> None:
    """Arrow's full check; bytes that are no UTF-8 are the input's own, carried through unchanged."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _check_counts(plan: Plan, receipt: Receipt, cover: Cover | None, faults: list[str]) -> None:
    """The sums of a receipt agree with each other and with the plan."""
    path = receipt_path(receipt.unit)
    sums = receipt.rows_filtered + receipt.rows_out + receipt.rows_quarantined
    if receipt.rows_read != sums:
        faults.append(f"{path}: it read {receipt.rows_read} rows, but filtered, out and quarantined are {sums}")
    written = sum(file.rows for file in receipt.files if file.kind == "data")
    if receipt.rows_out != written:
        faults.append(f"{path}: {receipt.rows_out} rows came out, but its parts have {written}")
    if receipt.rows_filtered and plan.job["corpus"].get("filter") is None:
        faults.append(f"{path}: {receipt.rows_filtered} rows were filtered out, but the job has no filter")
    if cover is not None and receipt.rows_read != cover.total:
        faults.append(f"{path}: it read {receipt.rows_read} rows, the plan gave it {cover.total}")


def _check_entries(path: str, receipt: Receipt, entries: pa.Table, faults: list[str]) -> None:
    """Entries of the quarantine: none twice, and as many rows and reasons as the receipt counts."""
    twice = entries.group_by(list(_ENTRY)).aggregate([([], "count_all")]).filter(pc.field("count_all") > 1)
    if twice.num_rows:
        faults.append(f"{path}: the entry of {_pair(twice)} stands there {twice['count_all'][0]} times")
    reasons = entries.group_by(["_file", "_row", "reason"]).aggregate([])["reason"].value_counts().to_pylist()
    counted = {entry["values"]: entry["counts"] for entry in reasons}
    if counted != dict(receipt.reasons):
        faults.append(f"{path}: its reasons are {counted}, its receipt says {dict(receipt.reasons)}")
    rows = entries.filter(pc.field("_row").is_valid()).group_by(["_file", "_row"]).aggregate([]).num_rows
    if rows != receipt.rows_quarantined:
        faults.append(f"{path}: it holds {rows} rows, its receipt says {receipt.rows_quarantined}")


def _check_rows(
    cover: Cover,
    plan: Plan,
    receipt: Receipt,
    data: list[tuple[str, pa.Table]],
    entries: pa.Table | None,
    faults: list[str],
) -> None:
    """Each row of the unit stands in one place, in its order, and no other row does."""
    counts = np.zeros(cover.total, np.int64)
    for path, rows in data:
        ordinals_R = _ordinals(cover, path, rows, faults)
        if (np.diff(ordinals_R) <= 0).any():
            faults.append(f"{path}: its rows do not stand in the order of the input, or one stands there twice")
        counts += np.bincount(ordinals_R, minlength=cover.total)
    if entries is not None:
        path = next(file.path for file in receipt.files if file.kind == "quarantine")
        known = entries.filter(pc.field("_row").is_valid())
        counts[np.unique(_ordinals(cover, path, known, faults))] += 1
    double = np.flatnonzero(counts > 1)
    if len(double):
        faults.append(
            f"unit {receipt.unit}: {len(double)} rows stand in two places, the first is {cover.named(double[0])}"
        )
    missing = np.flatnonzero(counts == 0)
    if len(missing) and plan.job["corpus"].get("filter") is None:
        faults.append(f"unit {receipt.unit}: {len(missing)} rows are missing, the first is {cover.named(missing[0])}")
    told = set() if entries is None else set(entries.filter(pc.field("_row").is_null())["_file"].to_pylist())
    faults += [
        f"unit {receipt.unit}: {file} could not be read and has no entry" for file in cover.unknown if file not in told
    ]


def _ordinals(cover: Cover, path: str, rows: pa.Table, faults: list[str]) -> Rows:
    """Places of a file's rows in the unit; strange ones are told and left out."""
    ordinals_R = cover.ordinals(rows["_file"].cast(pa.string()), rows["_row"])
    strange = np.flatnonzero(ordinals_R < 0)
    if len(strange):
        first = rows.slice(int(strange[0]), 1)
        faults.append(f"{path}: {len(strange)} rows are not of its unit, the first is {_pair(first)}")
    return ordinals_R[ordinals_R >= 0]


def _check_carried(
    seen: Seen | None, receipt: Receipt, data: list[tuple[str, pa.Table]], entries: pa.Table | None, faults: list[str]
) -> None:
    """Rows that brought their identity along stand once in the whole output; what was lost unread has none."""
    assert seen is not None
    found = [*data]
    if entries is not None:
        path = next(file.path for file in receipt.files if file.kind == "quarantine")
        read = entries.filter(pc.field("annotation").is_valid()).group_by(["_file", "_row"]).aggregate([])
        found.append((path, read))
    for path, rows in found:
        twice = seen.add(rows["_file"].to_pylist(), rows["_row"].to_numpy())
        if twice:
            file, row = twice[0]
            faults.append(f"{path}: {len(twice)} rows stand in two places, the first is row {row} of {file}")


def _pair(rows: pa.Table) -> str:
    """`row 17 of a.parquet`, of the first row."""
    return f"row {rows['_row'][0]} of {rows['_file'][0]}"
