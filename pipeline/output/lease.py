"""The lease: one run at a time on an output; and the sweep of what killed runs left.

with Lease.acquire(store, run_id="20260102-030405-9f0c3a") as lease:
    notes = sweep(store, receipts, lease.epoch)

metadata/lease         locked by the system for as long as the process lives, so it outlives no dead one
metadata/holder.json   {"pid": 4711, "host": "node-1", "started": "2026-01-02T03:04:05+00:00", "run_id": "…"}
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType

from pipeline.errors import LeaseError, RunError
from pipeline.output.epoch import begin
from pipeline.output.layout import HOLDER, KIND_FOLDERS, LEASE, TMP, part_owner
from pipeline.output.receipts import Receipt
from pipeline.output.storage import Store

_TAKEN = {errno.EACCES, errno.EAGAIN}
_PATIENCE_SECONDS = 1.0  # `holder` takes a shared lock for a moment: somebody who only looks must not stop a run


@dataclass(frozen=True, slots=True)
class Holder:
    """Who runs an output; `started` is what its clock said (ISO 8601)."""

    pid: int
    host: str
    started: str
    run_id: str


class Lease:
    """The right to write to an output, from `acquire` to the end of the block or of the process.

    The lock belongs to an open file that no started program inherits, so Ray's workers do not prolong it.
    """

    def __init__(self, descriptor: int, epoch: int) -> None:
        """Keep the locked file open."""
        self._descriptor = descriptor
        self.epoch = epoch

    @classmethod
    def acquire(cls, store: Store, run_id: str) -> "Lease":
        """Take the lease and the next epoch; LeaseError where another process holds it."""
        descriptor = _open(store)
        try:
            if not _locked(descriptor, fcntl.LOCK_EX, _PATIENCE_SECONDS):
                raise LeaseError(_taken(store))
            holder = Holder(os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), run_id)
            store.write(HOLDER, json.dumps(asdict(holder)).encode())
            return cls(descriptor, begin(store, run_id, holder.started))
        except BaseException:
            os.close(descriptor)
            raise

    def release(self) -> None:
        """Let the next run in."""
        os.close(self._descriptor)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


def holder(store: Store) -> Holder | None:
    """Who holds the lease now; None where nobody does. Works on a folder that cannot be written."""
    try:
        descriptor = os.open(store.full(LEASE), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _locked(descriptor, fcntl.LOCK_SH, 0.0) else _known_holder(store)
    finally:
        os.close(descriptor)


def _open(store: Store) -> int:
    """The lease file, made where it is not there yet."""
    try:
        store.full(LEASE).parent.mkdir(parents=True, exist_ok=True)
        return os.open(store.full(LEASE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RunError(
            f"could not open {LEASE} in {store.root}: {error.strerror}; check that output.path can be written"
        ) from error


def _locked(descriptor: int, kind: int, patience_seconds: float) -> bool:
    """Lock the file, or tell that another process keeps it locked for longer than we wait."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _TAKEN:
                raise RunError(
                    f"{LEASE}: this file system knows no locks: {error.strerror}; name another output.path"
                ) from error
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


def _known_holder(store: Store) -> Holder:
    """What the holder wrote of itself; between its lock and its note nobody knows."""
    with suppress(ValueError, TypeError, RunError):
        return Holder(**json.loads(store.read(HOLDER)))
    return Holder(0, "an unknown host", "a moment ago", "unknown")


def _taken(store: Store) -> str:
    who = _known_holder(store)
    return (
        f"another run holds {store.root}: process {who.pid} on {who.host} (run {who.run_id}) since {who.started}; "
        "wait for its end, or stop it and run the same command"
    )


def sweep(store: Store, receipts: Mapping[str, Receipt], epoch: int) -> list[str]:
    """Clear what killed runs left; only who holds the lease may, before its own first commit.

    Goes: parts and quarantine files that no receipt names, and temporary files of earlier runs. A file whose name is
    not one that corpusmill gives stays. One sentence for each thing that a user should know.
    """
    named = {file.path for receipt in receipts.values() for file in receipt.files}
    standing = [path for folder in KIND_FOLDERS.values() for path in store.list(folder, recursive=True)]
    strays = [path for path in standing if path not in named]
    orphans = [path for path in strays if part_owner(path)]
    for path in orphans:
        store.delete(path)
    _clear_temporary(store, epoch)
    notes = [
        f"{path} is no file of corpusmill: left alone, but whoever reads the folder meets it"
        for path in strays
        if not part_owner(path)
    ]
    if orphans:
        notes.append(f"removed {len(orphans)} files of units that a killed run had not committed: {_some(orphans)}")
    return notes


def _clear_temporary(store: Store, epoch: int) -> None:
    """Remove temporary files and the folders that held them, but for the marks of this very run."""
    own = f"{TMP}/attempts-{epoch}/"
    for path in store.list(TMP, recursive=True):
        if not path.startswith(own):
            store.delete(path)
    for folder in store.full(TMP).glob("attempts-*"):
        with suppress(OSError):  # not empty: this run's own
            folder.rmdir()


def _some(paths: list[str]) -> str:
    shown = 3
    return ", ".join(paths[:shown]) + (f" and {len(paths) - shown} more" if len(paths) > shown else "")
