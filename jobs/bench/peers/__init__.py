"""The peers of each workload, and what keeps them from taking part."""

import importlib
from collections.abc import Sequence
from typing import Any

from jobs.bench.peer import Peer
from jobs.bench.workload import Workload
from pipeline.errors import JobError


def at(place: str) -> type[Peer[Any]]:
    """The class at `module:Class` here; what it needs is not imported yet."""
    module, class_name = place.split(":")
    found: type[Peer[Any]] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return found


def asked(workload: type[Workload], names: Sequence[str] | None) -> list[str]:
    """The peers that are asked for, by default all. Raises JobError for one that the workload has not."""
    known = [*workload.peers, *workload.unavailable]
    for name in names or ():
        if name not in known:
            raise JobError(f"no peer named {name!r}; known: {', '.join(known)}")
    return list(names or known)


def obstacle(workload: type[Workload], name: str) -> str | None:
    """Why a peer cannot take part; None: it can."""
    return workload.unavailable.get(name) or at(workload.peers[name]).obstacle()
