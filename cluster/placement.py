"""Where the actors go: pure arithmetic over what a machine or a cluster has.

    place(ClusterSettings(), [Node(cpus=2, gpus=0, memory_bytes=24 << 30)], weights_bytes=90_868_376, spare_cpus=0)
    -> Workers(actors=2, cpus_per_actor=1, gpus_per_actor=0, threads=1, memory_bytes=None)

On CPU the default is several actors of one thread each: two of them did 1.5 times the tokens of one with two threads.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from pipeline.errors import PlacementError
from pipeline.settings import Settings
from pipeline.workers import Workers

WEIGHTS_FACTOR = 1.3
"""An actor's peak memory beside its weights: activations and buffers."""

ACTOR_BYTES = 700 << 20
"""An actor's memory without weights: Python, torch and transformers."""

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


class ClusterSettings(Settings):
    """Which cluster computes, and how it is divided among actors."""

    address: Annotated[str, AfterValidator(_address)] = "local"
    """`local` (embedded), `auto` (the cluster that this machine belongs to) or `host:port`."""

    actors: int | None = Field(default=None, ge=1, le=100_000)
    """Number of actors; each holds every model of the job. Default: as many as fit."""

    cpus_per_actor: float | None = Field(default=None, gt=0, le=1024)
    """CPUs of one actor, and so its threads. Default: 1."""

    gpus_per_actor: float | None = Field(default=None, ge=0, le=64)
    """GPUs of one actor. Default: 1 where there are GPUs, else 0."""

    memory: Annotated[int | None, BeforeValidator(_bytes)] = Field(default=None, ge=1 << 20)
    """Memory that is reserved for one actor: bytes, or a text such as `4GiB`. Default: not reserved."""

    object_store_memory: Annotated[int | None, BeforeValidator(_bytes)] = Field(default=None, ge=75 << 20)
    """Size of Ray's object store on an embedded (`local`) cluster: bytes or a text. Default: 30% of memory."""


@dataclass(frozen=True, slots=True)
class Node:
    """What one machine has to give."""

    cpus: float
    gpus: float
    memory_bytes: int


def place(settings: ClusterSettings, nodes: Sequence[Node], weights_bytes: int, spare_cpus: float) -> Workers:
    """Divide the nodes among actors that each hold `weights_bytes` of models.

    `spare_cpus` are left for reading and writing (0 where the CPUs are told to Ray by ourselves).

    Raises PlacementError where what was asked for does not fit; it says what there is.
    """
    there = _told(nodes)
    gpus = settings.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if any(node.gpus >= 1 for node in nodes) else 0.0
    cpus = settings.cpus_per_actor or _cpus(nodes, spare_cpus)
    if gpus > 0 and not any(node.gpus >= min(gpus, 1) for node in nodes):
        raise PlacementError(
            f"cluster.gpus_per_actor is {gpus:g}, but no GPU is there ({there}); leave it out to use CPUs"
        )
    need_bytes = settings.memory or int(weights_bytes * WEIGHTS_FACTOR) + ACTOR_BYTES
    room = sum(_room(node, cpus, gpus, need_bytes if gpus == 0 else 0, spare_cpus) for node in nodes)
    if room == 0:
        raise PlacementError(
            f"not one actor of {cpus:g} CPUs, {gpus:g} GPUs and {need_bytes / 2**30:.1f} GiB of memory fits ({there}"
            f"{f', {spare_cpus:g} CPUs of each for reading and writing' if spare_cpus else ''}); "
            "ask for less with cluster.cpus_per_actor, cluster.gpus_per_actor, cluster.memory, or take a smaller model"
        )
    if settings.actors is not None and settings.actors > room:
        raise PlacementError(
            f"cluster.actors is {settings.actors}, but only {room} of {cpus:g} CPUs, {gpus:g} GPUs and "
            f"{need_bytes / 2**30:.1f} GiB of memory fit ({there})"
        )
    return Workers(
        actors=settings.actors or room,
        cpus_per_actor=cpus,
        gpus_per_actor=gpus,
        threads=max(1, floor(cpus)),
        memory_bytes=settings.memory,
        store_bytes=settings.object_store_memory,
    )


def check_object_store(settings: ClusterSettings, machine: Node) -> None:
    """PlacementError where an embedded cluster's object store would leave no memory for anything else."""
    asked, most = settings.object_store_memory, int(machine.memory_bytes * STORE_AT_MOST)
    if asked is not None and asked > most:
        raise PlacementError(
            f"cluster.object_store_memory is {asked / 2**30:.1f} GiB, and this machine has "
            f"{machine.memory_bytes / 2**30:.1f} GiB of memory; at most {most / 2**30:.1f} GiB may go to the store"
        )


def _cpus(nodes: Sequence[Node], spare_cpus: float) -> float:
    """CPUs of one actor: 1, or half a one where no node has more beside what reading and writing need."""
    return 1.0 if any(node.cpus - spare_cpus >= 1 for node in nodes) else 0.5


def _room(node: Node, cpus: float, gpus: float, need_bytes: int, spare_cpus: float) -> int:
    """Actors that fit on one node. Without CPUs for the tasks beside them they would wait without end."""
    by_cpu = max(0.0, node.cpus - spare_cpus) / cpus
    by_gpu = node.gpus / gpus if gpus > 0 else by_cpu
    by_memory = node.memory_bytes / need_bytes if need_bytes else by_cpu
    return floor(min(by_cpu, by_gpu, by_memory))


def _told(nodes: Sequence[Node]) -> str:
    """Machines in words: `1 machine: 2 CPUs, 0 GPUs, 23.4 GiB`."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = sum(node.memory_bytes for node in nodes) / 2**30
    count = f"{len(nodes)} machine{'' if len(nodes) == 1 else 's'}"
    return f"{count}: {cpus:g} CPUs, {gpus:g} GPUs, {memory:.1f} GiB"
