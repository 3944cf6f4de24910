"""What an embedded Ray does without, and that nothing of Ray stays changed."""

import sys

import pytest

from cluster.embedded import Nobody, _replaced, no_watchers, nobody_counts, sleeping_agents


def test_ray_is_afterwards_as_it_was_before() -> None:
    from ray._private.node import Node
    from ray.data._internal import stats
    from ray.data._internal.execution import streaming_executor

    before = Node.start_api_server, stats.get_or_create_stats_actor, streaming_executor.create_cluster_autoscaler
    with no_watchers(), nobody_counts():
        inside = Node.start_api_server, stats.get_or_create_stats_actor, streaming_executor.create_cluster_autoscaler
        assert not set(inside) & set(before)
        assert isinstance(stats.get_or_create_stats_actor(), Nobody)
    after = Node.start_api_server, stats.get_or_create_stats_actor, streaming_executor.create_cluster_autoscaler
    assert after == before


def test_what_another_version_of_ray_lacks_is_left_as_it_is() -> None:
    class Node:
        """Of a Ray without a dashboard."""

    with _replaced(Node, "start_api_server", None):
        assert not hasattr(Node, "start_api_server")
    assert not hasattr(Node, "start_api_server")


def test_nobody_takes_every_call() -> None:
    Nobody().update_execution_metrics.remote("dataset", [], state={})
    assert not hasattr(Nobody(), "__array__")


def _command(component: str) -> list[str]:
    """How Ray calls Python for one of its parts."""
    from ray._private import services

    command: list[str] = services._build_python_executable_command_memory_profileable(component, "session")
    return command


def test_agents_sleep_and_other_parts_of_ray_are_called_as_ever() -> None:
    before = _command("runtime_env_agent")
    with sleeping_agents():
        for agent in ("dashboard_agent", "runtime_env_agent"):
            assert _command(agent)[0] == sys.executable
            assert _command(agent)[-1].endswith("sleeping_agent.py")
        assert _command("dashboard") == before
    assert _command("runtime_env_agent") == before


def test_a_ray_that_waits_for_other_ports_keeps_its_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._raylet

    monkeypatch.setattr(ray._raylet, "METRICS_AGENT_PORT_NAME", "telemetry_port")
    before = _command("dashboard_agent")
    with sleeping_agents():
        assert _command("dashboard_agent") == before
