"""A terminal of one's own: what Ray's processes and C++ parts print goes to a log, our own words to the user.

with quiet() as (terminal, log):
    print("planning", file=terminal)     # seen
    ray.init()                           # its noise lies in `log`
"""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def quiet() -> Iterator[tuple[TextIO, Path | None]]:
    """Standard error is a log file inside the block; the stream that is given writes to where it went before.

    A log that is empty afterwards is removed; where none can be written, there is none. Where standard error is no real
    file (a test's), nothing is redirected.
    """
    log: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix="corpusmill-", suffix=".log")
        log = Path(name)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        with _redirected(descriptor) as terminal:
            yield terminal, log
    finally:
        os.close(descriptor)
        if log is not None and log.stat().st_size == 0:
            log.unlink()


@contextlib.contextmanager
def last_words(terminal: TextIO, words: str) -> Iterator[None]:
    """Somebody says `words` where this process ends inside the block without any: killed, or ended by Ray's C++ core,
    which does so when the node under it dies. A child waits for the block's end, and speaks when nobody told it.
    """
    try:
        descriptor = terminal.fileno()
    except OSError:  # a stand-in without a descriptor
        yield
        return
    waiting, telling = os.pipe()
    child = os.fork()  # early: no thread and no Ray yet
    if child == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.close(telling)
            if not os.read(waiting, 1):
                os.write(descriptor, words.encode())
        finally:  # also where the terminal is gone: what the block holds is the parent's to end
            os._exit(0)
    os.close(waiting)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # somebody killed the child
            os.write(telling, b".")
        os.close(telling)
        os.waitpid(child, 0)


@contextlib.contextmanager
def _redirected(log: int) -> Iterator[TextIO]:
    shown = sys.stderr
    if shown is None:  # the caller closed it
        with open(os.devnull, "w", encoding="utf-8") as nobody:  # noqa: PTH123 - a device
            yield nobody
        return
    try:
        if shown.fileno() != 2:
            raise OSError
        shown.flush()
        saved = os.dup(2)
    except OSError:  # closed, or a stand-in without a descriptor
        yield shown
        return
    with os.fdopen(saved, "w", encoding=shown.encoding, errors="backslashreplace", buffering=1) as terminal:
        os.dup2(log, 2)
        try:
            yield terminal
        finally:
            shown.flush()
            os.dup2(terminal.fileno(), 2)
