"""Places where a test makes this process die, or a disk refuse, on purpose.

    CORPUSMILL_FAILPOINT=receipt.before_replace:3:kill      the third time, SIGKILL itself
    CORPUSMILL_FAILPOINT=part.before_write:1:ENOSPC         the first time, raise that OSError
    CORPUSMILL_FAILPOINT_COUNTER=/tmp/times                 count in this file over all processes, not in each

A point stands before and after every write, fsync, replace (or link) and delete of `pipeline.output.storage`, and where
a checkpoint of a training comes and goes; it costs one comparison where the variable is unset.
"""

import errno
import os
import signal
from dataclasses import dataclass

VARIABLE = "CORPUSMILL_FAILPOINT"
COUNTER_VARIABLE = "CORPUSMILL_FAILPOINT_COUNTER"

_WRITTEN = ("part", "quarantine", "receipt", "plan", "manifest", "epoch", "holder")
_DELETED = ("part", "quarantine", "temporary")
_STEPS = ("write", "fsync", "replace", "folder_fsync")

NAMES: tuple[str, ...] = tuple(
    f"{kind}.{when}_{step}" for kind in _WRITTEN for step in _STEPS for when in ("before", "after")
) + tuple(f"{kind}.{when}_delete" for kind in _DELETED for when in ("before", "after"))
"""Every point of `pipeline.output`."""

CHECKPOINT_NAMES: tuple[str, ...] = (
    "checkpoint.before_fsync",
    "checkpoint.before_replace",
    "checkpoint.after_replace",
    "checkpoint.before_delete",
    "checkpoint.after_delete",
)
"""Those of `pipeline.training.checkpoints`."""


@dataclass
class Armed:
    """One point that fires at its `nth` time, counted from 1."""

    name: str
    nth: int
    action: str  # "kill" or the name of an errno
    counter: str | None  # path of the file that counts over processes
    times: int = 0

    @classmethod
    def parse(cls, text: str, counter: str | None) -> "Armed":
        """`name:nth:action`; ValueError where a part of it is unknown."""
        name, _, rest = text.partition(":")
        nth, _, action = rest.partition(":")
        known = (*NAMES, *CHECKPOINT_NAMES)
        if name not in known:
            raise ValueError(f"{VARIABLE}={text}: no failpoint named {name!r}; known: {', '.join(known)}")
        if not nth.isdigit() or int(nth) < 1:
            raise ValueError(f"{VARIABLE}={text}: {nth!r} is no count; the second part says at which time, from 1")
        if action != "kill" and action not in errno.errorcode.values():
            raise ValueError(f"{VARIABLE}={text}: {action!r} is neither 'kill' nor the name of an errno like ENOSPC")
        return cls(name, int(nth), action, counter)

    def pass_by(self) -> None:
        """Count one passage; at the nth, die or raise OSError."""
        self.times = self.times + 1 if self.counter is None else _count_in(self.counter)
        if self.times != self.nth:
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self.action)
        raise OSError(number, os.strerror(number))


def _count_in(path: str) -> int:
    """Append one byte and tell how many there are with it: each process gets a number of its own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, b".")
        return os.lseek(descriptor, 0, os.SEEK_CUR)  # the end of this write, not of a later one
    finally:
        os.close(descriptor)


_armed: Armed | None = (
    Armed.parse(os.environ[VARIABLE], os.environ.get(COUNTER_VARIABLE)) if os.environ.get(VARIABLE) else None
)


def failpoint(name: str) -> None:
    """Nothing, unless this very point was armed."""
    if _armed is not None and _armed.name == name:
        _armed.pass_by()
