"""Labeled rows in the form in which an annotate job can be held against them, where the corpus has another.

corpus      tokens ["Anna", "in", "York"]      tags ["B-PER", "O", "B-LOC"]
rows/1f…/6f1c….parquet    … and beside them    tagged_text "Anna in York"    tagged_spans [{PER, 0, 4}, {LOC, 8, 12}]
"""

import hashlib

from pipeline.corpus.source import CorpusSettings
from pipeline.errors import CorpusError
from pipeline.output.storage import Store
from pipeline.progress import Watcher
from pipeline.training.objectives.base import Objective
from pipeline.training.rows import read_unit, rows_of, write_parquet

ROWS = "rows"
"""The folder of an evaluation's output that holds them."""


def rewritten(settings: CorpusSettings, objective: Objective, store: Store, watcher: Watcher) -> CorpusSettings:
    """The rows as `objective.judged_rows` gives them, in files below the output; those that are there already stay.

    They are read one unit at a time. What another job, or the same over other files, left there is in a folder of its
    own. Raises CorpusError: no row is left.
    """
    rows, _ = rows_of(settings, None, lambda schema: set(schema.names))
    asked = [settings.model_dump_json(), objective.data.model_dump_json(), *(unit.id for unit in rows.units)]
    folder = f"{ROWS}/{hashlib.sha256(chr(0).join(asked).encode()).hexdigest()[:16]}"
    kept = lost = 0
    for unit in rows.units:
        path = f"{folder}/{unit.id}.parquet"
        if store.exists(path):
            kept += 1
            continue
        found = read_unit(rows, unit)
        lost += sum(each.rows or 0 for each in found.lost)
        if found.table.num_rows:
            write_parquet(store, path, objective.judged_rows(found.table))
            kept += 1
    if lost:
        watcher.note(f"{lost:,} rows of the corpus cannot be read, and are not judged")
    if not kept:
        raise CorpusError(f"data: no row of {settings.path!r} is left to judge")
    return CorpusSettings(path=str(store.full(folder)))
