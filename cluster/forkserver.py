"""The process from which an embedded Ray's workers are forked, once it has imported what all of them need.

    python forkserver.py 5         # the descriptor of a socket that listens; then, a line each, on its stdin:
    {"sys_path": ["…/site-packages"], "imports": ["pipeline.stream", "torch"]}
    {"imports": ["pipeline.models.lean:import_lean"]}       # a function is called

Ray Data, torch and transformers take three seconds of a core to import, and a run on one machine needs five workers.
Here that happens once, while the driver plans and starts Ray; a fork has it all in a hundredth of a second, and shares
its memory. Ray starts `forked_worker.py` as a worker, which connects here and is answered a child's process id. The
server ends with its stdin, and so with the driver.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

OWN_THREADS = frozenset({"jemalloc_bg_thd"})
"""Threads that their library starts again in a child. With any other beside it a process is not forked."""

_PR_SET_PDEATHSIG = 1

HELLO_SECONDS = 5.0
"""How long who connects may take to say what is to be run."""


def main(listening: int) -> None:
    """Import what is asked for and fork a worker for everybody who connects, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to answer
    del sys.path[0]  # this file's folder, whose modules belong to a package
    gc.disable()  # of what is imported hardly anything is garbage, and to look took a fifth of the time
    request = _serve(socket.socket(fileno=listening), list(sys.path))
    if request is not None:  # in a child
        _run(request)


def _serve(listening: socket.socket, own_path: list[str]) -> Mapping[str, Any] | None:
    """What a child has to run; None in the server, at its end."""
    died, dying = os.pipe()
    os.set_blocking(died, False)
    os.set_blocking(dying, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(dying)
    with listening:
        told = b""
        may_fork: bool | None = None  # not known since something was imported
        while True:
            ready = select.select([0, died, listening.fileno()], [], [])[0]
            if died in ready:
                _reap(died)
            if 0 in ready:  # what was told comes before who connected
                if not (more := os.read(0, 1 << 16)):
                    _remove(Path(listening.getsockname()))
                    return None
                *lines, told = (told + more).split(b"\n")
                for line in lines:
                    _prepare(json.loads(line))
                    may_fork = None
            elif listening.fileno() in ready:
                with listening.accept()[0] as connection:
                    if may_fork is None:
                        may_fork = not _draw_alike()
                    if may_fork and (request := _fork(connection)) is not None:
                        os.close(died)
                        os.close(dying)
                        return {**request, "sys_path": own_path}


def _remove(path: Path) -> None:
    """The socket and its folder, which a driver that was killed leaves behind."""
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()


def _prepare(told: Mapping[str, Any]) -> None:
    """Import; what cannot be imported here is for the worker to complain of."""
    sys.path[:] = told.get("sys_path", sys.path)
    with _rays_dice_unthrown():
        for name in told["imports"]:
            module, _, function = name.partition(":")
            with contextlib.suppress(Exception):
                found = importlib.import_module(module)
                if function:
                    getattr(found, function)()
    gc.freeze()  # else the children's collector would write to all of it, and share none


class _ClassId:
    """What stands in for the class of Ray whose ids are drawn when a remote class is defined."""

    @staticmethod
    def from_random() -> Any:
        """As Ray's, of the system's randomness."""
        from ray import ActorClassID

        return ActorClassID(os.urandom(ActorClassID.size()))


@contextlib.contextmanager
def _rays_dice_unthrown() -> Iterator[None]:
    """Nothing is drawn from Ray's own randomness inside the block.

    Children would go on where it stands, all alike: two that began at the same moment drew the same id for the object
    that each makes first, and one of them died of it. Ray Data draws when it is imported, for its remote classes.
    """
    try:
        actor: Any = importlib.import_module("ray.actor")
    except Exception:  # noqa: BLE001 - a worker will complain of it
        yield
        return
    before, actor.ActorClassID = actor.ActorClassID, _ClassId
    try:
        yield
    finally:
        actor.ActorClassID = before


def _draw_alike() -> bool:
    """Whether two children would draw the same ids from Ray's randomness."""
    if "ray" not in sys.modules or _threads() - OWN_THREADS:  # with threads nothing is forked, to try it neither
        return False
    drawn = []
    for _ in range(2):
        reading, writing = os.pipe()
        if not (child := os.fork()):
            try:
                os.write(writing, sys.modules["ray"].ObjectRef.from_random().binary())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            drawn.append(pipe.read())
        with contextlib.suppress(ChildProcessError):  # whoever reaps came first
            os.waitpid(child, 0)
    return drawn[0] == drawn[1]


def _reap(died: int) -> None:
    """Ray looks whether a worker lives by its process id, which a dead child keeps until it is waited for."""
    with contextlib.suppress(BlockingIOError):
        os.read(died, 1 << 16)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork(connection: socket.socket) -> Mapping[str, Any] | None:
    """Answer a child's process id; what it has to run in the child, None in the server.

    Nothing is answered, and nothing forked, where the wish is not understood or this process has threads.
    """
    connection.settimeout(HELLO_SECONDS)
    try:
        first, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        parts = [first]
        while parts[-1]:
            parts.append(connection.recv(1 << 16))
        request: dict[str, Any] = json.loads(b"".join(parts))
    except (OSError, ValueError):
        return None
    try:
        if len(descriptors) != 3 or _threads() - OWN_THREADS:
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: its threads were looked at above
            child = os.fork()
        if child:
            with contextlib.suppress(OSError):
                connection.sendall(str(child).encode())
            return None
        os.setpgid(0, 0)  # Ray ends a worker with its process group
        _end_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        return request
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _end_with_parent() -> None:
    """The server ends with the driver, and a worker with the server, however that was killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _threads() -> set[str]:
    """The names of this process's other threads."""
    tasks = Path("/proc/self/task")
    names = {each.name: (each / "comm").read_text().strip() for each in tasks.iterdir()}
    names.pop(str(os.getpid()))
    return set(names.values())


def _run(request: Mapping[str, Any]) -> None:
    """Become the process that Python would have become with these arguments."""
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked_signals"])
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(request["oom_score_adj"], encoding="ascii")
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    script = request["arguments"][0]
    sys.argv = list(request["arguments"])
    sys.path[:] = [str(Path(script).parent), *request["sys_path"]]
    gc.enable()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own is seeded anew by `os.fork`
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]))
