"""The commit of one unit: its part, its quarantine file, then the receipt that makes them count.

    commit_unit(store, UnitCommit(unit="6f1c…", folder="section=games", epoch=1, table=…, problems=[…], …)) -> Receipt

Killed anywhere before the receipt, it leaves files that no receipt names; the next run sweeps them away.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.selection import take_rows
from pipeline.errors import CorpusmillError
from pipeline.output.encoding import write_parquet
from pipeline.output.epoch import check_fence
from pipeline.output.layout import KIND_FOLDERS, part_path, receipt_path
from pipeline.output.receipts import Kind, PartFile, Receipt, add, least, load
from pipeline.output.rejects import entries
from pipeline.output.storage import Store
from pipeline.profile import timed
from pipeline.quarantine import Lost, Problem


@dataclass(frozen=True, slots=True)
class UnitCommit:
    """All that is known of a unit once it was annotated."""

    unit: str
    folder: str  # hive folders, or ""
    epoch: int
    run_id: str
    table: pa.Table
    """Rows that were read and that the filter keeps, in input order: carried columns, annotations, `_file`, `_row`."""

    schema: pa.Schema
    """Of every unit's table of the run, with its metadata: what Ray dropped of it on the way comes back from here."""

    columns: tuple[str, ...]
    """Those of the table that go to `data/`, in this order; never a partition column."""

    problems: Sequence[Problem]
    """Only those that set their row aside (not those of `errors: keep`)."""

    lost: Sequence[Lost] = ()
    rows_filtered: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    tokens_by_annotation: Mapping[str, int] = field(default_factory=dict)
    token_budget: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    footer: Mapping[str, Any] = field(default_factory=dict)
    """For each file's footer: models, options, version. Nothing that a second attempt would say differently."""

    spans: tuple[tuple[str, int, int], ...] | None = None
    """(file, first row, rows) of all that the unit covers, where the plan could not know."""

    previous: Receipt | None = None
    """A retry's: the receipt that this one takes the place of; the table then holds only what was set aside."""


def commit_unit(store: Store, commit: UnitCommit) -> Receipt:
    """Write what a unit gave; the receipt that stands afterwards, which is another's where that was first.

    Raises RunError where the disk refuses or the run's epoch is over; nothing that counts has then changed.
    """
    standing = _already_done(store, commit)
    if standing is not None:
        return standing
    check_fence(store, commit.epoch)
    try:
        with timed("parts"):
            files = _write_files(store, commit)
        check_fence(store, commit.epoch)
        receipt = _receipt(commit, files)
        with timed("receipt"):
            if commit.previous is not None:
                store.write(receipt_path(commit.unit), receipt.to_bytes())
            elif not store.write_new(receipt_path(commit.unit), receipt.to_bytes()):
                _discard(store, commit)
                receipt = load(store, commit.unit) or receipt
    except BaseException:
        with suppress(CorpusmillError):  # the first error is the one to tell; a sweep finds what stays
            _discard(store, commit)
        raise
    for file in commit.previous.files if commit.previous else ():
        if file.kind == "quarantine":
            store.delete(file.path)
    return receipt


def _already_done(store: Store, commit: UnitCommit) -> Receipt | None:
    """The receipt that this commit would write again, because its task was executed twice."""
    assert commit.previous is None or commit.previous.epoch < commit.epoch, "a retry is a later run"
    standing = load(store, commit.unit)
    if standing is not None and (commit.previous is None or standing.epoch == commit.epoch):
        return standing
    return None


def _write_files(store: Store, commit: UnitCommit) -> tuple[PartFile, ...]:
    """Write the part and the quarantine file, each only where it has rows."""
    table = pa.table(commit.table.select(commit.schema.names).columns, schema=commit.schema)
    good = np.ones(table.num_rows, np.bool_)
    good[[problem.row for problem in commit.problems]] = False
    part = take_rows(table.select(list(commit.columns)), np.flatnonzero(good))
    rejected = entries(table, commit.problems, commit.lost)
    outcome: tuple[tuple[Kind, pa.Table], ...] = (("data", part), ("quarantine", rejected))
    files = []
    for kind, rows in outcome:
        if rows.num_rows:
            path = part_path(kind, commit.folder, commit.unit, commit.epoch)
            footer = {**commit.footer, "unit": commit.unit, "epoch": commit.epoch, "run_id": commit.run_id}
            with store.create(path) as sink:
                write_parquet(sink, rows, footer)
            files.append(PartFile(path, kind, rows.num_rows, sink.bytes, sink.sha256))
    return tuple(files)


def _receipt(commit: UnitCommit, files: tuple[PartFile, ...]) -> Receipt:
    """Count what became of the unit's rows."""
    lost_rows = sum(lost.rows or 0 for lost in commit.lost)
    set_aside = len({problem.row for problem in commit.problems})
    reasons = [
        {reason.value: 1} for _, reason in sorted({(problem.row, problem.reason) for problem in commit.problems})
    ]
    reasons += [{lost.reason.value: 1 if lost.rows is None else lost.rows} for lost in commit.lost]
    receipt = Receipt(
        unit=commit.unit,
        epoch=commit.epoch,
        run_id=commit.run_id,
        files=files,
        rows_read=commit.table.num_rows + commit.rows_filtered + lost_rows,
        rows_filtered=commit.rows_filtered,
        rows_out=commit.table.num_rows - set_aside,
        rows_quarantined=set_aside + lost_rows,
        unit_lost=bool(commit.lost) and commit.table.num_rows + commit.rows_filtered == 0,
        reasons=add(reasons),
        tokens=int(commit.tokens),
        padding_tokens=int(commit.padding_tokens),
        tokens_by_annotation={name: int(tokens) for name, tokens in commit.tokens_by_annotation.items()},
        token_budget=dict(commit.token_budget),
        seconds=round(float(commit.seconds), 3),
        spans=commit.spans,
    )
    return receipt if commit.previous is None else _follow(commit.previous, receipt)


def _follow(previous: Receipt, retry: Receipt) -> Receipt:
    """A retry's: the rows once set aside leave the count, and what became of them now enters it."""
    return Receipt(
        unit=retry.unit,
        epoch=retry.epoch,
        run_id=retry.run_id,
        files=(*(file for file in previous.files if file.kind == "data"), *retry.files),
        rows_read=previous.rows_read - previous.rows_quarantined + retry.rows_read,
        rows_filtered=previous.rows_filtered + retry.rows_filtered,
        rows_out=previous.rows_out + retry.rows_out,
        rows_quarantined=retry.rows_quarantined,
        unit_lost=previous.unit_lost and retry.unit_lost,
        reasons=retry.reasons,
        tokens=previous.tokens + retry.tokens,
        padding_tokens=previous.padding_tokens + retry.padding_tokens,
        tokens_by_annotation=add([previous.tokens_by_annotation, retry.tokens_by_annotation]),
        token_budget=least([previous.token_budget, retry.token_budget]),
        seconds=round(previous.seconds + retry.seconds, 3),
        spans=retry.spans if retry.spans is not None else previous.spans,
    )


def _discard(store: Store, commit: UnitCommit) -> None:
    """Remove own files, unless a standing receipt names them."""
    standing = load(store, commit.unit)
    named = {file.path for file in standing.files} if standing else set()
    for kind in KIND_FOLDERS:
        path = part_path(kind, commit.folder, commit.unit, commit.epoch)
        if path not in named:
            store.delete(path)
