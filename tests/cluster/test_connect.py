"""A live Ray for one run, and how each thing that keeps it from living is told."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

from cluster.connect import RayCluster
from cluster.placement import ClusterSettings, TrainClusterSettings
from pipeline.errors import PlacementError, RunError

if TYPE_CHECKING:
    import numpy as np

SETTINGS = ClusterSettings(actors=1, memory=1 << 30, object_store_memory=100 << 20)


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    """The current folder of a user who has modules of our names."""
    before = Path.cwd()
    for name in ("pipeline.py", "jobs.py", "cluster.py"):
        (tmp_path / name).write_text("raise ImportError('this is not corpusmill')\n")
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


class HeardError(Exception):
    """A signal came to the handler that was there before Ray."""


def _hear(number: int, frame: FrameType | None) -> None:
    raise HeardError


def _look_around() -> tuple[list[str], str]:
    return sys.path, str(Path.cwd())


def _said() -> str | None:
    return os.environ.get("SAID")


def _has_imported(*names: str) -> list[bool]:
    return [name in sys.modules for name in names]


def test_an_embedded_ray_knows_no_folder_of_the_users_and_leaves_no_trace_in_this_process(own_folder: Path) -> None:
    import ray

    cluster, before = RayCluster(SETTINGS), signal.signal(signal.SIGTERM, _hear)
    try:
        workers = cluster.workers({None: 0})[None]
        assert cluster.log_folder() is None
        assert not ray.is_initialized()
        with cluster.prepared(["colorsys"]), cluster.connected(["wave"]):
            assert Path.cwd() == own_folder
            assert ray.get(ray.remote(num_cpus=0.1)(_has_imported).remote("colorsys", "wave")) == [True, True]
            resources = ray.cluster_resources()
            path, folder = ray.get(ray.remote(num_cpus=0.1)(_look_around).remote())
            assert not [each for each in path if Path(each or folder).resolve() == own_folder]
            assert Path(folder).name.startswith("corpusmill-empty-")
            logs = cluster.log_folder()
            assert logs is not None
            assert list(Path(logs).glob("raylet*"))
            assert not [
                *Path(logs).glob("dashboard.*"),
                *Path(logs).glob("monitor.*"),
                *Path(logs).glob("log_monitor.*"),
                *Path(logs).glob("*agent.log"),
            ]
            own = ray.remote(num_cpus=0.1, runtime_env={"env_vars": {"SAID": "aloud"}})  # whose agent wakes
            assert ray.get(own(_said).remote()) == "aloud"
            assert list(Path(logs).glob("runtime_env_agent.log"))
            assert _doubled_by_ray_data() == list(range(0, 16, 2))
            assert ray.util.list_named_actors(all_namespaces=True) == []  # none of those that count and watch
            _another_run_uses_the_same_ray()
            with pytest.raises(HeardError):
                os.kill(os.getpid(), signal.SIGTERM)
        assert not ray.is_initialized()
        assert not Path(folder).exists()
        assert signal.getsignal(signal.SIGTERM) is _hear
    finally:
        signal.signal(signal.SIGTERM, before)
    assert resources["CPU"] >= workers.actors * workers.cpus_per_actor + 0.5
    assert resources["memory"] >= workers.actors * (workers.memory_bytes or 0)


class _Double:
    def __call__(self, batch: dict[str, "np.ndarray[Any, Any]"]) -> dict[str, "np.ndarray[Any, Any]"]:
        return {"id": batch["id"] * 2}


def _doubled_by_ray_data() -> list[int]:
    import ray.data

    numbers = ray.data.range(8, override_num_blocks=4)
    doubled = numbers.map_batches(_Double, compute=ray.data.ActorPoolStrategy(size=1), batch_size=2, num_cpus=0.5)
    return sorted(int(row["id"]) for row in doubled.iter_rows())


def _another_run_uses_the_same_ray() -> None:
    """It is asked what it has, used, and left running."""
    import ray

    few = int(ray.cluster_resources()["CPU"])
    other = RayCluster(ClusterSettings())
    assert other.workers({None: 0})[None].actors < few
    with other.connected():
        assert len(ray.get(ray.remote(num_cpus=0.1)(_look_around).remote())) == 2
    assert ray.is_initialized()
    with pytest.raises(PlacementError, match=r"cluster\.actors is 500, but only \d+ "):
        RayCluster(ClusterSettings(actors=500)).workers({None: 0})


def test_a_current_folder_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    from cluster.connect import _current_folder

    before, gone, empty = Path.cwd(), tmp_path / "gone", tmp_path / "empty"
    gone.mkdir()
    empty.mkdir()
    os.chdir(gone)
    try:
        gone.rmdir()
        with _current_folder(str(empty)):
            assert Path.cwd() == empty
    finally:
        os.chdir(before)


def test_gpus_that_are_not_there_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PlacementError, match=r"cluster\.gpus_per_actor is 1, but no GPU is there"):
        RayCluster(ClusterSettings(gpus_per_actor=1)).workers({None: 0})


def test_gpus_that_torch_cannot_see_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(PlacementError, match="torch"):
        RayCluster(ClusterSettings(gpus_per_actor=1)).workers({None: 0})
    with pytest.raises(PlacementError, match=r"1 workers need 1 GPUs, but torch sees 0 here; .* gpus_per_worker to 0"):
        RayCluster(TrainClusterSettings()).train_workers(0)


def test_a_model_is_judged_with_all_that_there_is_however_little_trained_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr("cluster.connect.usable_cpus", lambda: 5)
    settings = TrainClusterSettings(workers=1, cpus_per_worker=1, object_store_memory=100 << 20)
    cluster = RayCluster(settings)
    assert cluster.train_workers(0).count == 1
    with cluster.connected():
        judging = cluster.workers({None: 0})[None]
        assert judging.actors * judging.cpus_per_actor == 5
        assert ray.cluster_resources()["CPU"] > 5  # what reads and commits has a place beside them


def test_an_embedded_ray_has_a_gpu_for_each_share_that_was_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.setattr("pipeline.models.device.require_gpus", lambda *_asked: None)  # Ray counts without looking
    settings = ClusterSettings(actors=2, gpus_per_actor=0.6, cpus_per_actor=0.5, object_store_memory=100 << 20)
    cluster = RayCluster(settings)
    cluster.workers({None: 0})
    with cluster.connected():
        shares = [ray.remote(num_gpus=0.6, num_cpus=0.5)(_Holder).remote() for _ in range(2)]
        ready, _ = ray.wait([each.gpu.remote() for each in shares], num_returns=2, timeout=60)
        assert len(set(ray.get(ready))) == 2


class _Holder:
    def gpu(self) -> str:
        return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize("port", [1, 99_999])
def test_a_port_where_no_cluster_can_be_is_told_at_once(port: int) -> None:
    with pytest.raises(PlacementError, match=rf"no Ray cluster answers at cluster\.address '127\.0\.0\.1:{port}'"):
        RayCluster(ClusterSettings(address=f"127.0.0.1:{port}")).workers({None: 0})


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(PlacementError, match=rf"no Ray cluster answers at cluster.address '{address}': .*refused"):
            RayCluster(ClusterSettings(address=address)).workers({None: 0})


def test_an_object_store_larger_than_the_machine_is_refused_before_ray_starts() -> None:
    with pytest.raises(PlacementError, match=r"cluster.object_store_memory is 1048576.0 GiB, and this machine has"):
        RayCluster(ClusterSettings(object_store_memory=1 << 50)).workers({None: 0})


def test_a_ray_that_cannot_start_here_is_told_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    cluster = RayCluster(ClusterSettings(actors=1, object_store_memory=100 << 20))
    cluster.workers({None: 0})
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null/no-folder")
    with pytest.raises(RunError, match="Ray could not start on this machine: "), cluster.connected():
        raise AssertionError("it has started")
    assert not ray.is_initialized()


def test_a_ray_that_takes_too_long_to_start_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def too_late(**options: object) -> None:
        raise Exception("The current node timed out during startup.")

    cluster = RayCluster(SETTINGS)
    cluster.workers({None: 0})
    monkeypatch.setattr(ray, "init", too_late)
    with pytest.raises(RunError, match="Ray could not start on this machine: The current node timed"):
        cluster.connected().__enter__()
