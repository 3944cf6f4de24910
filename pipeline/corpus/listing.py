"""Which files a path means, without opening any of them.

    ListedFile(path="section=games/a.parquet", size=91532, fingerprint="91532-1763000000000000000", problem=None)
    ListedFile(path="b.parquet", size=0, fingerprint="", problem=(FILE_MISSING, "it is a link to b2, which …"))

Names and folders that begin with `_` or `.` are left out everywhere: writers keep their own affairs there.
"""

import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as fs

from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

ENDINGS = (".parquet", ".parq", ".pq")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One file as the file system shows it; `problem` says why it is not worth opening."""

    path: str
    size: int
    fingerprint: str  # size and modification time in nanoseconds; empty where neither is known
    problem: tuple[Reason, str] | None = None


@dataclass(slots=True)
class Found:
    """What a folder holds: Parquet files by their names (full paths), and the names of all else."""

    files: list[ListedFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0


def file_system(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the full path there. Local paths are relative to the current folder.

    Raises CorpusError for a URI that no file system of Arrow answers, and for a name that no file can have.
    """
    if "\0" in path:
        raise CorpusError(f"corpus.path {path!r} has a NUL character, which no file name has")
    if "://" not in path:
        # A path without the folder that it is relative to would mean something else in a worker.
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - Path keeps ".."
    if path.startswith("file:///"):  # Arrow takes a glob's `?` for the beginning of options, and drops it
        return fs.LocalFileSystem(), os.path.abspath(unquote(path.removeprefix("file://")))  # noqa: PTH100
    try:
        filesystem, inside = fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(f"corpus.path '{path}' names no file system that can be read: {first_line(error)}") from error
    return filesystem, inside.rstrip("/") or "/"


def fingerprint_of(info: fs.FileInfo) -> str:
    """What must be the same for a file to count as unchanged."""
    return _fingerprint(info.size, info.mtime_ns or 0)


def look(filesystem: fs.FileSystem, path: str) -> ListedFile:
    """One file, whatever its name."""
    if isinstance(filesystem, fs.LocalFileSystem):
        return _look_local(path)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return ListedFile(path, 0, "", (Reason.FILE_MISSING, "there is no such file"))
    return _listed(path, info.size, fingerprint_of(info))


def walk(filesystem: fs.FileSystem, folder: str) -> Found:
    """All files below a folder, links to folders followed.

    Raises CorpusError where a folder cannot be listed: nobody could tell which rows are missing.
    """
    found = Found()
    files = _walk_local(folder, found) if isinstance(filesystem, fs.LocalFileSystem) else _walk(filesystem, folder)
    for path, listed in files:
        if hidden(path[len(folder) :]):
            found.hidden += 1
        elif path.lower().endswith(ENDINGS):
            found.files.append(listed or look(filesystem, path))
        else:
            found.others.append(path)
    found.files.sort(key=lambda file: file.path)
    return found


def matching_pattern(pattern: str) -> re.Pattern[str]:
    """A glob (`*`, `?`, `[a-z]`, `[!a-z]`, `**`) as a regular expression over a path or a folder on its way."""
    *folders, last = pattern.split("/")
    regex = "".join("(?:[^/]+/)*" if part == "**" else _segment(part) + "/" for part in folders)
    return re.compile(regex + ("[^/]+(?:/[^/]+)*" if last == "**" else _segment(last)))


def split_glob(full: str) -> tuple[str, str]:
    """The folder that a glob begins at, and the pattern below it."""
    parts = full.split("/")
    fixed = next(place for place, part in enumerate(parts) if has_wildcard(part))
    return "/".join(parts[:fixed]) or "/", "/".join(parts[fixed:])


def has_wildcard(text: str) -> bool:
    """Whether a path is a glob."""
    return any(mark in text for mark in "*?[")


def hidden(path: str) -> bool:
    """Whether a relative path has a name that begins with `_` or `.`."""
    return any(name[:1] in ("_", ".") for name in path.split("/"))


def first_line(error: BaseException) -> str:
    """What an error of Arrow says, without its stack of calls."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _segment(part: str) -> str:
    out, place = "", 0
    while place < len(part):
        mark = part[place]
        end = part.find("]", place + 2) if mark == "[" else -1
        if end > 0:
            inside = part[place + 1 : end].replace("\\", r"\\")
            out += f"[^{inside[1:]}]" if inside[0] == "!" else f"[{inside}]"
            place = end
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(mark, re.escape(mark))
        place += 1
    return out


def _listed(path: str, size: int, fingerprint: str) -> ListedFile:
    problem = None if size else (Reason.EMPTY_FILE, "it has 0 bytes")
    return ListedFile(path, size, fingerprint, problem)


def _fingerprint(size: int, mtime_ns: int) -> str:
    return f"{size}-{mtime_ns}"


def _walk(filesystem: fs.FileSystem, folder: str) -> Iterator[tuple[str, ListedFile | None]]:
    """Any file system: one recursive listing, which object stores answer by thousands."""
    for info in filesystem.get_file_info(fs.FileSelector(folder, recursive=True)):
        if info.type == fs.FileType.File:
            yield info.path, _listed(info.path, info.size, fingerprint_of(info))


def _walk_local(
    folder: str, found: Found, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, ListedFile | None]]:
    """The local file system, by hand: Arrow's listing leaves out dangling links and goes round in linked circles."""
    try:
        own = os.stat(folder)  # noqa: PTH116 - paths are plain text here, as Arrow has them
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        raise CorpusError(
            f"the folder {folder} cannot be listed: permission denied. Give the user who runs this the right to read "
            "it, or name the folders that may be read in corpus.path"
        ) from error
    except FileNotFoundError:  # it went while its parent was listed
        return
    if (own.st_dev, own.st_ino) in above:
        return
    for entry in inside:
        path = posixpath.join(folder, entry.name)
        if hidden(entry.name):
            found.hidden += 1
        elif _is_folder(entry):
            yield from _walk_local(path, found, above | {(own.st_dev, own.st_ino)})
        else:
            _check_name(path)
            yield path, None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder that may not be entered: told as a file
        return False


def _look_local(path: str) -> ListedFile:
    try:
        found = os.stat(path)  # noqa: PTH116 - as above
    except PermissionError:
        return ListedFile(path, 0, "", (Reason.PERMISSION_DENIED, "its folder may be listed but not entered"))
    except OSError as error:
        if os.path.islink(path):  # noqa: PTH114 - as above
            target = os.readlink(path)  # noqa: PTH115 - as above
            return ListedFile(path, 0, "", (Reason.FILE_MISSING, f"it is a link to {target}, which cannot be reached"))
        return ListedFile(path, 0, "", (Reason.FILE_MISSING, error.strerror or "there is no such file"))
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
        return ListedFile(path, 0, "", (Reason.NOT_PARQUET, "it is a pipe, a socket or a device, not a file"))
    return _listed(path, found.st_size, _fingerprint(found.st_size, found.st_mtime_ns))


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"the name of a file is not UTF-8: {os.fsencode(path)!r}; rename it") from error
