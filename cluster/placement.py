"""Where the actors go: pure arithmetic over what a machine or a cluster has.

    place(ClusterSettings(), [Node(cpus=2, gpus=0, memory_bytes=24 << 30)], {None: 90_868_376}, spare_cpus=0)
    -> {None: Workers(actors=2, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)}

On CPU the default is several actors of one thread each: two of them did 1.5 times the tokens of one with two threads.
Several pools run at the same time, so all their actors have to fit together.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import floor
from typing import Annotated, Self

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import JobError, PlacementError
from pipeline.settings import Settings
from pipeline.workers import TrainWorkers, Workers, section

WEIGHTS_FACTOR = 1.3
"""An actor's peak memory beside its weights: activations and buffers."""

ACTOR_BYTES = 700 << 20
"""An actor's memory without weights: Python, torch and transformers."""

READERS_OF_AN_ACTOR = 16
"""Processes that tokenise ahead of one actor on a GPU, at most; 15 were as much as one with MiniLM on an H100 took."""

STORE_AT_MOST = 0.8
"""Share of a machine's memory that an embedded cluster's object store may have."""


def _bytes(value: object) -> object:
    """`4GiB` or a number of bytes."""
    return int(TypeAdapter(ByteSize).validate_python(value)) if isinstance(value, str) else value


def _address(value: str) -> str:
    if value not in ("local", "auto") and re.fullmatch(r"([^\s:/]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}", value) is None:
        raise PydanticCustomError(
            "address_unknown",
            "{address} is no address of a cluster; allowed: local, auto, or host:port as in 10.0.0.7:6379",
            {"address": repr(value)},
        )
    return value


def _gpu_share(value: float | None) -> float | None:
    """Ray divides one GPU among actors, and gives several only whole."""
    if value is not None and value > 0 and (value % 1 if value > 1 else not _parts(value)):
        raise PydanticCustomError(
            "gpu_share",
            "{value} GPUs cannot be given to one actor: 0, 0.0001 to 1, or a whole number",
            {"value": value},
        )
    return value


class PoolSettings(Settings):
    """How many actors a pool has, and what each of them takes."""

    actors: int | None = Field(default=None, ge=1, le=100_000)
    """Number of actors; each holds every model of the pool's annotations. Default: as many as fit, shared evenly among
    the pools that do not say."""

    cpus_per_actor: float | None = Field(default=None, ge=0.0001, le=1024)
    """CPUs of one actor, and so its threads. Default: 1."""

    gpus_per_actor: Annotated[float | None, AfterValidator(_gpu_share)] = Field(default=None, ge=0, le=64)
    """GPUs of one actor. Default: 1 where there are GPUs, else 0."""

    memory: Annotated[int | None, BeforeValidator(_bytes)] = Field(default=None, ge=1 << 20)
    """Memory that is reserved for one actor: bytes, or a text such as `4GiB`. Default: not reserved."""


class ClusterSettings(PoolSettings):
    """Which cluster computes, and how it is divided; what it says of actors holds for annotations without a `pool`."""

    address: Annotated[str, AfterValidator(_address)] = "local"
    """`local` (embedded), `auto` (the cluster that this machine belongs to) or `host:port`."""

    pools: dict[str, PoolSettings] = Field(default_factory=dict)
    """The pools that annotations name, each with actors, cpus_per_actor, gpus_per_actor and memory of its own; one that
    is not here has the defaults."""

    object_store_memory: Annotated[int | None, BeforeValidator(_bytes)] = Field(default=None, ge=75 << 20)
    """Size of Ray's object store on an embedded (`local`) cluster: bytes or a text. Default: 30% of memory."""


class TrainClusterSettings(ClusterSettings):
    """Which cluster trains; what it says of actors holds for the evaluation."""

    workers: (
        Annotated[int, Field(ge=1, le=10_000)]
        | Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=2, max_length=2)]
        | None
    ) = None
    """Workers of the training; [least, most]: as many as find a place, and it goes on with fewer. Default: one for each
    GPU; without GPUs one for every 8 CPUs of a machine."""

    cpus_per_worker: float | None = Field(default=None, ge=0.0001, le=1024)
    """CPUs of one worker, and so its threads. Default: the machine's CPUs, shared evenly; beside a GPU 1."""

    gpus_per_worker: int | None = Field(default=None, ge=0, le=1)
    """GPUs of one worker. Default: 1 where there are GPUs, else 0."""

    memory_per_worker: Annotated[int | None, BeforeValidator(_bytes)] = Field(default=None, ge=1 << 20)
    """Memory that is reserved for one worker: bytes, or a text such as `4GiB`. Default: not reserved."""

    @model_validator(mode="after")
    def _least_first(self) -> Self:
        if isinstance(self.workers, list) and self.workers[0] > self.workers[1]:
            raise ValueError(f"workers: {self.workers[0]} is the least and more than the most, {self.workers[1]}")
        return self


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine has to give."""

    cpus: float
    gpus: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class _Size:
    """What one actor takes of a node."""

    cpus: float
    gpus: float
    need_bytes: int
    on_node_bytes: int  # the same, where it is the node's memory that holds the models and not a GPU's

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs and {self.need_bytes / 2**30:.1f} GiB of memory"


def place(
    settings: ClusterSettings, nodes: Sequence[Node], weights_bytes: Mapping[str | None, int], spare_cpus: float
) -> dict[str | None, Workers]:
    """Divide the nodes among pools of actors that each hold so many bytes of models.

    `spare_cpus` are left for reading and writing (0 where the CPUs are told to Ray by ourselves). Where pools differ in
    size, the larger actors are given their place first.

    Raises JobError for a pool that nobody uses, PlacementError where what was asked for does not fit; it says what
    there is.
    """
    check_pools(settings, weights_bytes)
    asked = {pool: settings if pool is None else settings.pools.get(pool, PoolSettings()) for pool in weights_bytes}
    there = _told(nodes)
    if spare_cpus:
        there += f", {spare_cpus:g} CPUs of each for reading and writing"
    cpus = _cpus(nodes, spare_cpus, [each.cpus_per_actor for each in asked.values()])
    gpus = {pool: _gpus(pool, each, nodes, there) for pool, each in asked.items()}
    sizes = {}
    for pool, each in asked.items():
        need_bytes = each.memory or int(weights_bytes[pool] * WEIGHTS_FACTOR) + ACTOR_BYTES
        on_node_bytes = need_bytes if gpus[pool] == 0 else 0
        sizes[pool] = _Size(each.cpus_per_actor or cpus, gpus[pool], need_bytes, on_node_bytes)
    free = _Free(nodes, spare_cpus)
    actors = _shared_out(free, sizes, {pool: each.actors for pool, each in asked.items()}, there)
    on_gpus = sum(actors[pool] for pool in sizes if gpus[pool])
    readers = min(free.whole_cpus(), READERS_OF_AN_ACTOR * on_gpus)
    return {
        pool: Workers(
            actors=actors[pool],
            cpus_per_actor=sizes[pool].cpus,
            gpus_per_actor=sizes[pool].gpus,
            threads=max(1, floor(sizes[pool].cpus)),
            memory_bytes=each.memory,
            store_bytes=settings.object_store_memory,
            readers=readers if gpus[pool] else 0,
        )
        for pool, each in asked.items()
    }


CPUS_OF_A_WORKER = 8
"""CPUs of a worker of a training without GPUs, where the job does not say: each sends all gradients to the others at
every step, and keeps a whole optimizer. One worker of two threads trained a tenth to a third more than two of one."""

TRAIN_FACTOR = 5
"""A worker's memory beside the model's float32 weights: gradients, two moments, and as much again for activations."""


def place_workers(
    settings: TrainClusterSettings, nodes: Sequence[Node], weights_bytes: int, grows: bool = True
) -> TrainWorkers:
    """The workers of a training on these nodes; `grows`: nodes may come, and workers with them.

    Raises PlacementError where the least that was asked for does not fit; it says what there is.
    """
    gpus = settings.gpus_per_worker
    if gpus is None:
        gpus = 1 if any(node.gpus >= 1 for node in nodes) else 0
    asked = settings.workers
    if asked is None:
        there = sum(node.gpus for node in nodes) if gpus else sum(node.cpus // CPUS_OF_A_WORKER for node in nodes)
        least, most = 1, max(1, int(there))
    else:
        least, most = (asked, asked) if isinstance(asked, int) else asked
    shares = settings.cpus_per_worker
    if shares is None:
        shares = 1.0 if gpus else max(1.0, floor(sum(node.cpus for node in nodes) / most))
    need_bytes = settings.memory_per_worker or weights_bytes * TRAIN_FACTOR + ACTOR_BYTES
    size = _Size(shares, gpus, need_bytes, 0 if gpus else need_bytes)
    fitting = _Free(nodes, 0).take(size, most)
    if fitting < least:
        raise PlacementError(
            f"cluster.workers is {least}, but only {fitting} workers of {size} fit ({_told(nodes)}); ask for fewer, or "
            "for less with cluster.cpus_per_worker, cluster.gpus_per_worker or cluster.memory_per_worker"
        )
    if asked is None:  # as many as there is room for, and always as many on this machine
        least = most = fitting
    if not grows:
        most = fitting
    return TrainWorkers(most, least, shares, gpus, settings.memory_per_worker)


def check_pools(settings: ClusterSettings, used: Iterable[str | None]) -> None:
    """JobError where the cluster says something of a pool that no annotation of the job uses."""
    names = [pool for pool in used if pool is not None]
    for pool in settings.pools:
        if pool not in names:
            match = get_close_matches(pool, names, n=1)
            hint = f"; did you mean {match[0]!r}?" if match else ""
            known = f"pools of this job: {', '.join(names)}" if names else "no annotation of this job names a `pool`"
            raise JobError(f"cluster.pools.{pool}: no annotation says `pool: {pool}`{hint}; {known}")
    own = [key for key in PoolSettings.model_fields if getattr(settings, key) is not None]
    if own and None not in used:
        raise JobError(
            f"cluster.{own[0]} is of annotations without a `pool`, and every annotation of this job names one; say it "
            f"of a pool: cluster.pools.{names[0]}.{own[0]}"
        )


def check_object_store(settings: ClusterSettings, machine: Node) -> None:
    """PlacementError where an embedded cluster's object store would leave no memory for anything else."""
    asked, most = settings.object_store_memory, int(machine.memory_bytes * STORE_AT_MOST)
    if asked is not None and asked > most:
        raise PlacementError(
            f"cluster.object_store_memory is {asked / 2**30:.1f} GiB, and this machine has "
            f"{machine.memory_bytes / 2**30:.1f} GiB of memory; at most {most / 2**30:.1f} GiB may go to the store"
        )


def _cpus(nodes: Sequence[Node], spare_cpus: float, asked: Sequence[float | None]) -> float:
    """CPUs of an actor that does not say: 1, or half a one where they would not do for an actor of each pool."""
    free = _Free(nodes, spare_cpus)
    taken = [free.take(_Size(cpus or 1.0, 0, 0, 0), 1) for cpus in sorted(asked, key=lambda cpus: -(cpus or 1.0))]
    return 1.0 if all(taken) else 0.5


def _gpus(pool: str | None, asked: PoolSettings, nodes: Sequence[Node], there: str) -> float:
    """GPUs of one actor of a pool; PlacementError where none is there to be had."""
    gpus = asked.gpus_per_actor
    if gpus is None:
        return 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    if gpus > 0 and not any(node.gpus >= min(gpus, 1) for node in nodes):
        raise PlacementError(
            f"{section(pool)}.gpus_per_actor is {gpus:g}, but no GPU is there ({there}); leave it out to use CPUs"
        )
    return gpus


def _shared_out(
    free: "_Free", sizes: Mapping[str | None, _Size], asked: Mapping[str | None, int | None], there: str
) -> dict[str | None, int]:
    """Actors of each pool: one of each, then those that were asked for, then as many as fit, in turn.

    Raises PlacementError where one of each, or as many as were asked for, do not fit.
    """
    largest_first = sorted(sizes, key=lambda pool: (-sizes[pool].gpus, -sizes[pool].cpus, -sizes[pool].need_bytes))
    actors = {pool: free.take(sizes[pool], 1) for pool in largest_first}
    if not all(actors.values()):
        raise PlacementError(f"{_too_large(sizes)} ({there}); {_ask_for_less(sizes)}")
    for pool in largest_first:
        wanted = asked[pool]
        if wanted is not None:
            actors[pool] += free.take(sizes[pool], wanted - 1)
            if actors[pool] < wanted:
                beside = " beside the actors of the other pools" if len(sizes) > 1 else ""
                raise PlacementError(
                    f"{section(pool)}.actors is {wanted}, but only {actors[pool]} of {sizes[pool]} fit{beside} "
                    f"({there})"
                )
    growing = [pool for pool in sizes if asked[pool] is None]
    while growing:
        most = None if len(growing) == 1 else 1
        taken = {pool: free.take(sizes[pool], most) for pool in growing}
        for pool, more in taken.items():
            actors[pool] += more
        growing = [pool for pool, more in taken.items() if more and most]
    return actors


def _too_large(sizes: Mapping[str | None, _Size]) -> str:
    if len(sizes) == 1:
        return f"not one actor of {next(iter(sizes.values()))} fits"
    each = "; ".join(f"{section(pool)}: {size}" for pool, size in sizes.items())
    return f"an actor of each pool does not fit at the same time, {each}"


def _ask_for_less(sizes: Mapping[str | None, _Size]) -> str:
    if len(sizes) == 1:
        place = section(next(iter(sizes)))
        keys = ", ".join(f"{place}.{key}" for key in ("cpus_per_actor", "gpus_per_actor", "memory"))
        return f"ask for less with {keys}, or take a smaller model"
    return "ask for less with their cpus_per_actor, gpus_per_actor and memory, or put annotations into one pool"


class _Free:
    """What the nodes have left, in whole numbers of what Ray divides CPUs and GPUs into."""

    def __init__(self, nodes: Sequence[Node], spare_cpus: float) -> None:
        self._left = [[_parts(node.cpus - spare_cpus), node.memory_bytes] for node in nodes]
        # A share is of one GPU: what two of them have left makes no third.
        self._gpus = [[_parts(1)] * int(node.gpus) for node in nodes]
        self._full: dict[_Size, int] = {}  # so many nodes, from the first on, have no place for one more of the size

    def whole_cpus(self) -> int:
        """CPUs that are left, as far as a task that asks for one finds it on one node."""
        return sum(left // _parts(1) for left, _ in self._left)

    def take(self, size: _Size, most: int | None) -> int:
        """Place actors of this size, at most so many; how many found a place."""
        need = [_parts(size.cpus), size.on_node_bytes]
        taken = 0
        for number in range(self._full.get(size, 0), len(self._left)):
            left, gpus = self._left[number], self._gpus[number]
            room = max(0, min(have // part for have, part in zip(left, need, strict=True) if part))
            here = room if most is None else min(room, most - taken)
            if size.gpus:
                here = min(here, _fitting(gpus, size.gpus))
                self._gpus[number] = _given(gpus, size.gpus, here)
            self._left[number] = [have - here * part for have, part in zip(left, need, strict=True)]
            taken += here
            if taken == most:
                break
            self._full[size] = number + 1
        return taken


def _fitting(gpus: Sequence[int], each: float) -> int:
    """Actors that find their GPUs, or their share of one, among what each GPU has left."""
    share = _parts(min(each, 1))
    return sum(left // share for left in gpus) // max(1, int(each))


def _given(gpus: Sequence[int], each: float, actors: int) -> list[int]:
    """What each GPU has left afterwards."""
    share = _parts(min(each, 1))
    shares = actors * max(1, int(each))
    after = []
    for left in gpus:
        here = min(shares, left // share)
        shares -= here
        after.append(left - here * share)
    return after


def _parts(amount: float) -> int:
    """Ray counts in ten-thousandths of a CPU or GPU."""
    return round(amount * 10_000)


def _told(nodes: Sequence[Node]) -> str:
    """Machines in words: `1 machine: 2 CPUs, 0 GPUs, 23.4 GiB`."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = sum(node.memory_bytes for node in nodes) / 2**30
    count = f"{len(nodes)} machine{'' if len(nodes) == 1 else 's'}"
    return f"{count}: {cpus:g} CPUs, {gpus:g} GPUs, {memory:.1f} GiB"
