"""Code of libraries, most of which is for starting, or for what else they can: it need not be held.

    let_go_of_code()        # after all was set up, before the work begins

In an actor with OpenVINO 150 MB of it were in memory, and 60 MB come back, read again from where they lie.
"""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.models.mapped import let_go, own_library

_LOADED, _WRITABLE = 1, 2
"""A segment that is mapped, and one that is written to."""


def let_go_of_code() -> None:
    """Let go of what libraries have only to be read; what is needed of it is read again where it lies."""
    written = _written()
    for start, stop in _read_only():
        if written is not None and not any(start < end and begin < stop for begin, end in written):
            let_go(start, stop)


def _written() -> list[tuple[int, int]] | None:
    """Addresses of mappings with pages that stand in no file; None where the system does not tell."""
    found: list[tuple[int, int]] = []
    place = ""
    try:
        for line in Path("/proc/self/smaps").read_text().splitlines():
            name, _, rest = line.partition(" ")
            if not name.endswith(":"):
                place = name
            elif name == "Anonymous:" and not rest.strip().startswith("0 "):
                start, stop = (int(each, 16) for each in place.split("-"))
                found.append((start, stop))
    except OSError:
        return None
    return found


class _Segment(ctypes.Structure):
    """An entry of a library's program header (64 bits), as `elf.h` has it."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("file_bytes", ctypes.c_uint64),
        ("memory_bytes", ctypes.c_uint64),
        ("alignment", ctypes.c_uint64),
    )


class _Library(ctypes.Structure):
    """What the loader tells of a library, the beginning of `link.h`'s dl_phdr_info."""

    _fields_ = (
        ("address", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_Segment)),
        ("count", ctypes.c_uint16),
    )


_Told = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)


def _read_only() -> list[tuple[int, int]]:
    """Addresses of whole pages of libraries' segments that nobody may write to, those apart that are protected later.

    The loader tells only of libraries that it has set up, and so of none that another thread loads just now.
    """
    found: list[tuple[int, int]] = []
    page = os.sysconf("SC_PAGE_SIZE")

    def told(library: Any, *_: object) -> int:
        for segment in library.contents.segments[: library.contents.count]:
            if segment.type == _LOADED and not segment.flags & _WRITABLE:
                start = library.contents.address + segment.address
                found.append((-(-start // page) * page, (start + segment.file_bytes) // page * page))
        return 0

    iterate = getattr(own_library(), "dl_iterate_phdr", None)
    if sys.platform == "linux" and sys.maxsize > 1 << 32 and iterate is not None:
        iterate(_Told(told), None)
    return [each for each in found if each[0] < each[1]]
