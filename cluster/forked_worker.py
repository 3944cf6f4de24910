"""What an embedded Ray starts as a worker: asks the fork server for one, and ends; else starts it as Ray would.

    CORPUSMILL_FORKSERVER=/tmp/…/socket python forked_worker.py …/default_worker.py --worker-id=… --language=PYTHON

It stands in for Ray's `setup_worker.py`, which lies beside the worker's file. It imports little: it runs five times
before the first row.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

SOCKET = "CORPUSMILL_FORKSERVER"
"""The variable that names the server's socket."""

PYTHON = "--language=PYTHON"

ANSWER_SECONDS = 30.0
"""How long the server may take: half of the time that Ray gives a worker to register."""


def main(arguments: Sequence[str]) -> None:
    """Have the worker forked, or become it; neither where the raylet that wants it was killed meanwhile."""
    path = os.environ.pop(SOCKET, "")
    if not (path and is_plain(arguments) and _forked(path, arguments)) and _raylet_lives():
        setup = os.path.join(os.path.dirname(arguments[0]), "setup_worker.py")  # noqa: PTH118, PTH120 - pathlib is slow
        os.execv(sys.executable, [sys.executable, setup, *arguments])


def is_plain(arguments: Sequence[str]) -> bool:
    """Whether it is a worker of Python in the environment that all have."""
    named = {each.partition("=")[0] for each in arguments}
    return (
        arguments[0].endswith("default_worker.py")
        and PYTHON in arguments
        and "--serialized-runtime-env-context" not in named
        and "--worker-type" not in named
    )


def _raylet_lives() -> bool:
    """Whether who started this process is there to be worked for: a worker would look for it for a minute."""
    try:
        os.kill(int(os.environ.get("RAY_RAYLET_PID", "0")), 0)
    except ProcessLookupError:
        return False
    return True


def _forked(path: str, arguments: Sequence[str]) -> bool:
    """Whether the server answered that there is a worker now."""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:  # noqa: PTH123
        score = file.read()
    wish = {
        "arguments": [each for each in arguments if each != PYTHON],  # said to `setup_worker.py` alone
        "environment": dict(os.environ),
        "folder": os.getcwd(),  # noqa: PTH109
        "oom_score_adj": score,
        "blocked_signals": [int(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.settimeout(ANSWER_SECONDS)
            server.connect(path)
            told = json.dumps(wish).encode()
            sent = socket.send_fds(server, [told], [0, 1, 2])
            server.sendall(told[sent:])
            server.shutdown(socket.SHUT_WR)
            return bool(server.recv(32))
    except OSError:
        return False


if __name__ == "__main__":
    main(sys.argv[1:])
