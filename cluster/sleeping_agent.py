"""What stands in for an agent of Ray's that nobody may ever ask: it tells the raylet its ports, and sleeps.

    python -I -S sleeping_agent.py …/runtime_env/agent/main.py --session-dir=… --node-id=… --node-ip-address=… …

A raylet starts two agents, which import Ray for half a second of CPU each, and it takes no worker before both have
told their ports. One serves the dashboard, and Ray without its dashboard's packages does without; the other makes
environments for work that asks for one of its own. Here the first never wakes, and the second when somebody connects.
"""

import os
import select
import socket
import sys
from collections.abc import Sequence

DASHBOARD_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
RUNTIME_ENV_PORT = "runtime_env_agent_port"

RUNTIME_ENV_SCRIPT = "main.py"
"""The file of the agent that makes environments."""

LOOKS_SECONDS = 1.0
"""How often it looks whether the raylet lives, where the system does not tell."""


def main(arguments: Sequence[str]) -> None:
    """Sleep until the raylet has ended; become the agent where it is called."""
    raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())
    told = dict(each.removeprefix("--").split("=", 1) for each in arguments[1:] if "=" in each)
    if os.path.basename(arguments[0]) != RUNTIME_ENV_SCRIPT:  # noqa: PTH119 - pathlib is slow
        for name in DASHBOARD_PORTS:
            _tell(told, name, -1)  # as Ray without its dashboard's packages
        _sleep(raylet)
        return
    host, port = told["node-ip-address"], int(told.get("runtime-env-agent-port") or 0)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
        port = listening.getsockname()[1]
        _tell(told, RUNTIME_ENV_PORT, port)
        called = _sleep(raylet, listening)
    if called:  # who called hears nothing, and Ray calls again a second later
        said = [each for each in arguments if not each.startswith("--runtime-env-agent-port=")]
        os.execv(sys.executable, [sys.executable, "-u", *said, f"--runtime-env-agent-port={port}"])


def _tell(told: dict[str, str], name: str, port: int) -> None:
    """The file for which the raylet waits; it is there when it is whole."""
    path = os.path.join(told["session-dir"], f"{name}_{told['node-id']}")  # noqa: PTH118
    with open(f"{path}.new", "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(port))
    os.replace(f"{path}.new", path)  # noqa: PTH105


def _sleep(raylet: int, listening: socket.socket | None = None) -> bool:
    """Whether somebody connects before the raylet has ended."""
    try:
        ending = os.pidfd_open(raylet)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):
        ending = None
    waiting = [each for each in (ending, listening) if each is not None]
    while True:
        ready = select.select(waiting, [], [], LOOKS_SECONDS if ending is None else None)[0]
        if ending in ready or not _lives(raylet):
            return False
        if listening in ready:
            return True


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
