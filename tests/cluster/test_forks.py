"""Workers forked from a process that has imported; none of them is Ray's here, which `test_connect` sees to."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import forked_worker
from cluster.forks import Forks

WORKER = """
import json, os, signal, sys
print(json.dumps({
    "parent": os.getppid(), "arguments": sys.argv, "path": sys.path[0], "folder": os.getcwd(), "name": __name__,
    "said": os.environ.get("SAID"), "imported": [each for each in ("colorsys", "wave") if each in sys.modules],
    "group": os.getpgrp() == os.getpid(), "blocked": [int(each) for each in signal.pthread_sigmask(0, [])],
    "random": __import__("random").random(),
}), flush=True)
sys.exit(7)
"""
"""What stands where Ray's `default_worker.py` would."""

SETUP = "import sys; print('set up', *sys.argv[1:], flush=True)\n"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    (tmp_path / "setup_worker.py").write_text(SETUP)
    worker = tmp_path / "default_worker.py"
    worker.write_text(WORKER)
    return worker


@pytest.fixture
def forks() -> Iterator[Forks]:
    with Forks.started(["colorsys", "no.such.module", "json:no_such_function"]) as forks:
        assert forks is not None
        forks.will_import(["wave"])
        yield forks


def _begun(worker: Path, forks: Forks | None, *arguments: str) -> str:
    """What comes of a worker that Ray would start."""
    named = {} if forks is None else {forked_worker.SOCKET: str(forks._path)}
    done = subprocess.run(
        [sys.executable, forked_worker.__file__, str(worker), *(arguments or [forked_worker.PYTHON, "--worker-id=9"])],
        env=os.environ | {"SAID": "by Ray"} | named,
        cwd=worker.parent,
        capture_output=True,
        timeout=60,
        check=True,  # who asks has done its work, whatever becomes of the worker
    )
    return done.stdout.decode()  # the worker has the same pipe, so this is until the end of both


def test_a_worker_is_what_ray_would_have_started_with_all_imported(worker: Path, forks: Forks) -> None:
    first, second = (json.loads(_begun(worker, forks)) for _ in range(2))
    assert first["imported"] == ["colorsys", "wave"]
    assert first["parent"] == forks._server.pid
    assert first["arguments"] == [str(worker), "--worker-id=9"]
    assert (first["path"], first["folder"]) == (str(worker.parent), str(worker.parent))
    assert (first["name"], first["said"], first["group"], first["blocked"]) == ("__main__", "by Ray", True, [])
    assert first["random"] != second["random"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--language=JAVA"],
        [forked_worker.PYTHON, "--worker-type=SPILL_WORKER"],
        [forked_worker.PYTHON, '--serialized-runtime-env-context={"env_vars": {}}'],
    ],
)
def test_another_kind_of_worker_or_environment_starts_as_ray_starts_it(
    worker: Path, forks: Forks, arguments: list[str]
) -> None:
    assert _begun(worker, forks, *arguments).split("\n")[0] == " ".join(["set up", str(worker), *arguments])


def test_without_a_server_it_starts_as_ray_starts_it(worker: Path, forks: Forks) -> None:
    assert _begun(worker, None).startswith("set up")
    forks._server.kill()
    forks._server.wait()
    assert _begun(worker, forks).startswith("set up")


def test_no_worker_starts_for_a_raylet_that_was_killed(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as raylet:
        monkeypatch.setenv("RAY_RAYLET_PID", str(raylet.pid))
        assert _begun(worker, None).startswith("set up")
        raylet.kill()
    assert _begun(worker, None) == ""


def test_a_process_with_threads_is_not_forked(worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "threaded.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with Forks.started(["threaded"]) as forks:
        assert _begun(worker, forks).startswith("set up")


FREED = """
import ctypes

class Told(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena a b c d e f used g h".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Told, ctypes.c_void_p, [ctypes.c_void_p]

def kept_after_freeing(count):
    blocks = [libc.malloc(1_000) for _ in range(count)]  # what was kept before is taken first
    held = libc.mallinfo2().used
    for each in blocks:
        libc.free(each)
    return count * 1_000 - (held - libc.mallinfo2().used)

kept_after_freeing(1)
print(kept_after_freeing(7), flush=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_what_a_worker_frees_is_free_at_once_unless_the_user_says_otherwise(
    worker: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.write_text(FREED)
    assert int(_begun(worker, forks)) < 1_000
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=7")
    with Forks.started([]) as users:
        assert int(_begun(worker, users)) > 5_000


def test_workers_draw_other_ids_from_rays_randomness_each(worker: Path) -> None:
    worker.write_text("import os, ray; print(os.getppid(), ray.ObjectRef.from_random().hex(), flush=True)")
    with Forks.started(["pipeline.stream"]) as forks:
        assert forks is not None
        told = [_begun(worker, forks).split() for _ in range(3)]
        assert {parent for parent, _ in told} == {str(forks._server.pid)}
    assert len({drawn for _, drawn in told}) == 3


def test_a_process_that_has_drawn_from_rays_randomness_is_not_forked(
    worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draws.py").write_text("import ray; ray.ObjectRef.from_random()")
    monkeypatch.syspath_prepend(tmp_path)
    with Forks.started(["draws"]) as forks:
        assert _begun(worker, forks).startswith("set up")


def test_a_worker_ends_with_the_server_and_the_server_with_the_driver(tmp_path: Path) -> None:
    worker = tmp_path / "default_worker.py"
    worker.write_text("import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(99)")
    driver = f"""
import os, subprocess, sys, time
from cluster.forks import Forks
from cluster import forked_worker
with Forks.started([]) as forks:
    os.environ[forked_worker.SOCKET] = str(forks._path)
    subprocess.run([sys.executable, forked_worker.__file__, {str(worker)!r}, forked_worker.PYTHON])
    while not os.path.exists("pid"): time.sleep(0.01)
    print(forks._server.pid, forks._path, flush=True)
    os.kill(os.getpid(), 9)
"""
    told = subprocess.run(
        [sys.executable, "-c", driver], cwd=tmp_path, stdout=subprocess.PIPE, timeout=60, check=False
    ).stdout  # until nobody holds the pipe: neither server nor worker
    until = time.monotonic() + 30
    server, path = told.decode().split()
    for pid in (int(server), int((tmp_path / "pid").read_text())):
        while _lives(pid):
            assert time.monotonic() < until, f"process {pid} outlived its driver"
            time.sleep(0.05)
    assert not Path(path).parent.exists()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_server_that_was_begun_ahead_is_for_the_first_who_wants_one(worker: Path) -> None:
    with Forks.ahead(["colorsys"]):
        with Forks.started(["wave"]) as forks, Forks.started([]) as another:
            assert forks is not None
            assert another is not None
            assert forks._path != another._path
            assert json.loads(_begun(worker, forks))["imported"] == ["colorsys", "wave"]
        assert forks._server.returncode is not None  # it ends with who took it
    assert not forks._path.parent.exists()
    with Forks.started([]) as later:
        assert later is not forks


def test_a_server_that_nobody_wants_ends_with_its_block() -> None:
    with Forks.ahead([]):
        forks = Forks._waiting
        assert forks is not None
    assert Forks._waiting is None
    assert forks._server.returncode is not None
    assert not forks._path.parent.exists()


def test_ray_is_told_who_forks_and_afterwards_is_as_it_was(forks: Forks) -> None:
    import ray._private.parameter as parameter

    before: Any = parameter.RayParams
    with forks.of_ray():
        assert parameter.RayParams().setup_worker_path == str(Path(forked_worker.__file__))
        assert os.environ[forked_worker.SOCKET] == str(forks._path)
    assert parameter.RayParams is before
    assert forked_worker.SOCKET not in os.environ
