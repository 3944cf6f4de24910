"""Memory of a process and all that it started, while it runs.

with Memory(process.pid) as memory: process.wait()
memory.peak_bytes -> 912_261_120        # pages that several share are counted once

To share pages out, the kernel walks through all of them: 6 ms a process. Eleven processes would lose 7% of two cores by
it and one process hardly anything, so it is asked only where more is resident than ever before.
"""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

INTERVAL_SECONDS = 0.5

_WORTH_A_LOOK = 1.01
"""So much more than at the look before."""


class Memory:
    """Looks twice a second, in a thread of its own; None where the system does not tell (macOS)."""

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        """Nothing is looked at before the block begins."""
        self._pid, self._proc = pid, proc
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        most_resident = 0
        while not self._done.wait(INTERVAL_SECONDS):
            processes = family(self._pid, self._proc)
            resident = sum(_resident_bytes(pid, self._proc) for pid in processes)
            if resident <= most_resident * _WORTH_A_LOOK:
                continue
            most_resident = resident
            shares = [share for pid in processes if (share := _share_bytes(pid, self._proc))]
            if shares:
                self.peak_bytes = max(self.peak_bytes or 0, sum(shares))


def family(pid: int, proc: Path = Path("/proc")) -> set[int]:
    """A process and its descendants that live."""
    parents: dict[int, int] = {}
    for folder in proc.glob("[0-9]*"):
        try:
            # The name stands in parentheses and may hold anything, blanks and parentheses too.
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue  # it ended
    found, size = {pid}, 0
    while len(found) > size:
        size = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def _resident_bytes(pid: int, proc: Path) -> int:
    """Its memory, shared pages counted as its own: this the kernel knows without a look at them."""
    try:
        return int((proc / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _share_bytes(pid: int, proc: Path) -> int | None:
    """Its memory, of shared pages its share."""
    try:
        lines = (proc / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
