"""The rows of an output in one table: those of its parts, and those that were set aside.

    read_rows(store, manifest["files"], partition, Wanted({"section": …, "topic_label": …}, present="section"))
    -> _file      _row  section  topic_label  set aside
       a.parquet  0     games    web          null
       a.parquet  1     web      null         ["topic"]     # in the quarantine, whose entries tell what failed

Sorted by where the rows first came from, so that two outputs over the same rows stand in the same order.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds

from pipeline.corpus import hive
from pipeline.corpus.column import ColumnPath
from pipeline.corpus.identity import IDENTITY
from pipeline.errors import RunError
from pipeline.output.layout import KIND_FOLDERS
from pipeline.output.storage import Store

SET_ASIDE = "\0set_aside"
"""The column that tells which annotations failed in a row, "" for one that could not be read whole; null in parts."""

_READ = "\0read"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns of the output by the names that they get in the table."""

    columns: Mapping[str, ColumnPath]
    present: str | None = None
    """One of the names: rows where it is null are not kept, but counted."""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """What was found; rows without `present` and rows that nobody could read are in no table."""

    table: pa.Table
    present: str | None
    absent: int  # rows where `present` is null
    unreadable: int  # rows (and files of unknown length) in the quarantine of which nothing is known

    def left_out(self) -> dict[str, int]:
        """Why rows are in no table -> how many."""
        return {f"{self.present} is null": self.absent, "the row could not be read": self.unreadable}


def read_rows(
    store: Store, files: Iterable[Mapping[str, Any]], partition: Iterable[pa.Field], wanted: Wanted
) -> OutputRows:
    """Read the files that a manifest names.

    Raises RunError where one cannot be read.
    """
    partition = tuple(partition)
    fields = [*IDENTITY, *(pa.field(name, path.type) for name, path in wanted.columns.items() if name not in _NAMES)]
    schema = pa.schema([*fields, pa.field(SET_ASIDE, pa.list_(pa.string()))])
    tables = [schema.empty_table()]
    absent = unreadable = 0
    for file in files:
        folder = KIND_FOLDERS[file["kind"]]
        set_aside = folder != KIND_FOLDERS["data"]
        table = _read(store, file["path"], file["path"].removeprefix(f"{folder}/"), partition, wanted, set_aside)
        if set_aside:
            known = table.filter(table[_READ])
            unreadable += len(table) - len(known)
            table = _once(known.drop_columns(_READ))
        if wanted.present is not None:
            kept = table.filter(table[wanted.present].is_valid())
            absent += len(table) - len(kept)
            table = kept
        tables.append(table.select(schema.names).cast(schema))
    found = pa.concat_tables(tables)
    return OutputRows(found.sort_by([(name, "ascending") for name in _NAMES]), wanted.present, absent, unreadable)


_NAMES = tuple(field.name for field in IDENTITY)


def _read(
    store: Store, path: str, below: str, partition: tuple[pa.Field, ...], wanted: Wanted, set_aside: bool
) -> pa.Table:
    """The wanted columns of one file; of a quarantine file from its `input`, with the failed annotation."""
    above = ("input",) if set_aside else ()
    in_path = {field.name: field for field in partition}
    expressions = {name: pc.field(name) for name in _NAMES}
    constant: dict[str, pa.Scalar] = {}
    for name, column in wanted.columns.items():
        if column.names[0] in in_path:
            constant[name] = hive.scalar_of(hive.partition_of(below), in_path[column.names[0]])
        elif name not in _NAMES:
            names = (*above, *column.names)
            expressions[name] = pc.field(*names) if len(names) == 1 else pc.field(names)
    if set_aside:
        expressions |= {_READ: pc.field("input").is_valid(), SET_ASIDE: pc.field("annotation")}
    try:
        table = pds.dataset(str(store.full(path)), format="parquet", filesystem=store.filesystem).to_table(expressions)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"could not read {path} in {store.root}: {error}; ask `corpusmill verify`") from error
    for name, value in constant.items():
        table = table.append_column(name, pa.repeat(value, len(table)))
    return table if set_aside else table.append_column(SET_ASIDE, pa.nulls(len(table), pa.list_(pa.string())))


def _once(entries: pa.Table) -> pa.Table:
    """A row for each row that was set aside, however many entries tell of it."""
    failed: dict[tuple[str, int], list[str]] = {}
    first = []
    keys = zip(entries["_file"].to_pylist(), entries["_row"].to_pylist(), strict=True)
    for place, (key, annotation) in enumerate(zip(keys, entries[SET_ASIDE].to_pylist(), strict=True)):
        if key not in failed:
            first.append(place)
        failed.setdefault(key, []).append(annotation or "")
    rows = entries.drop_columns(SET_ASIDE).take(pa.array(first, pa.int64()))
    return rows.append_column(SET_ASIDE, pa.array(list(failed.values()), pa.list_(pa.string())))
