"""What stands in for Ray's agents; that a raylet takes it for them is seen in `test_connect`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from cluster import sleeping_agent
from cluster.sleeping_agent import DASHBOARD_PORTS, RUNTIME_ENV_PORT

AGENT = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "process": os.getpid(), "isolated": sys.flags.isolated}), flush=True)
"""
"""What stands where an agent of Ray's would."""


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("agent.py", sleeping_agent.RUNTIME_ENV_SCRIPT):
        (tmp_path / name).write_text(AGENT)
    return tmp_path


def _begun(script: Path, raylet: "subprocess.Popen[bytes]", *more: str) -> "subprocess.Popen[bytes]":
    arguments = [f"--session-dir={script.parent}", "--node-id=9f", "--node-ip-address=127.0.0.1", *more]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", sleeping_agent.__file__, str(script), *arguments],
        env=os.environ | {"RAY_RAYLET_PID": str(raylet.pid)},
        stdout=subprocess.PIPE,
    )


def _told(path: Path) -> int:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} was not told"
        time.sleep(0.01)
    return int(path.read_text())


def _said(process: "subprocess.Popen[bytes]") -> bytes:
    out: IO[bytes] | None = process.stdout
    assert out is not None
    with process, out:
        return out.read()


def test_the_dashboards_agent_has_no_ports_and_ends_with_the_raylet(folder, raylet):
    with _begun(folder / "agent.py", raylet, "--head") as agent:
        assert [_told(folder / f"{name}_9f") for name in DASHBOARD_PORTS] == [-1, -1, -1]
        raylet.kill()
        assert (_said(agent), agent.wait(30)) == (b"", 0)


def test_an_agent_whose_raylet_has_ended_before_ends_too(folder, raylet):
    raylet.kill()
    raylet.wait()
    with _begun(folder / "agent.py", raylet) as agent:
        assert (_said(agent), agent.wait(30)) == (b"", 0)


def test_a_raylet_ends_its_agents_as_it_ends_rays(folder, raylet):
    with _begun(folder / sleeping_agent.RUNTIME_ENV_SCRIPT, raylet) as agent:
        assert _told(folder / f"{RUNTIME_ENV_PORT}_9f") > 0
        agent.terminate()
        assert (_said(agent), agent.wait(30)) == (b"", -signal.SIGTERM)


def test_who_is_called_becomes_the_agent_at_the_port_that_was_told(folder, raylet):
    script = folder / sleeping_agent.RUNTIME_ENV_SCRIPT
    with _begun(script, raylet, "--runtime-env-agent-port=0", "--log-dir=logs") as agent:
        port = _told(folder / f"{RUNTIME_ENV_PORT}_9f")
        socket.create_connection(("127.0.0.1", port)).close()
        answer = json.loads(_said(agent))
    assert (answer["process"], answer["isolated"]) == (agent.pid, 0)
    assert answer["arguments"][1:3] == ["--node-id=9f", "--node-ip-address=127.0.0.1"]
    assert answer["arguments"][3:] == ["--log-dir=logs", f"--runtime-env-agent-port={port}"]
    with socket.socket() as again:  # as Ray's does
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
