"""What an embedded Ray does without, and that nothing of Ray stays changed."""

from cluster.embedded import Nobody, _replaced, no_watchers, nobody_counts


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
