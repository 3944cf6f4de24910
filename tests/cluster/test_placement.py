"""Actors are placed by what machines have; what does not fit is told with what there is."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.placement import ClusterSettings, Node, PoolSettings, TrainClusterSettings, place, place_workers
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


def test_cpus_that_actors_on_gpus_leave_read_and_tokenise_ahead_of_them() -> None:
    assert _alone(ClusterSettings(), [SERVER, SERVER], MINILM_BYTES, spare_cpus=1).readers == 2 * (63 - 8)
    assert _alone(ClusterSettings(actors=1), [SERVER], MINILM_BYTES, spare_cpus=1).readers == 16
    assert _alone(ClusterSettings(actors=1), [Node(2, 1, 16 * GIB)], MINILM_BYTES, spare_cpus=0).readers == 1
    none_whole = ClusterSettings(actors=4, cpus_per_actor=3.5)
    assert _alone(none_whole, [Node(4, 1, 16 * GIB)] * 4, MINILM_BYTES, spare_cpus=0.25).readers == 0
    assert _alone(ClusterSettings(), [LAPTOP], MINILM_BYTES, spare_cpus=0).readers == 0
    mixed = _pools(large={"actors": 2}, small={"gpus_per_actor": 0, "actors": 4})
    pools = place(mixed, [SERVER], {"large": MINILM_BYTES, "small": MINILM_BYTES}, 0)
    assert {pool: workers.readers for pool, workers in pools.items()} == {"large": 32, "small": 0}


def test_fractions_of_a_gpu_share_it() -> None:
    assert _alone(ClusterSettings(gpus_per_actor=0.5), [SERVER], MINILM_BYTES, spare_cpus=1).actors == 16


def test_a_share_of_a_gpu_is_of_one_gpu() -> None:
    two = Node(cpus=64, gpus=2, memory_bytes=512 * GIB)
    for share, actors in [(0.6, 2), (0.4, 4), (0.3, 6), (1.0, 2), (2.0, 1)]:
        assert _alone(ClusterSettings(gpus_per_actor=share), [two], MINILM_BYTES, spare_cpus=1).actors == actors
    with pytest.raises(PlacementError, match=r"cluster\.actors is 3, but only 2 of 1 CPUs, 0\.6 GPUs"):
        _alone(ClusterSettings(gpus_per_actor=0.6, actors=3), [two], MINILM_BYTES, spare_cpus=1)
    shared = _pools(large={"gpus_per_actor": 0.6}, small={"gpus_per_actor": 0.4, "actors": 1})
    assert _actors(shared, [two], "large", "small") == {"large": 2, "small": 1}
    with pytest.raises(PlacementError, match=r"an actor of each pool does not fit at the same time"):
        _actors(_pools(a={"gpus_per_actor": 2}, b={"gpus_per_actor": 0.1}), [two], "a", "b")


@pytest.mark.parametrize("share", [1.5, 0.00001])
def test_a_share_of_gpus_that_ray_does_not_give_is_refused(share: float) -> None:
    with pytest.raises(
        ValidationError, match=rf"{share} GPUs cannot be given to one actor: 0, 0\.0001 to 1, or a whole number"
    ):
        ClusterSettings(gpus_per_actor=share)


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


@pytest.mark.parametrize(
    "wrong",
    [{"actors": 0}, {"cpus_per_actor": 0.00001}, {"memory": "a lot"}, {"gpus_per_actor": -1}, {"adress": "local"}],
)
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


# ------------------------------------------------------------------------------------------------------------- pools


def _pools(**pools: dict[str, object]) -> ClusterSettings:
    return ClusterSettings.model_validate({"pools": pools})


def _actors(settings: ClusterSettings, nodes: list[Node], *names: str | None, spare_cpus: float = 0) -> dict[str, int]:
    placed = place(settings, nodes, dict.fromkeys(names, MINILM_BYTES), spare_cpus)
    return {name or "own": workers.actors for name, workers in placed.items()}


def test_pools_that_do_not_say_share_what_is_there_evenly() -> None:
    assert _actors(ClusterSettings(), [LAPTOP], None, "large") == {"own": 4, "large": 4}
    assert _actors(_pools(large={"cpus_per_actor": 3}), [LAPTOP], None, "large") == {"own": 2, "large": 2}
    assert _actors(ClusterSettings(), [Node(2, 0, 24 * GIB)], None, "large") == {"own": 1, "large": 1}


def test_the_number_of_one_pool_leaves_the_rest_to_the_others() -> None:
    assert _actors(_pools(large={"actors": 2}), [LAPTOP], None, "large") == {"own": 6, "large": 2}
    both = ClusterSettings(actors=3, pools={"large": PoolSettings(actors=2)})
    assert _actors(both, [LAPTOP], None, "large") == {"own": 3, "large": 2}


def test_where_cpus_are_few_each_pool_still_has_an_actor() -> None:
    for names in ([None, "a"], [None, "a", "b"], ["a", "b", "c", "d"]):
        workers = place(ClusterSettings(), [Node(2, 0, 24 * GIB)], dict.fromkeys(names, 0), spare_cpus=0)
        assert sum(each.actors * each.cpus_per_actor for each in workers.values()) <= 2
        assert {each.threads for each in workers.values()} == {1}
    with pytest.raises(
        PlacementError, match=r"an actor of each pool does not fit at the same time, cluster: 0\.5 CPUs"
    ):
        _actors(ClusterSettings(), [Node(2, 0, 24 * GIB)], None, "a", "b", "c", "d")


def test_a_pool_has_its_own_device_threads_and_memory() -> None:
    settings = ClusterSettings(gpus_per_actor=0, pools={"large": PoolSettings(cpus_per_actor=4, memory=8 * GIB)})
    placed = place(settings, [SERVER], {None: 0, "large": 0}, spare_cpus=1)
    own, large = placed[None], placed["large"]
    assert (own.device, own.actors, own.threads, own.memory_bytes) == ("cpu", 31, 1, None)
    assert (large.device, large.actors, large.threads, large.memory_bytes) == ("cuda", 8, 4, 8 * GIB)


def test_the_weights_of_each_pool_count_for_its_own_actors() -> None:
    placed = place(ClusterSettings(), [Node(8, 0, 12 * GIB)], {None: MINILM_BYTES, "large": 6 * GIB}, spare_cpus=0)
    assert {name: each.actors for name, each in placed.items()} == {None: 4, "large": 1}


def test_larger_actors_are_given_their_place_first() -> None:
    nodes = [Node(2, 0, 16 * GIB), Node(4, 0, 16 * GIB)]
    assert _actors(_pools(large={"cpus_per_actor": 4}), nodes, None, "large") == {"own": 2, "large": 1}


def test_pools_that_do_not_fit_at_the_same_time_are_told_each() -> None:
    words = (
        r"an actor of each pool does not fit at the same time, cluster: 1 CPUs, 0 GPUs and 0\.8 GiB of memory; "
        r"cluster\.pools\.large: 8 CPUs, .* \(1 machine: 8 CPUs, .*put annotations into one pool"
    )
    with pytest.raises(PlacementError, match=words):
        _actors(
            ClusterSettings(cpus_per_actor=1, pools={"large": PoolSettings(cpus_per_actor=8)}), [LAPTOP], None, "large"
        )
    words = r"cluster\.pools\.large\.actors is 8, but only 7 of 1 CPUs, .* fit beside the actors of the other pools"
    with pytest.raises(PlacementError, match=words):
        _actors(_pools(large={"actors": 8}), [LAPTOP], None, "large")


def test_a_gpu_that_a_pool_asks_for_and_that_is_not_there_is_told_with_the_pool() -> None:
    with pytest.raises(PlacementError, match=r"cluster\.pools\.large\.gpus_per_actor is 1, but no GPU is there"):
        _actors(_pools(large={"gpus_per_actor": 1}), [LAPTOP], None, "large")


def test_a_pool_that_no_annotation_names_is_told_with_the_nearest() -> None:
    words = r"cluster\.pools\.lagre: no annotation says `pool: lagre`; did you mean 'large'\?; pools of this job: large"
    with pytest.raises(JobError, match=words):
        _actors(_pools(lagre={"actors": 1}), [LAPTOP], None, "large")
    with pytest.raises(JobError, match=r"cluster\.pools\.large: .*; no annotation of this job names a `pool`"):
        _actors(_pools(large={}), [LAPTOP], None)


def test_what_is_said_of_annotations_without_a_pool_is_told_where_there_are_none() -> None:
    with pytest.raises(JobError, match=r"cluster\.actors is of annotations without a `pool`, .*cluster\.pools\.a\.act"):
        _actors(ClusterSettings(actors=2), [LAPTOP], "a", "b")


_NODES = st.lists(
    st.builds(
        Node, st.sampled_from([0.5, 1, 2, 3.5, 8]), st.sampled_from([0, 1, 2]), st.sampled_from([2 * GIB, 16 * GIB])
    ),
    min_size=1,
    max_size=4,
)
_ASKED = st.fixed_dictionaries(
    {},
    optional={
        "actors": st.integers(1, 6),
        "cpus_per_actor": st.sampled_from([0.1, 0.5, 1.0, 3.0]),
        "gpus_per_actor": st.sampled_from([0.0, 0.5, 1.0]),
    },
)


@given(nodes=_NODES, asked=st.dictionaries(st.sampled_from("abc"), _ASKED, min_size=1), spare=st.sampled_from([0, 0.5]))
def test_whatever_is_placed_fits_at_once_with_an_actor_in_each_pool(
    nodes: list[Node], asked: dict[str, dict[str, object]], spare: float
) -> None:
    placed: dict[str | None, Workers] = {}
    with suppress(PlacementError):
        placed = place(_pools(**asked), nodes, dict.fromkeys(asked, MINILM_BYTES), spare)
    for name, workers in placed.items():
        assert workers.actors >= 1
        assert asked[str(name)].get("actors") in (None, workers.actors)
    assert sum(each.actors * each.cpus_per_actor for each in placed.values()) <= sum(node.cpus for node in nodes) + 1e-9
    assert sum(each.actors * each.gpus_per_actor for each in placed.values()) <= sum(node.gpus for node in nodes)


# --------------------------------------------------------------------------------------------------------- to train


def test_without_gpus_there_is_a_worker_for_every_8_cpus() -> None:
    workers = place_workers(TrainClusterSettings(), [LAPTOP], MINILM_BYTES)
    assert (workers.count, workers.least, workers.threads, workers.device) == (1, 1, 8, "cpu")
    two = place_workers(TrainClusterSettings(), [Node(cpus=2, gpus=0, memory_bytes=24 * GIB)], MINILM_BYTES)
    assert (two.count, two.threads, two.resources) == (1, 2, {"CPU": 2.0})
    several = place_workers(TrainClusterSettings(), [Node(cpus=16, gpus=0, memory_bytes=64 * GIB)] * 2, MINILM_BYTES)
    assert (several.count, several.threads) == (4, 8)


def test_with_gpus_there_is_a_worker_for_each() -> None:
    workers = place_workers(TrainClusterSettings(), [SERVER, SERVER], MINILM_BYTES)
    assert (workers.count, workers.device, workers.resources) == (16, "cuda", {"CPU": 1.0, "GPU": 1.0})


def test_as_many_workers_as_there_is_memory_for() -> None:
    tight = Node(cpus=32, gpus=0, memory_bytes=int(2.5 * GIB))
    assert place_workers(TrainClusterSettings(), [tight], MINILM_BYTES).count == 2


def test_an_elastic_training_keeps_its_bounds() -> None:
    workers = place_workers(TrainClusterSettings(workers=[2, 8], cpus_per_worker=1), [LAPTOP], MINILM_BYTES)
    assert (workers.least, workers.count) == (2, 8)


def test_on_one_machine_no_more_workers_come_than_it_has_room_for() -> None:
    settings = TrainClusterSettings(workers=[1, 8], cpus_per_worker=4)
    assert place_workers(settings, [LAPTOP], MINILM_BYTES).count == 8
    there = place_workers(settings, [LAPTOP], MINILM_BYTES, grows=False)
    assert (there.least, there.count) == (1, 2)


def test_workers_that_do_not_fit_are_told_with_what_there_is() -> None:
    told = r"cluster.workers is 9, but only 8 workers of 1 CPUs, 0 GPUs and 1.1 GiB of memory fit \(.*8 CPUs.*; ask for"
    with pytest.raises(PlacementError, match=told):
        place_workers(TrainClusterSettings(workers=9, cpus_per_worker=1), [LAPTOP], MINILM_BYTES)


def test_bounds_stand_in_order() -> None:
    with pytest.raises(ValidationError, match="workers: 3 is the least and more than the most, 2"):
        TrainClusterSettings(workers=[3, 2])
