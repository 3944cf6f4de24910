"""Texts that come again: computed once for a unit, and with a cache once for all units and later runs.

    first, which = distinct(["a", "b", "a"])            # [0, 1], [0, 1, 0]
    cache = Cache(folder)                               # one file of SQLite in it
    cache.keep({b"key": b"what was said"})
    cache.find([b"key", b"other"])                      # {b"key": b"what was said"}
    with cache.claimed([b"other"]) as theirs:           # set(), or {b"other"} where another process computes it now
        …

What a task says of a text depends on the text, its options and its model alone, so that it may be said again. A key is
a digest of all of these.
"""

import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError
from pipeline.versions import computing

FILE = "said.sqlite"
_AT_ONCE = 500
_WAIT_SECONDS = 60.0
"""While another process writes."""
_CLAIM_SECONDS = 600.0
"""So old a claim may be of a process that was killed."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is done with texts that come again."""

    once: bool = True  # those of a unit are computed once
    cache: str | None = None  # a folder that keeps what was said of each


def distinct(values_R: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Where each distinct value first stands among R, and for each of R which of these it is."""
    places: dict[Hashable, int] = {}
    which_R = [places.setdefault(value, len(places)) for value in values_R]
    first = [0] * len(places)
    for row in range(len(which_R) - 1, -1, -1):
        first[which_R[row]] = row
    return first, which_R


def salt(facts: Mapping[str, Any]) -> bytes:
    """The digest of what decides what is said of a text: model, options, number format, version; 32 bytes."""
    told = {**facts, "versions": computing({facts.get("engine")})}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).digest()


def key(salted: bytes, inputs: Sequence[Any]) -> bytes:
    """The digest of a text (or of several inputs) and of what decides what is said of it; 32 bytes."""
    return hashlib.blake2b(json.dumps(inputs, default=str).encode(), key=salted, digest_size=32).digest()


class Cache:
    """Keys and values in a file that the actors of one machine share; it may be deleted at any time between runs.

    The folder is on a local disk: SQLite's log (WAL) is none for network file systems.
    """

    def __init__(self, folder: str) -> None:
        """Raises JobError where the folder cannot be made, or the file in it is none of ours."""
        self._path = Path(folder, FILE)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Ray may call from another thread than the one that made it, one at a time.
            self._file = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, check_same_thread=False)
            _with_log(self._file)
            self._file.execute("PRAGMA synchronous=NORMAL")
            with self._file:
                self._file.execute("CREATE TABLE IF NOT EXISTS said (key BLOB PRIMARY KEY, value BLOB)")
                self._file.execute("CREATE TABLE IF NOT EXISTS claimed (key BLOB PRIMARY KEY, who BLOB, at REAL)")
            self._who = secrets.token_bytes(8)
        except (OSError, sqlite3.Error) as fault:
            raise JobError(f"cache: {self._path} cannot be used: {fault}; name another folder, or none") from fault

    def find(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values that are there. A file that cannot be read just now holds none: they are computed."""
        try:
            return dict(self._rows("SELECT key, value FROM said", keys))
        except sqlite3.Error:
            return {}

    def keep(self, values: Mapping[bytes, bytes]) -> None:
        """Keep what is new. What cannot be kept (a full disk) is computed again another time."""
        try:
            with self._file:
                self._file.executemany("INSERT OR IGNORE INTO said VALUES (?, ?)", values.items())
        except sqlite3.Error:
            return

    @contextmanager
    def claimed(self, keys: Sequence[bytes]) -> Iterator[set[bytes]]:
        """Tell the other processes that this one computes these; the block is given those that another one does.

        A word among those who share the work, no lock: nobody waits, and whoever needs a text now may compute it too.
        """
        if not keys:
            yield set()
            return
        theirs = set()
        with suppress(sqlite3.Error):
            with self._file:
                self._file.execute("DELETE FROM claimed WHERE at < ?", [time.time() - _CLAIM_SECONDS])
                rows = ((key, self._who, time.time()) for key in keys)
                self._file.executemany("INSERT OR IGNORE INTO claimed VALUES (?, ?, ?)", rows)
            theirs = {key for key, who in self._rows("SELECT key, who FROM claimed", keys) if who != self._who}
        try:
            yield theirs
        finally:
            with suppress(sqlite3.Error), self._file:
                self._file.execute("DELETE FROM claimed WHERE who = ?", [self._who])

    def _rows(self, asked: str, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            with closing(self._file.execute(f"{asked} WHERE key IN ({','.join('?' * len(some))})", some)) as rows:
                yield from rows


def _with_log(file: sqlite3.Connection) -> None:
    """Have readers not wait for writers; while another process does the same, SQLite does not wait by itself."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            file.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as fault:
            if "locked" not in str(fault) or time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


def to_bytes(batch: pa.RecordBatch, row: int) -> bytes:
    """One row, without its schema."""
    return bytes(batch.slice(row, 1).serialize())


def of_bytes(values: Mapping[bytes, bytes], schema: pa.Schema) -> dict[bytes, pa.RecordBatch]:
    """Rows that `to_bytes` made of a batch of this schema; a damaged one is left out."""
    rows = {}
    for name, value in values.items():
        with suppress(pa.ArrowException, EOFError, OSError, ValueError):
            batch = pa.ipc.read_record_batch(pa.py_buffer(value), schema)
            batch.validate()
            if batch.num_rows == 1:
                rows[name] = batch
    return rows
