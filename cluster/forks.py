"""The fork server as the driver holds it: started early, told what to import, asked by an embedded Ray's workers.

    with Forks.started(["pipeline.stream", "torch"]) as forks:
        forks.will_import(["pipeline.models.lean:import_lean"])
        with forks.of_ray(): ray.init(…)                     # its workers are forked
    with Forks.ahead(["torch"]):                             # the same server, begun before anybody knows of it
        with Forks.started(["pipeline.stream"]) as forks: …

A process that has looked for GPUs cannot be forked, so this is for machines without. What a Ray of another version
lacks is left as it is, and its workers start as ever.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from cluster.forked_worker import SOCKET

_LONGEST_SOCKET_CHARS = 100
"""Of a socket's path; Linux takes 107."""

_UNTIL_FORKED = {
    # Ray reads its settings when it is imported, and this among them: a worker that belongs to no job yet serves any.
    "RAY_JOB_ID": "ffffffff",
    "OPENBLAS_NUM_THREADS": "1",  # a process with threads is not forked
}


_TUNABLES, _NO_CACHE = "GLIBC_TUNABLES", "glibc.malloc.tcache_count"
"""What glibc reads when a process begins, and of that how many small blocks of each size a thread keeps for itself."""

_STARTER = "forked_worker.py"


class Forks:
    """A fork server that runs."""

    _waiting: "ClassVar[Forks | None]" = None  # begun ahead, and wanted by nobody yet

    def __init__(self, server: "subprocess.Popen[bytes]", path: Path) -> None:
        """`path`: its socket."""
        self._server = server
        self._path = path

    @classmethod
    @contextlib.contextmanager
    def ahead(cls, imports: Sequence[str]) -> Iterator[None]:
        """A server that begins to import at once is there inside the block, for the first who wants one started."""
        with cls._begun(imports) as forks:
            cls._waiting = forks
            try:
                yield
            finally:
                cls._waiting = None

    @classmethod
    @contextlib.contextmanager
    def started(cls, imports: Sequence[str]) -> "Iterator[Forks | None]":
        """A server inside the block, which begins to import at once; None where none can be started."""
        forks, cls._waiting = cls._waiting, None
        if forks is None:
            with cls._begun(imports) as forks:
                yield forks
        else:
            forks.will_import(imports)
            try:
                yield forks
            finally:
                forks._end()

    @classmethod
    @contextlib.contextmanager
    def _begun(cls, imports: Sequence[str]) -> "Iterator[Forks | None]":
        folder = Path(tempfile.mkdtemp(prefix="corpusmill-forks-"))
        try:
            path = folder / "socket"
            server = None if len(str(path)) > _LONGEST_SOCKET_CHARS or sys.platform != "linux" else _started(path)
            if server is None:
                yield None
                return
            forks = cls(server, path)
            try:
                forks._tell({"sys_path": [each or os.getcwd() for each in sys.path], "imports": list(imports)})  # noqa: PTH109
                yield forks
            finally:
                forks._end()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def will_import(self, imports: Sequence[str]) -> None:
        """What else all workers need, before the first is forked."""
        self._tell({"imports": list(imports)})

    @contextlib.contextmanager
    def of_ray(self) -> Iterator[None]:
        """The workers of a Ray that starts inside the block are forked, for as long as it and the server live."""
        parameter: Any = import_module("ray._private.parameter")
        before = parameter.RayParams
        if "setup_worker_path" not in signature(before).parameters:
            yield
            return

        class Forked(before):  # type: ignore[misc, valid-type]
            def __init__(self, *given: object, **named: object) -> None:
                super().__init__(*given, **{"setup_worker_path": str(Path(__file__).with_name(_STARTER)), **named})

        parameter.RayParams, os.environ[SOCKET] = Forked, str(self._path)
        try:
            yield
        finally:
            parameter.RayParams = before
            del os.environ[SOCKET]

    def _end(self) -> None:
        self._server.kill()
        with contextlib.suppress(OSError, ValueError):  # what it was not told any more; ended before
            self._server.communicate()

    def _tell(self, words: object) -> None:
        stdin = self._server.stdin
        assert stdin is not None, "a pipe was asked for"
        with contextlib.suppress(OSError):  # it has died: workers start as ever
            stdin.write(json.dumps(words).encode() + b"\n")
            stdin.flush()


def _started(path: Path) -> "subprocess.Popen[bytes] | None":
    script = Path(__file__).with_name("forkserver.py")
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(64)
            return subprocess.Popen(
                [sys.executable, str(script), str(listening.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listening.fileno()],
                # A worker ends where its raylet has ended; this one's does with the driver.
                env=os.environ
                | _UNTIL_FORKED
                | {"RAY_RAYLET_PID": str(os.getpid()), _TUNABLES: _tunables(os.environ.get(_TUNABLES, ""))},
                start_new_session=True,  # Ctrl-C is the driver's to answer
            )
    except OSError:
        return None


def _tunables(users: str) -> str:
    """The user's, and that threads keep no freed blocks for themselves.

    Those lie between the large ones that a micro-batch frees, which cannot become one free place then: torch asks for
    each at a multiple of 64 bytes, and a small block is left over beside most. A MiniLM actor's peak was 20 MB higher.
    """
    return users if _NO_CACHE in users else ":".join(filter(None, [users, f"{_NO_CACHE}=0"]))
