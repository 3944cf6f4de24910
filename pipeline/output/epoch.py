"""The epoch: which execution may write. Each run takes the next number, whatever the clock says.

    {"checksum": "…", "epoch": 2, "runs": [{"epoch": 1, "run_id": "…", "started": "2026-01-02T03:04:05+00:00"}, …]}

A process of a killed run that still lives finds a newer number here before it writes, and stops.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from pipeline.errors import OutputError, RunError
from pipeline.output.layout import EPOCH, KIND_FOLDERS, part_owner
from pipeline.output.sealed import BrokenSealError, seal, unseal
from pipeline.output.storage import Store


@dataclass(frozen=True, slots=True)
class Run:
    """One execution on an output; `started` is what its clock said (ISO 8601), for people only."""

    epoch: int
    run_id: str
    started: str


def runs(store: Store) -> tuple[Run, ...]:
    """All executions so far, oldest first; OutputError where the file was damaged or edited."""
    data = store.find(EPOCH)
    if data is None:
        return ()
    try:
        value = unseal(data)
        return tuple(Run(**run) for run in value["runs"])
    except (BrokenSealError, KeyError, TypeError) as error:
        raise OutputError(
            f"{EPOCH} in {store.root}: {error}; restore it, or delete it: the names of the parts then tell the count"
        ) from error


def newest(store: Store) -> int:
    """The epoch that may write; 0 before the first run."""
    return max((run.epoch for run in runs(store)), default=0)


def begin(store: Store, run_id: str, started: str) -> int:
    """Take the next epoch; only who holds the lease may. A deleted file does not set the count back."""
    before = runs(store)
    written = (part_owner(path) for folder in KIND_FOLDERS.values() for path in store.list(folder, recursive=True))
    epoch = 1 + max(_epochs(before, (owner[1] for owner in written if owner)), default=0)
    every = [*before, Run(epoch, run_id, started)]
    store.write(EPOCH, seal({"epoch": epoch, "runs": [asdict(run) for run in every]}))
    return epoch


def check_fence(store: Store, epoch: int) -> None:
    """Refuse to write for an epoch that is over; RunError."""
    standing = newest(store)
    if standing > epoch:
        raise RunError(
            f"a run of epoch {epoch} must not write to {store.root} any more: a run of epoch {standing} has taken over"
        )


def _epochs(before: Iterable[Run], written: Iterable[int]) -> list[int]:
    return [*(run.epoch for run in before), *written]
