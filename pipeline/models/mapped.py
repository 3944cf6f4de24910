"""Pages that a process maps and need not hold: they can be read again from where they lie.

    with letting_go(): AutoModel.from_pretrained(…, dtype=torch.bfloat16)       # a file of weights
    with as_stored(): AutoModel.from_pretrained(…, dtype=torch.float32)         # nothing is held but what is looked at
    let_go_of_shared()                                                          # memory that processes share

safetensors maps a whole file into memory and transformers converts it tensor by tensor: at the end a process held the
file in float32 beside the model; MiniLM is loaded with 24 MB less. And what goes through Ray's object store stays
mapped wherever it lay: 10 MB after 24,000 rows.
"""

import contextlib
import ctypes
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

_COPIES = "_materialize_copy"
"""Of transformers': what takes a tensor out of a file."""

_SLICE = "PySafeSlice"
"""Of safetensors: a tensor that is still in its file."""

_REAL = frozenset({"F32", "F16", "BF16"})
"""Formats of safetensors that float32 holds."""

_WORTH_BYTES = 1 << 20

_SHARED_MEMORY = "/dev/shm/"

_DELETED = " (deleted)"
"""What the kernel says after the name of a file that is mapped and was deleted."""

_MADV_DONTNEED = 4


@dataclass(frozen=True, slots=True)
class Mapping:
    """A range of this process's addresses, as the kernel tells of it."""

    start: int
    stop: int
    shared: bool
    path: str  # "" where no file is behind it


@contextlib.contextmanager
def letting_go() -> Iterator[None]:
    """Inside the block, where transformers converts what it reads; what it keeps as the file has it stays mapped."""
    with _copied_by(_then_letting_go):
        yield


@contextlib.contextmanager
def as_stored() -> Iterator[None]:
    """Inside the block, transformers takes real numbers out of a file in the format that they have there, all mapped.

    Asked for in float32, they lose nothing later. What is no plain number there, or in another kind of file, comes in
    the format that is asked for.
    """
    with _copied_by(_as_it_is):
        yield


@contextlib.contextmanager
def _copied_by(ours: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    place = importlib.import_module("transformers.core_model_loading")
    before: Callable[..., Any] | None = getattr(place, _COPIES, None)
    if before is None:  # another version of it
        yield
        return
    setattr(place, _COPIES, ours(before))
    try:
        yield
    finally:
        setattr(place, _COPIES, before)


def _as_it_is(before: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before)
    def taken(tensor: Any, *given: Any, **named: Any) -> Any:
        if type(tensor).__name__ != _SLICE or tensor.get_dtype() not in _REAL:
            return before(tensor, *given, **named)
        return tensor[...]

    return taken


def _then_letting_go(before: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(before)
    def copied(tensor: Any, *given: Any, **named: Any) -> Any:
        if type(tensor).__name__ != _SLICE:
            return before(tensor, *given, **named)
        mapped = tensor[...]
        found = before(mapped, *given, **named)
        if found.data_ptr() != mapped.data_ptr():
            let_go_of_file(mapped.data_ptr(), mapped.nbytes)
        return found

    return copied


def let_go_of_file(address: int, size: int, among: Sequence[Mapping] | None = None) -> None:
    """Let go of the whole pages in these bytes, of a file that nobody here has written to; others stay as they are.

    `among`: the mappings, where they were asked for before and still are; to ask takes 2 ms, which few bytes are not
    worth.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    start, stop = -(-address // page) * page, (address + size) // page * page
    if stop <= start or (among is None and size < _WORTH_BYTES):
        return
    if any(
        each.path and each.start <= start and stop <= each.stop for each in (mappings() if among is None else among)
    ):
        let_go(start, stop)


def let_go_of_path(path: Path) -> None:
    """Let go of a whole file that nobody here writes to, which may be deleted by now."""
    for each in mappings():
        if each.path.removesuffix(_DELETED) == str(path):
            let_go(each.start, each.stop)


def let_go_of_shared() -> None:
    """Let go of pages in memory that processes share: they are there, and come back where somebody looks."""
    for each in mappings():
        if each.shared and each.path.startswith(_SHARED_MEMORY):
            let_go(each.start, each.stop)


def let_go(start: int, stop: int) -> None:
    """Let go of these pages, of a file that nobody here has written to: without a file what stands there is lost."""
    own_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def mappings() -> list[Mapping]:
    """Of this process, now; none where the system has no such table."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, _, _, inode, *path = line.split(maxsplit=5)
            start, stop = (int(each, 16) for each in place.split("-"))
            found.append(Mapping(start, stop, rights[3] == "s", "" if inode == "0" else "".join(path)))
    return found


@cache
def own_library() -> ctypes.CDLL:
    """The C library of this process."""
    return ctypes.CDLL(None)
