"""The one seam through which everything of an output is read and written.

    store = Store.at("out/topics")
    with store.create("data/part-6f1c…-1.parquet") as sink:     # visible only when whole
        pq.write_table(table, sink)
    sink.sha256, sink.bytes
    store.write_new("metadata/receipts/6f1c….json", data)       # False: another was first

POSIX: a temporary file in `metadata/tmp` on the same file system, fsync, `os.replace` (or a hard link, which never
replaces), fsync of the folder. Other file systems are refused in words.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import OutputError, RunError
from pipeline.output.failpoints import failpoint
from pipeline.output.layout import TMP, kind_of

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}


class Sink:
    """A binary file that hashes and counts what goes through it; Arrow writes to it from front to back."""

    def __init__(self, file: BinaryIO, kind: str) -> None:
        """Wrap an open file; `kind` names the failpoints of its writes."""
        self._file = file
        self.kind = kind
        self._digest = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        """Of all bytes so far, as 64 hex digits."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Append."""
        failpoint(f"{self.kind}.before_write")
        self._file.write(data)
        failpoint(f"{self.kind}.after_write")
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def sync(self) -> None:
        """Make the bytes last."""
        failpoint(f"{self.kind}.before_fsync")
        self._file.flush()
        os.fsync(self._file.fileno())
        failpoint(f"{self.kind}.after_fsync")

    def tell(self) -> int:
        """The position, which is always the end."""
        return self.bytes

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Nothing: who opened the file closes it, after its fsync."""

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never: the digest is of bytes in their order."""
        return False


@dataclass(frozen=True, slots=True)
class Store:
    """A folder on a local file system. Small, frozen and picklable: it travels to remote commits."""

    root: str  # absolute

    @classmethod
    def at(cls, path: str) -> "Store":
        """The store of an output path; OutputError where it is on no local file system or no path at all."""
        if "\0" in path:
            raise OutputError(f"output.path {path!r} has a NUL character, which no folder's name has")
        scheme = _SCHEME.match(path)
        if scheme and scheme[1] != "file":
            raise OutputError(
                f"output.path {path}: writing to {scheme[1]}:// is not supported; name a folder of this machine or "
                "of a file system that is mounted on it"
            )
        return cls(str(Path(path[len("file://") :] if scheme else path).expanduser().absolute()))

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The file system that Arrow's readers ask."""
        return pafs.LocalFileSystem()

    def full(self, path: str) -> Path:
        """The path as the file system spells it."""
        return Path(self.root, path)

    def exists(self, path: str) -> bool:
        """Whether something stands there."""
        return os.path.lexists(self.full(path))

    def size(self, path: str) -> int:
        """Bytes of a file."""
        with self._telling("read", path):
            return self.full(path).stat().st_size

    def read(self, path: str) -> bytes:
        """A whole file."""
        with self._telling("read", path), self.full(path).open("rb") as file:
            return file.read()

    def find(self, path: str) -> bytes | None:
        """A whole file; None where there is none."""
        try:
            return self.read(path)
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise

    def open_input(self, path: str) -> pa.NativeFile:
        """A file for Arrow's readers."""
        with self._telling("read", path):
            return self.filesystem.open_input_file(str(self.full(path)))

    def list(self, folder: str, recursive: bool = False) -> list[str]:
        """Files (no folders) in a folder, sorted; none where there is no such folder."""
        found: list[str] = []
        waiting = [folder] if self.full(folder).is_dir() else []
        with self._telling("list", folder):
            while waiting:
                inside = waiting.pop()
                with os.scandir(self.full(inside)) as entries:
                    for entry in entries:
                        if not entry.is_dir(follow_symlinks=False):
                            found.append(f"{inside}/{entry.name}")
                        elif recursive:
                            waiting.append(f"{inside}/{entry.name}")
        return sorted(found)

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens where there is none."""
        kind = kind_of(path)
        with self._telling("delete", path), suppress(FileNotFoundError):
            failpoint(f"{kind}.before_delete")
            self.full(path).unlink()
            failpoint(f"{kind}.after_delete")

    def write(self, path: str, data: bytes) -> None:
        """Put a whole file in place of what stands there, at once."""
        with self.create(path) as sink:
            sink.write(data)

    def mark(self, path: str, data: bytes) -> None:
        """Put a note beside the work: it has to outlive this process, not the machine, so it is not synced."""
        with self._telling("write", path):
            self.full(path).parent.mkdir(parents=True, exist_ok=True)
            self.full(path).write_bytes(data)

    def write_new(self, path: str, data: bytes) -> bool:
        """Put a whole file where none stands, at once; False, and nothing changes, where one stands already."""
        with self._telling("write", path), self._temporary(path) as (temporary, sink):
            sink.write(data)
            sink.sync()
            try:
                _link(temporary, self.full(path), sink.kind)
            except FileExistsError:
                return False
            _sync_folder_of(self.full(path), sink.kind)
            return True

    @contextmanager
    def create(self, path: str) -> Iterator[Sink]:
        """A sink whose bytes become the file when the block ends well, and nothing at all when it does not."""
        with self._telling("write", path), self._temporary(path) as (temporary, sink):
            yield sink
            sink.sync()
            failpoint(f"{sink.kind}.before_replace")
            temporary.replace(self.full(path))
            failpoint(f"{sink.kind}.after_replace")
            _sync_folder_of(self.full(path), sink.kind)

    @contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[Path, Sink]]:
        """A new file of a name that no other process gives; what still bears that name afterwards is removed."""
        _make_folder(self.full(TMP))
        _make_folder(self.full(path).parent)
        temporary = self.full(f"{TMP}/{os.getpid()}-{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                yield temporary, Sink(file, kind_of(path))
        finally:
            with suppress(OSError):
                temporary.unlink()

    @contextmanager
    def _telling(self, doing: str, path: str) -> Iterator[None]:
        """Turn an OSError into a RunError that names the file, what failed, and how to go on."""
        try:
            yield
        except OSError as error:
            raise RunError(
                f"could not {doing} {path} in {self.root}: {self._cause(error)}; what is committed stays: run the same "
                "command to go on"
            ) from error

    def _cause(self, error: OSError) -> str:
        """The system's own words, and the free space where that is the matter."""
        words = words_of(error)
        if error.errno == errno.ENOSPC:
            with suppress(OSError):
                return f"{words} ({shutil.disk_usage(self.root).free:,} bytes free)"
        return words


def words_of(error: OSError) -> str:
    """What the system says, without the path that Arrow puts around it."""
    return os.strerror(error.errno) if error.errno else str(error)


def _link(temporary: Path, target: Path, kind: str) -> None:
    """Give the file its name, FileExistsError where another has it; some network file systems know no hard links."""
    try:
        failpoint(f"{kind}.before_replace")
        target.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        temporary.replace(target)
    failpoint(f"{kind}.after_replace")


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each lasting: a name is safe only when the folder above was synced."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _sync_folder_of(path: Path, kind: str) -> None:
    """Make the file's name last."""
    failpoint(f"{kind}.before_folder_fsync")
    _sync(path.parent)
    failpoint(f"{kind}.after_folder_fsync")


def _sync(folder: Path) -> None:
    """Fsync a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
