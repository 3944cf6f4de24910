"""Actors are placed by what machines have; what does not fit is told with what there is."""

import pytest
from pydantic import ValidationError

from cluster.placement import ClusterSettings, Node, place
from pipeline.errors import JobError, PlacementError
from pipeline.workers import Workers

GIB = 1 << 30
LAPTOP = Node(cpus=8, gpus=0, memory_bytes=16 * GIB)
SERVER = Node(cpus=64, gpus=8, memory_bytes=512 * GIB)
MINILM_BYTES = 90_868_376


def _alone(settings: ClusterSettings, nodes: list[Node], weights_bytes: int, spare_cpus: float) -> Workers:
    """The actors of a job whose annotations share one pool."""
    return place(settings, nodes, {None: weights_bytes}, spare_cpus)[None]


def test_on_cpu_there_are_several_actors_of_one_thread() -> None:
    workers = _alone(ClusterSettings(), [LAPTOP], MINILM_BYTES, spare_cpus=0)
    assert (workers.actors, workers.threads, workers.device) == (8, 1, "cpu")


def test_with_gpus_each_actor_has_one() -> None:
    workers = _alone(ClusterSettings(), [SERVER, SERVER], MINILM_BYTES, spare_cpus=1)
    assert (workers.actors, workers.gpus_per_actor, workers.device) == (16, 1, "cuda")


def test_fractions_of_a_gpu_share_it() -> None:
    assert _alone(ClusterSettings(gpus_per_actor=0.5), [SERVER], MINILM_BYTES, spare_cpus=1).actors == 16


def test_no_gpu_can_be_asked_for_where_there_are_some() -> None:
    assert _alone(ClusterSettings(gpus_per_actor=0), [SERVER], MINILM_BYTES, spare_cpus=1).device == "cpu"


def test_memory_bounds_the_actors_where_cpus_would_allow_more() -> None:
    assert _alone(ClusterSettings(), [LAPTOP], 4 * GIB, spare_cpus=0).actors == 2


def test_an_actor_of_two_cpus_has_two_threads() -> None:
    workers = _alone(ClusterSettings(cpus_per_actor=2), [LAPTOP], MINILM_BYTES, spare_cpus=0)
    assert (workers.actors, workers.threads) == (4, 2)


def test_one_cpu_is_enough_for_one_actor_beside_its_tasks() -> None:
    workers = _alone(ClusterSettings(), [Node(1, 0, 4 * GIB)], MINILM_BYTES, spare_cpus=0.5)
    assert (workers.actors, workers.cpus_per_actor, workers.threads) == (1, 0.5, 1)


def test_actors_leave_room_for_the_tasks_beside_them() -> None:
    nodes = [Node(1, 0, 4 * GIB), Node(2, 0, 4 * GIB)]
    assert _alone(ClusterSettings(), nodes, MINILM_BYTES, spare_cpus=0.5).actors == 1
    with pytest.raises(PlacementError, match=r"not one actor of 2 CPUs.*0\.5 CPUs of each for reading and writing"):
        _alone(ClusterSettings(cpus_per_actor=2), nodes, MINILM_BYTES, spare_cpus=0.5)


def test_a_gpu_that_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(PlacementError, match=r"gpus_per_actor is 1, but no GPU is there \(1 machine: 8 CPUs, 0 GPUs"):
        _alone(ClusterSettings(gpus_per_actor=1), [LAPTOP], MINILM_BYTES, spare_cpus=0)


def test_more_actors_than_fit_are_told_with_how_many_do() -> None:
    with pytest.raises(PlacementError, match=r"cluster\.actors is 9, but only 8"):
        _alone(ClusterSettings(actors=9), [LAPTOP], MINILM_BYTES, spare_cpus=0)


def test_a_model_larger_than_every_machine_is_told() -> None:
    with pytest.raises(PlacementError, match=r"not one actor of 1 CPUs, 0 GPUs and 52\.7 GiB"):
        _alone(ClusterSettings(), [LAPTOP], 40 * GIB, spare_cpus=0)


def test_memory_may_be_written_as_text() -> None:
    assert ClusterSettings(memory="4GiB").memory == 4 * GIB  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"memory": "a lot"}, {"gpus_per_actor": -1}, {"adress": "local"}])
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClusterSettings.model_validate(wrong)


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.7:6379", "head.example:6379", "[::1]:6379"])
def test_a_cluster_is_local_found_or_named_by_host_and_port(address: str) -> None:
    assert ClusterSettings(address=address).address == address


@pytest.mark.parametrize("address", ["", "head.example", "ray://head.example:10001", "http://head.example:8265"])
def test_no_other_address_is_taken(address: str) -> None:
    with pytest.raises(ValidationError, match="is no address of a cluster; allowed: local, auto, or host:port"):
        ClusterSettings(address=address)
