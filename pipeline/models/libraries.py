"""Code of libraries, most of which is for starting, or for what else they can: it need not be held.

    let_go_of_code()        # after all was set up, before the work begins

In an actor with OpenVINO 150 MB of it were in memory, and 60 MB come back, read again from where they lie.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.models.mapped import let_go


@dataclass(slots=True)
class _Part:
    """What is mapped of a file, as the kernel tells of it."""

    start: int
    stop: int
    rights: str
    file: tuple[str, str]  # its device and inode
    own_kilobytes: int = 0  # that stand in no file, for they were written to


def let_go_of_code() -> None:
    """Let go of what libraries have only to be read; what is needed of it is read again where it lies."""
    for start, stop in read_only(Path("/proc/self/smaps")):
        let_go(start, stop)


def read_only(smaps: Path) -> list[tuple[int, int]]:
    """Addresses of a process's libraries where nothing is written, and nothing was; none where no table is.

    A part counts where one that is written to comes after it: a library that another thread loads just now is mapped
    whole at first, as what is only to be read, and the places that it writes to come last.
    """
    parts = list(_parts(smaps))
    written = {part.file: part.start for part in parts if "w" in part.rights}  # the last one of each
    return [
        (part.start, part.stop)
        for part in parts
        if "w" not in part.rights and not part.own_kilobytes and part.start < written.get(part.file, 0)
    ]


def _parts(smaps: Path) -> Iterator[_Part]:
    part: _Part | None = None
    with contextlib.suppress(OSError):
        for line in smaps.read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                if part is not None:
                    yield part
                start, stop = (int(each, 16) for each in words[0].split("-"))
                part = None if words[4] == "0" else _Part(start, stop, words[1], (words[3], words[4]))
            elif part is not None and words[0] in ("Anonymous:", "Swap:"):
                part.own_kilobytes += int(words[1])
    if part is not None:
        yield part
