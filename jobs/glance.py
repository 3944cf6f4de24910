"""A glance at a finished output for people: some rows, and how many rows each label got."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.text import compile_text
from pipeline.errors import CorpusError
from pipeline.job import AnnotateJob
from pipeline.output import planfile
from pipeline.output.storage import Store

ROWS_SHOWN = 8
ROWS_COUNTED = 5_000_000
"""Labels are counted up to so many rows; a larger output is better asked with SQL."""


def glance(
    store: Store, manifest: Mapping[str, Any], job: AnnotateJob
) -> tuple[pa.Table | None, dict[str, dict[str, int]]]:
    """Rows of the first part with what the job added, and rows by label for each annotation that labels."""
    parts = [file for file in manifest["files"] if file["kind"] == "data"]
    if not parts:
        return None, {}
    first = pq.ParquetFile(store.full(parts[0]["path"]), filesystem=store.filesystem)
    names = first.schema_arrow.names
    rows = first.read_row_group(0).slice(0, ROWS_SHOWN)
    counts: dict[str, dict[str, int]] = {}
    if sum(file["rows"] for file in parts) <= ROWS_COUNTED:
        for each in job.annotations:
            column = f"{each.name}_label"
            if column in names and not pa.types.is_nested(first.schema_arrow.field(column).type):
                counts[each.name] = _counted(store, [file["path"] for file in parts], column)
    return rows.select(_worth_showing(job, planfile.load(store).schema, first.schema_arrow)), counts


def _worth_showing(job: AnnotateJob, corpus: pa.Schema, part: pa.Schema) -> list[str]:
    """The columns that the texts come from, then what was added; the tokens and row identity are for machines."""
    names = part.names
    # A text may come from what an earlier annotation has added.
    known = pa.schema([*corpus, *(field for field in part if field.name not in corpus.names)])
    texts: list[str] = []
    for each in job.annotations:
        texts += [name for name in _read(each.text, known) if name in names and name not in texts]
    added = [
        name
        for each in job.annotations
        for name in names
        if name.startswith(f"{each.name}_") and not name.endswith(("_tokens", "_truncated"))
    ]
    return [*(name for name in texts if name not in added), *dict.fromkeys(added)]


def _read(text: str | None, known: pa.Schema) -> tuple[str, ...]:
    """The columns of a text; none where the task reads something else, or the same words for every row."""
    try:
        return () if text is None else compile_text(text, known).columns
    except CorpusError:  # the run has made sense of it
        return ()


def _counted(store: Store, paths: list[str], column: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in paths:
        labels = pq.read_table(store.full(path), columns=[column], filesystem=store.filesystem, partitioning=None)[
            column
        ]
        for entry in pc.value_counts(labels).to_pylist():
            label = "(none)" if entry["values"] is None else str(entry["values"])
            counts[label] = counts.get(label, 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
