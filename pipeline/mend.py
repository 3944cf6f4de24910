"""What a retry has left to do of a unit: the rows that were read, less those that stand in its parts already.

    without(found, {"a.parquet": {0, 1, 3}})     rows 2 and 4 of a.parquet; of Lost(first_row=0, rows=5) rows 2 and 4

A row that stands is never computed again, whatever can be read of it today.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from pipeline.corpus.identity import IDENTITY
from pipeline.corpus.reader import ReadUnit
from pipeline.corpus.rowgroup import ranges_of
from pipeline.corpus.selection import take_rows
from pipeline.output.receipts import Receipt
from pipeline.output.storage import Store
from pipeline.quarantine import Lost


def standing_rows(store: Store, receipt: Receipt) -> dict[str, set[int]]:
    """The rows of a unit that stand in its parts, by `_file`."""
    standing: dict[str, set[int]] = {}
    for file in receipt.files:
        if file.kind == "data":
            with pq.ParquetFile(store.open_input(file.path)) as part:
                rows = part.read(columns=[field.name for field in IDENTITY])
            for name, row in zip(rows["_file"].to_pylist(), rows["_row"].to_pylist(), strict=True):
                standing.setdefault(name, set()).add(row)
    return standing


def without(found: ReadUnit, standing: Mapping[str, set[int]]) -> ReadUnit:
    """What was read, less the rows that stand in parts already."""
    files, rows = found.table["_file"].to_pylist(), found.table["_row"].to_pylist()
    kept = [n for n, (file, row) in enumerate(zip(files, rows, strict=True)) if row not in standing.get(file, ())]
    place_of = {row: place for place, row in enumerate(kept)}
    problems = [replace(each, row=place_of[each.row]) for each in found.problems if each.row in place_of]
    lost = [part for each in found.lost for part in _lost_without(each, standing.get(each.file, set()))]
    return replace(found, table=take_rows(found.table, np.array(kept, np.int64)), problems=problems, lost=lost)


def _lost_without(lost: Lost, standing: set[int]) -> list[Lost]:
    """The stretches of a lost range that stand in no part."""
    if lost.first_row is None or lost.rows is None or not standing:
        return [lost]
    rows = [row for row in range(lost.first_row, lost.first_row + lost.rows) if row not in standing]
    return [replace(lost, first_row=first, rows=count) for first, count in ranges_of(rows)]
