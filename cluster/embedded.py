"""An embedded Ray without the processes that serve people who watch a cluster.

    with no_watchers(): ray.init(…)                 # no dashboard's server, autoscaler or reader of logs
    with sleeping_agents(): ray.init(…)             # no agents beside the raylet, before one is called
    with nobody_counts(): dataset.iter_rows()       # no actors of Ray Data's that collect figures and ask for nodes

Each of them imports Ray, and some Ray Data, in the seconds in which the actors import torch: an embedded Ray starts in
1 s instead of 3, and a run has six processes less; a raylet waits for its agents, for another second and more.
`include_dashboard=False` leaves the dashboard's server, without its pages, and Ray has no other word for the rest; what
a Ray of another version lacks is left as it is.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.sleeping_agent import DASHBOARD_PORTS, RUNTIME_ENV_PORT

_WATCHERS = ("start_api_server", "start_monitor", "start_log_monitor")

_OF_ANY_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1"}
_OF_OUR_OWN = {
    "RAY_AUTH_MODE": "disabled",  # else it writes a token under the home folder
    # Ray's workers would give way to everything else (nice 15), to our own driver too: they are as nice as the user
    # started this program.
    "RAY_worker_niceness": "0",
    # One heap for all threads of a process: what the thread that loaded a model has freed, the one that computes may
    # take. With one each, an encoder was 3% slower, and its actor larger.
    "MALLOC_ARENA_MAX": "1",
}

_COMMAND = "_build_python_executable_command_memory_profileable"
"""Of Ray's: how Python is called for a part of it; the part's own file and arguments follow."""

_AGENTS = ("dashboard_agent", "runtime_env_agent")
_PORTS = {*DASHBOARD_PORTS, RUNTIME_ENV_PORT}


def settle(embedded: bool = True) -> None:
    """What Ray reads from the environment, and what an embedded one's processes read; what the user has set stays."""
    for name, value in (_OF_ANY_RAY | (_OF_OUR_OWN if embedded else {})).items():
        os.environ.setdefault(name, value)


def gpus() -> int:
    """NVIDIA GPUs that the driver shows to this process, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@contextlib.contextmanager
def no_watchers() -> Iterator[None]:
    """Inside the block, a node that Ray starts is made of what computes."""
    node = import_module("ray._private.node").Node
    with contextlib.ExitStack() as replaced:
        for name in _WATCHERS:
            replaced.enter_context(_replaced(node, name, lambda *_, **__: None))
        yield


@contextlib.contextmanager
def sleeping_agents() -> Iterator[None]:
    """Inside the block, a raylet that Ray starts has `sleeping_agent.py` for its two agents, and waits for none."""
    services = import_module("ray._private.services")
    ray = import_module("ray._raylet")
    known = {getattr(ray, name, None) for name in dir(ray) if name.endswith("_PORT_NAME")} >= _PORTS
    before = getattr(services, _COMMAND, None)
    if not known or before is None:
        yield
        return

    def asleep(component: str, *given: Any, **named: Any) -> list[str]:
        if component in _AGENTS:
            return [sys.executable, "-I", "-S", str(Path(__file__).with_name("sleeping_agent.py"))]
        command: list[str] = before(component, *given, **named)
        return command

    with _replaced(services, _COMMAND, asleep):
        yield


@contextlib.contextmanager
def nobody_counts() -> Iterator[None]:
    """Inside the block, Ray Data takes the machine for what it is: all that there will be."""
    nobody = Nobody()
    with contextlib.ExitStack() as replaced:
        for module, name, instead in (
            ("execution.streaming_executor", "create_cluster_autoscaler", _as_it_is),
            ("stats", "get_or_create_stats_actor", lambda: nobody),
            ("execution.operators.actor_pool_map_operator", "get_or_create_actor_location_tracker", lambda: nobody),
            ("execution.operators.actor_pool_map_operator", "get_actor_locations", lambda _: {}),
        ):
            replaced.enter_context(_replaced(import_module(f"ray.data._internal.{module}"), name, instead))
        yield


def _as_it_is(*_: object, **__: object) -> Any:
    """What Ray Data asks for more nodes, of a cluster that has none to give."""
    import ray
    from ray.data._internal.cluster_autoscaler import ClusterAutoscaler
    from ray.data._internal.execution.interfaces import ExecutionResources

    class AsItIs(ClusterAutoscaler):
        def try_trigger_scaling(self) -> None:
            """None comes."""

        def on_executor_shutdown(self) -> None:
            """Nothing was reserved."""

        def get_total_resources(self) -> ExecutionResources:
            return ExecutionResources.from_resource_dict(ray.cluster_resources())

    return AsItIs()


class Nobody:
    """An actor's handle that takes every call, and does nothing."""

    def __getattr__(self, name: str) -> "Nobody":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def remote(self, *_: object, **__: object) -> None:
        """Nothing comes of it."""


@contextlib.contextmanager
def _replaced(holder: Any, name: str, instead: Any) -> Iterator[None]:
    if (before := getattr(holder, name, None)) is None:
        yield
        return
    setattr(holder, name, instead)
    try:
        yield
    finally:
        setattr(holder, name, before)
