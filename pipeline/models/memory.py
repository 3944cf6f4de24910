"""How much memory this machine has, whether weights fit in it, and what a process need not keep.

machine_memory_bytes()  ->  16_505_339_904        # the machine's, or its control group's limit where that is lower
hold()                                          # an actor that holds its models: they are here to stay
give_back()                                       # after a unit: what was freed goes back to the system
keep_products(few=True)                         # before the first: what was prepared for a shape is not kept long
"""

import gc
import os
from pathlib import Path

import pyarrow as pa

from pipeline.errors import ModelError
from pipeline.models.libraries import let_go_of_code
from pipeline.models.mapped import let_go_of_shared, own_library


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


_TOP_PAD, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -2, -1, -3
"""Options of glibc's mallopt."""

_HELD_BYTES = 1 << 30
_GROWS_BY_BYTES = 64 << 20


def hold() -> None:
    """What this process holds is here to stay, and what a micro-batch frees the next one takes.

    Python's collector goes through all objects each time that so many new ones were made: 0.2 s for those of torch and
    transformers, a dozen times while the tokens of a large unit are unpacked. And glibc gives large blocks back to the
    system each time, which fills their pages with zeros anew: 3% of an encoder's time. What libraries needed to begin
    is let go of.
    """
    gc.collect()
    gc.freeze()
    library = own_library()
    if hasattr(library, "mallopt"):  # of glibc alone
        library.mallopt(_MMAP_THRESHOLD, _HELD_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _HELD_BYTES)
        library.mallopt(_TOP_PAD, _GROWS_BY_BYTES)
    let_go_of_code()


def give_back() -> None:
    """Give back what this process has freed but holds, and what others hold anyway: 50 MB after a unit of MiniLM."""
    let_go_of_shared()
    pa.default_memory_pool().release_unused()
    library = own_library()
    if hasattr(library, "malloc_trim"):  # of glibc alone
        library.malloc_trim(0)


_PRODUCTS, _PLANS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"  # oneDNN's own, and torch's before it
_KEPT = {_PRODUCTS: "256"}
_KEPT_BY_READERS = {_PRODUCTS: "16", _PLANS: "4"}
"""Of which none at all would crash torch 2.13. A micro-batch of an encoder asks for ten products, and each of its
layers for the same."""


def keep_products(few: bool) -> None:
    """How much of what oneDNN prepares for a product stays, in a process of our own that has asked it for none yet.

    It is prepared for each shape that comes, and 1,024 stay otherwise, at half a megabyte each. Attention has another
    shape in nearly every micro-batch of an encoder: MiniLM's actor grew by 200 MB over 3,000 texts, and went on
    growing. `few` is for such a process; made anew, one takes 0.2 ms. Who writes or trains meets the same shapes again.
    A user's own word in the environment holds.
    """
    for name, most in (_KEPT_BY_READERS if few else _KEPT).items():
        os.environ.setdefault(name, most)
