"""How much memory this machine has, whether weights fit in it, and what a process need not keep.

machine_memory_bytes()  ->  16_505_339_904        # the machine's, or its control group's limit where that is lower
give_back()                                       # after a unit: what was freed goes back to the system
"""

import ctypes
import os
from functools import cache
from pathlib import Path

from pipeline.errors import ModelError


def check_memory(needed_bytes: int, machine_bytes: int) -> None:
    """Raises ModelError where the weights alone are more than the machine's memory."""
    if needed_bytes > machine_bytes:
        raise ModelError(
            f"its weights take {needed_bytes / 2**30:.1f} GiB, and this machine has {machine_bytes / 2**30:.1f} GiB of "
            "memory: take a smaller model or a larger machine"
        )


def machine_memory_bytes(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Memory that this process may have: the machine's, or the limit of its control group where that is lower."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = own.read_text().splitlines() if own.is_file() else []
    unified = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), "")
    group = cgroups / unified
    # A limit may stand on any group above; inside a container the own path is often not there, but the root is.
    holders = [level / "memory.max" for level in (group, *group.parents) if level.is_relative_to(cgroups)]
    holders.append(cgroups / "memory/memory.limit_in_bytes")
    limits = [holder.read_text().strip() for holder in holders if holder.is_file()]
    return min([machine_bytes, *(int(limit) for limit in limits if limit.isdigit())])


def give_back() -> None:
    """Give back what this process has freed but holds, where its C library can: after a unit of MiniLM 90 MB."""
    library = _own_library()
    if hasattr(library, "malloc_trim"):  # of glibc alone
        library.malloc_trim(0)


@cache
def _own_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
