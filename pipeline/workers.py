"""Who does the work: so many actors of such a size, in one pool or several. Decided by `cluster`, used by `pipeline`.

{None: Workers(actors=2, cpus_per_actor=1, …), "large": Workers(actors=1, cpus_per_actor=2, …)}
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Workers:
    """The actors of one pool; each holds every model of the pool's annotations."""

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads: int  # torch's intra-op threads in one actor
    memory_bytes: int | None  # asked of Ray for one actor; None: not asked
    store_bytes: int | None = None  # of Ray's object store, where the job sets it
    readers: int = 0  # processes that read and tokenise ahead of GPUs; 0: nothing is tokenised ahead

    @property
    def device(self) -> Device:
        """Where an actor computes."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


@dataclass(frozen=True, slots=True)
class TrainWorkers:
    """The workers of a training, which hold a copy (or a shard) of the model each."""

    count: int
    least: int  # so many are enough to go on with, where others find no place
    cpus: float  # of each
    gpus: float
    memory_bytes: int | None

    @property
    def device(self) -> Device:
        """Where a worker computes."""
        return "cuda" if self.gpus > 0 else "cpu"

    @property
    def threads(self) -> int:
        """Torch's threads in each worker."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """What Ray reserves for each."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory_bytes or 0)}
        return {name: amount for name, amount in asked.items() if amount}


Pools = Mapping[str | None, Workers]
"""The actors of each pool, by the name that annotations give it; None: the job's own, of annotations that name none."""


def section(pool: str | None) -> str:
    """Where a job file says how large a pool is."""
    return "cluster" if pool is None else f"cluster.pools.{pool}"


class Cluster(Protocol):
    """What `pipeline` needs of a cluster: its workers, and a live Ray while units are computed."""

    def workers(self, weights_bytes: Mapping[str | None, int]) -> Pools:
        """Place pools whose actors each hold so many bytes of models, all at once.

        Raises PlacementError where they do not fit, JobError where the job's pools and the cluster's differ.
        """
        ...

    def connected(self, imports: Sequence[str] = ()) -> AbstractContextManager[None]:
        """Have Ray running inside the block; called only when there is something to compute.

        `imports`: what all workers may import beforehand, a module or `module:function`.
        """
        ...

    def log_folder(self) -> str | None:
        """Where Ray's own logs lie; None before it ran."""
        ...


class TrainCluster(Cluster, Protocol):
    """What a training needs besides: workers that hold a copy of the model each."""

    def train_workers(self, weights_bytes: int) -> TrainWorkers:
        """Place the workers of a training of a model of so many bytes. Raises PlacementError where they do not fit."""
        ...
