"""Who does the work: so many actors of such a size. Decided by `cluster`, used by `pipeline`."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Workers:
    """The actors of a run; each holds every model of the job."""

    actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads: int  # torch's intra-op threads in one actor
    memory_bytes: int | None  # asked of Ray for one actor; None: not asked
    store_bytes: int | None = None  # of Ray's object store, where the job sets it

    @property
    def device(self) -> Device:
        """Where an actor computes."""
        return "cuda" if self.gpus_per_actor > 0 else "cpu"


class Cluster(Protocol):
    """What `pipeline` needs of a cluster: its workers, and a live Ray while units are computed."""

    def workers(self, weights_bytes: int) -> Workers:
        """Place actors that each hold `weights_bytes` of models; PlacementError where they do not fit."""
        ...

    def connected(self) -> AbstractContextManager[None]:
        """Have Ray running inside the block; called only when there is something to compute."""
        ...

    def log_folder(self) -> str | None:
        """Where Ray's own logs lie; None before it ran."""
        ...
