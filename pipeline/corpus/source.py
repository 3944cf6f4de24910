"""A corpus: one Parquet dataset, whatever its path means, as fragments with one schema.

    CorpusSettings(path="data/debian", filter="section = 'games'", sample=1000)
    Corpus(root="/srv/data/debian", fragments=(Fragment("part-00.parquet", …), …), schema=…, partition=(), notes=())

A path is a file, a folder, a glob, or a list of those, local or by URI. A folder that is an output of ours means its
finished parts. The root, from which every fragment's path counts, is the folder given, a file's folder, a glob's fixed
beginning, or the common parent of a list.
"""

import difflib
import json
import os
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated

import pyarrow as pa
import pyarrow.fs as fs
from pydantic import Field

from pipeline.corpus.fragments import THREADS, read_footers
from pipeline.corpus.hive import partition_fields
from pipeline.corpus.listing import (
    ENDINGS,
    Found,
    ListedFile,
    file_system,
    first_line,
    has_wildcard,
    look,
    matching_pattern,
    split_glob,
    walk,
)
from pipeline.corpus.plan import Fragment
from pipeline.corpus.schema import unify
from pipeline.errors import CorpusError
from pipeline.settings import Settings

FILES_TOLD = 5

_Path = Annotated[str, Field(min_length=1)]


class CorpusSettings(Settings):
    """Which rows are read."""

    path: _Path | Annotated[list[_Path], Field(min_length=1)]
    """A file, a folder, a glob, or a list of those; relative to the current folder, or a URI."""

    filter: str | None = Field(default=None, min_length=1)
    """An SQL predicate over the corpus's columns; rows for which it is false or null are left out."""

    sample: int | None = Field(default=None, ge=1)
    """Rows, spread over the corpus (over the rows that the filter keeps); default: all."""

    seed: int = 0
    """Which sample: the same seed gives the same rows."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a corpus as they stand now, by path below the root; none of them was opened."""

    filesystem: fs.FileSystem
    root: str
    files: tuple[ListedFile, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus as it can be planned."""

    filesystem: fs.FileSystem
    root: str
    fragments: tuple[Fragment, ...]  # sorted by path
    schema: pa.Schema  # of all readable fragments together, partition columns last
    partition: tuple[str, ...]  # names of the partition columns
    notes: tuple[str, ...]  # what the user should be told: files that are ignored or cannot be read


@dataclass(frozen=True, slots=True)
class _Item:
    """What one path of a list means; its files have full paths."""

    root: str
    files: Sequence[ListedFile]
    others: Sequence[str] = ()


def list_files(settings: CorpusSettings) -> Listing:
    """Find the files of a corpus without opening them. Raises CorpusError where a path means none."""
    paths = [settings.path] if isinstance(settings.path, str) else settings.path
    places = [file_system(path) for path in paths]
    filesystem = places[0][0]
    if any(each != filesystem for each, _ in places):
        raise CorpusError(f"corpus.path mixes file systems: {', '.join(paths)}; a corpus lies on one")
    items = [_item(filesystem, full, path) for (_, full), path in zip(places, paths, strict=True)]
    root = posixpath.commonpath([item.root for item in items])
    files = {file.path: file for item in items for file in item.files}
    others = sorted({other for item in items for other in item.others})
    notes: tuple[str, ...] = ()
    if others:
        example = _below(root, others[0])
        notes = (f"{_counted(others)} ignored that do not end in {_endings()}, for example {example}",)
    below = (replace(file, path=_below(root, file.path)) for file in files.values())
    return Listing(filesystem, root, tuple(sorted(below, key=lambda file: file.path)), notes)


def open_corpus(settings: CorpusSettings) -> Corpus:
    """Find the files of a corpus and read their footers.

    Raises CorpusError: no file, none readable, columns that do not go together, hive folders that differ.
    """
    listing = list_files(settings)
    footers = read_footers(listing.filesystem, listing.root, listing.files)
    broken = [fragment for fragment in footers.fragments if fragment.problem is not None]
    if not footers.schemas:
        raise CorpusError(f"no file of the corpus can be read:\n  {_told(broken)}")
    readable = [(each.path, each.partition) for each in footers.fragments if each.problem is None]
    partition = partition_fields(readable)
    names = tuple(field.name for field in partition)
    own = unify(footers.schemas)
    _check_comparable(own, names)
    schema = pa.schema([*(field for field in own if field.name not in names), *partition], metadata=own.metadata)
    notes = listing.notes
    if broken:
        notes += (f"{_counted(broken)} cannot be read and will be quarantined:\n  {_told(broken)}",)
    return Corpus(listing.filesystem, listing.root, footers.fragments, schema, names, notes)


# ----------------------------------------------------------------------------------------------------- what a path is


def _item(filesystem: fs.FileSystem, full: str, path: str) -> _Item:
    if has_wildcard(full) and _type(filesystem, full) == fs.FileType.NotFound:
        return _glob(filesystem, full, path)
    kind = _type(filesystem, full)
    if kind == fs.FileType.Directory:
        return _folder(filesystem, full, path)
    if kind == fs.FileType.NotFound and not os.path.islink(full):  # noqa: PTH114 - a link to nowhere is a file to tell of
        raise CorpusError(f"corpus.path '{path}' matches nothing: {_nearest(filesystem, full)}")
    return _Item(posixpath.dirname(full), [look(filesystem, full)])


def _type(filesystem: fs.FileSystem, path: str) -> fs.FileType:
    try:
        return filesystem.get_file_info(path).type
    except PermissionError as error:
        raise CorpusError(f"corpus.path: {path} cannot be reached: permission denied") from error
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"corpus.path: {path} cannot be reached: {first_line(error)}") from error


def _folder(filesystem: fs.FileSystem, full: str, path: str) -> _Item:
    if _type(filesystem, posixpath.join(full, "metadata/plan.json")) == fs.FileType.File:
        return _output(filesystem, full, path)
    found = walk(filesystem, full)
    if not found.files:
        raise CorpusError(_nothing_in(full, path, found))
    return _Item(full, found.files, found.others)


def _output(filesystem: fs.FileSystem, full: str, path: str) -> _Item:
    """An output of ours: the parts that its receipts name, since others may be of an undone or killed unit."""
    data, receipts = posixpath.join(full, "data"), posixpath.join(full, "metadata/receipts")
    if _type(filesystem, receipts) != fs.FileType.Directory:
        found = walk(filesystem, data) if _type(filesystem, data) == fs.FileType.Directory else Found()
        if not found.files:
            raise CorpusError(f"corpus.path '{path}' is an output of corpusmill that has no parts yet")
        return _Item(data, found.files, found.others)
    infos = filesystem.get_file_info(fs.FileSelector(receipts))
    written = [info.path for info in infos if info.path.endswith(".json")]
    with ThreadPoolExecutor(THREADS) as pool:
        parts = sorted(
            {part for named in pool.map(lambda receipt: _parts(filesystem, receipt), written) for part in named}
        )
        if not parts:
            raise CorpusError(f"corpus.path '{path}' is an output of corpusmill that has no parts yet")
        return _Item(data, list(pool.map(lambda part: look(filesystem, posixpath.join(full, part)), parts)))


def _parts(filesystem: fs.FileSystem, receipt: str) -> list[str]:
    try:
        with filesystem.open_input_stream(receipt) as stream:
            files = json.loads(stream.read())["files"]
        return [file["path"] for file in files if file["path"].startswith("data/")]
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(
            f"the receipt {receipt} is damaged ({error}), so nobody can tell which parts count; ask `corpusmill verify`"
        ) from error


def _glob(filesystem: fs.FileSystem, full: str, path: str) -> _Item:
    root, pattern = split_glob(full)
    if _type(filesystem, root) != fs.FileType.Directory:
        raise CorpusError(f"corpus.path '{path}' matches nothing: {_nearest(filesystem, root)}")
    found = walk(filesystem, root)
    matches = matching_pattern(pattern).fullmatch

    def matched(file: str) -> bool:
        # A folder that matches means all that it holds.
        names = _below(root, file).split("/")
        return any(matches("/".join(names[:depth])) for depth in range(1, len(names) + 1))

    files = [file for file in found.files if matched(file.path)]
    others = [other for other in found.others if matched(other)]
    ending = posixpath.splitext(full)[1]
    if ending and not has_wildcard(ending):  # who writes *.data means files that end so
        files, others = files + [look(filesystem, other) for other in others], []
    if not files:
        raise CorpusError(
            f"corpus.path '{path}' matches nothing: {root} holds {_counted(found.files, 'Parquet file')}"
            + (f", for example {_below(root, found.files[0].path)}" if found.files else "")
            + (f"; {_counted(others)} matched but do not end in {_endings()}" if others else "")
        )
    return _Item(root, files, others)


# ----------------------------------------------------------------------------------------------------------- messages


def _nothing_in(full: str, path: str, found: Found) -> str:
    if found.others:
        example = _below(full, min(found.others))
        return (
            f"corpus.path '{path}' holds no Parquet file ({_endings()}), but {_counted(found.others)} of another kind, "
            f"for example {example}"
        )
    if found.hidden:
        return f"corpus.path '{path}' holds only names that begin with _ or . ({found.hidden}), and those are ignored"
    return f"corpus.path '{path}' is an empty folder"


def _nearest(filesystem: fs.FileSystem, full: str) -> str:
    """Which part of a path is not there, and what is there instead."""
    missing, parent = full, posixpath.dirname(full)
    while parent not in ("", "/") and _type(filesystem, parent) == fs.FileType.NotFound:
        missing, parent = parent, posixpath.dirname(parent)
    if _type(filesystem, parent) != fs.FileType.Directory:
        return f"{parent} is no folder"
    try:
        siblings = [info.base_name for info in filesystem.get_file_info(fs.FileSelector(parent))]
    except OSError:
        siblings = []
    near = difflib.get_close_matches(posixpath.basename(missing), siblings, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"there is no '{posixpath.basename(missing)}' in {parent}{hint}"


def _check_comparable(schema: pa.Schema, partition: Sequence[str]) -> None:
    for name in partition:
        if name in schema.names and pa.types.is_nested(schema.field(name).type):
            raise CorpusError(
                f"'{name}' is a hive key of the folders and a column of type {schema.field(name).type} in the files; "
                "they cannot be compared: rename one of them"
            )


def _told(broken: Sequence[Fragment]) -> str:
    lines = [f"{each.path}: {each.problem[0]}: {each.problem[1]}" for each in broken[:FILES_TOLD] if each.problem]
    more = [f"and {len(broken) - FILES_TOLD} more"] if len(broken) > FILES_TOLD else []
    return "\n  ".join(lines + more)


def _counted(files: Sequence[object], what: str = "file") -> str:
    return f"1 {what}" if len(files) == 1 else f"{len(files)} {what}s"


def _endings() -> str:
    return ", ".join(ENDINGS)


def _below(root: str, path: str) -> str:
    return posixpath.relpath(path, root)
