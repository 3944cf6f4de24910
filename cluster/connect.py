"""A live Ray for one run: embedded in this process, or a cluster that stands somewhere.

`local` starts Ray with as many CPUs as the actors and the tasks beside them need, without dashboard, usage reports or
authentication token, and ends it again. Its noise goes to a file, not to the terminal.
"""

import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.embedded import gpus, no_watchers, nobody_counts, settle, sleeping_agents
from cluster.forks import Forks
from cluster.placement import (
    ClusterSettings,
    Node,
    TrainClusterSettings,
    check_object_store,
    check_pools,
    place,
    place_workers,
)
from pipeline.errors import PlacementError, RunError
from pipeline.models.memory import machine_memory_bytes
from pipeline.workers import Pools, TrainWorkers

SPARE_CPUS = 0.5
"""CPUs of a cluster left for read and commit tasks."""

KNOCK_SECONDS = 10.0
"""How long a cluster may take to accept a connection."""

_REFUSALS = (OSError, OverflowError, RuntimeError, ValueError)
"""What Ray raises where it cannot connect (ConnectionError and TimeoutError among them)."""


class RayCluster:
    """The cluster that a job names; Ray is imported and started only when it is needed."""

    def __init__(self, settings: ClusterSettings) -> None:
        """Nothing happens yet."""
        self._settings = settings
        self._pools: Pools | None = None
        self._train_workers: TrainWorkers | None = None
        self._own = False  # an embedded Ray of ours runs, whose CPUs are more than the machine's
        self._logs: str | None = None
        self._forks: Forks | None = None

    @contextlib.contextmanager
    def prepared(self, imports: Sequence[str]) -> Iterator[None]:
        """Inside the block, what workers of an embedded Ray will import is imported in the background, for all of them.

        Nothing happens where another Ray is named or runs, or where a GPU is: what looked for one cannot be forked.
        """
        if not self._is_embedded() or gpus():
            yield
            return
        settle()
        with Forks.started(imports) as forks:
            self._forks = forks
            try:
                yield
            finally:
                self._forks = None

    def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
        """Place the pools. On `local` without starting Ray; else the cluster is asked, so it is connected to.

        A Ray that runs in this process already is asked too: it may have less than the machine.

        Raises JobError: the cluster's pools are not the job's. PlacementError: it does not fit, no GPU is there, torch
        cannot see it, no cluster answers.
        """
        check_pools(self._settings, weights_bytes)
        if self._is_embedded():
            nodes = [_this_machine()]
            check_object_store(self._settings, nodes[0])
            self._pools = place(self._settings, nodes, weights_bytes, spare_cpus=0)
            if on_gpus := [each for each in self._pools.values() if each.gpus_per_actor > 0]:
                from pipeline.models.device import require_gpus  # torch takes seconds

                asked = sum(each.actors * each.gpus_per_actor for each in on_gpus)
                require_gpus(asked, f"{sum(each.actors for each in on_gpus)} actors", "gpus_per_actor")
        else:
            nodes = self._nodes()
            self._pools = place(self._settings, nodes, weights_bytes, spare_cpus=SPARE_CPUS)
        return self._pools

    def train_workers(self, weights_bytes: int) -> TrainWorkers:
        """Place the workers of a training of a model of so many bytes in float32.

        Raises PlacementError: they do not fit, no GPU is there, torch cannot see it, no cluster answers.
        """
        settings = self._settings
        assert isinstance(settings, TrainClusterSettings), "a job that trains has its own cluster section"
        embedded = self._is_embedded()
        nodes = [_this_machine()] if embedded else self._nodes()
        self._train_workers = found = place_workers(settings, nodes, weights_bytes, grows=not embedded)
        if embedded and found.gpus:
            from pipeline.models.device import require_gpus  # torch takes seconds

            require_gpus(found.least * found.gpus, f"{found.least} workers", "gpus_per_worker")
        return found

    def _is_embedded(self) -> bool:
        return self._settings.address == "local" and (self._own or not _runs_already())

    def _nodes(self) -> list[Node]:
        with self._ray() as ray:
            return [_node(each["Resources"]) for each in ray.nodes() if each["Alive"]]

    @contextlib.contextmanager
    def connected(self, imports: Sequence[str] = ()) -> Iterator[None]:
        """Ray runs inside the block. An instance that ran before is used, and left running.

        `imports`: modules, or functions of them, that all workers may have imported before they are given anything.
        """
        if self._forks is not None:
            self._forks.will_import(imports)
        with self._ray():
            yield

    def log_folder(self) -> str | None:
        """Where Ray's own logs lie; None before it ran."""
        return self._logs

    @contextlib.contextmanager
    def _ray(self) -> Iterator[ModuleType]:
        settle(embedded=self._settings.address == "local")
        import ray  # half a second, and a finished run needs none of it

        if ray.is_initialized():
            yield ray
            return
        handler = signal.getsignal(signal.SIGTERM) if _main_thread() else None
        # Ray puts the driver's current folder on its workers' path, where a user's own `pipeline.py` or `jobs/` would
        # shadow ours. An embedded Ray's processes go on living in that folder, so it lasts as long as they do.
        with tempfile.TemporaryDirectory(prefix="corpusmill-empty-", ignore_cleanup_errors=True) as empty:
            try:
                if self._forks is not None:  # which imports for some while yet
                    importlib.import_module("ray.data")
                with _current_folder(empty):
                    self._start(ray)
                self._own = self._settings.address == "local"
                _restore(handler)  # Ray put its own there
                with nobody_counts() if self._own else contextlib.nullcontext():
                    yield ray
            finally:  # also where it was interrupted half-way through its start
                _restore(handler)
                self._own = False
                ray.shutdown()

    def _start(self, ray: ModuleType) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
        settings = self._settings
        if settings.address == "local":
            pools = (self._pools or {}).values()
            training = self._train_workers
            assert pools or training, "workers() or train_workers() comes first"
            memory = [each.actors * each.memory_bytes for each in pools if each.memory_bytes is not None]
            readers = max(0, 0, *(each.readers for each in pools))
            beside = max(2, 2, *(each.actors for each in pools)) + 2 * readers
            cpus = sum(each.actors * each.cpus_per_actor for each in pools)
            on_gpus = any(each.gpus_per_actor > 0 for each in pools)
            if training is not None:  # afterwards the model is judged, with all that this machine has
                cpus = max(cpus, training.count * training.cpus, usable_cpus())
                on_gpus = True
            if training is not None and training.memory_bytes:
                memory = [max(sum(memory), training.count * training.memory_bytes)]
            try:
                _init_embedded(
                    ray,
                    self._forks,
                    num_cpus=int(cpus + beside),
                    # All that were counted: shares of 0.6 need a GPU each, though two make but 1.2.
                    num_gpus=gpus() if on_gpus else 0,
                    object_store_memory=settings.object_store_memory,
                    # Ray would offer less than was asked for, and wait without end for a place for the last actor.
                    _memory=sum(memory) or None,
                    **quiet,
                )
            except Exception as error:  # where a busy machine takes too long, Ray raises no kind of its own
                raise RunError(f"Ray could not start on this machine: {_first_line(error)}") from error
        else:
            try:
                _knock(settings.address)
                ray.init(address=settings.address, **{**quiet, "include_dashboard": None})
            except _REFUSALS as error:
                raise PlacementError(
                    f"no Ray cluster answers at cluster.address '{settings.address}': {_first_line(error)}; start one "
                    "with `ray start --head`, or use `local`"
                ) from error
        self._logs = str(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs")


def _init_embedded(ray: ModuleType, forks: Forks | None, **options: Any) -> None:
    with no_watchers(), sleeping_agents(), contextlib.nullcontext() if forks is None else forks.of_ray():
        ray.init(address="local", **options)


def _knock(address: str) -> None:
    """OSError where nobody listens at `host:port`: Ray itself goes on trying for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _runs_already() -> bool:
    """Whether this process has a Ray of its own, without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _restore(handler: "signal.Handlers | Callable[..., object] | int | None") -> None:
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _current_folder(folder: str) -> Iterator[None]:
    """Go there and back; from a folder that is gone or that may not be entered there is no way back."""
    before: str | None = None
    with contextlib.suppress(OSError):
        before = str(Path.cwd())
    os.chdir(folder)
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                os.chdir(before)


def usable_cpus() -> int:
    """CPUs that this process may use: a container's or a taskset's share, not the whole machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _this_machine() -> Node:
    return Node(usable_cpus(), gpus(), machine_memory_bytes())


def _node(resources: dict[str, float]) -> Node:
    return Node(resources.get("CPU", 0), resources.get("GPU", 0), int(resources.get("memory", 0)))
