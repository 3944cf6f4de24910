"""What a job's workers import is begun before the job is known, as far as a first look at its file tells.

    with workers_ahead("topics.yaml", ["cluster.actors=2"]): kinds.run("topics.yaml", …)

Workers take longest to import, so that begins first: here, before the half second in which this process imports what
checks a job. A job that is wrong is told as ever. This module imports little.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.embedded import gpus, settle
from cluster.forks import Forks
from jobs import plain_yaml

MOST_BYTES = 1 << 16
"""Bytes of a file that is looked at; to read a larger one would take longer than it saves."""

KINDS = ("annotate", "evaluate")
"""Kinds of jobs whose workers are forked."""


@contextlib.contextmanager
def workers_ahead(path: str, overrides: Sequence[str] = ()) -> Iterator[None]:
    """Inside the block it is begun, where workers will be forked: on this machine, without a GPU."""
    imports = _imports(path, overrides)
    if not imports or gpus() or "ray" in sys.modules:  # this process may have a Ray, with workers of its own
        yield
        return
    settle()
    with Forks.ahead(imports):
        yield


def _imports(path: str, overrides: Sequence[str]) -> list[str]:
    """What the workers import; nothing where the file, or what changes it, is not clear at a glance."""
    if any(not each.startswith(("annotations.", "corpus.", "output.", "limits.")) for each in overrides):
        return []
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES + 1)
        job = plain_yaml.load(text) if len(text) <= MOST_BYTES else None
    except (OSError, ValueError):  # for who reads it whole to tell
        return []
    if not isinstance(job, dict) or job.get("kind") not in KINDS or not _is_embedded(job.get("cluster")):
        return []
    return ["pipeline.stream", *(["torch"] if _with_models(job) else [])]


def _is_embedded(cluster: Any) -> bool:
    return cluster is None or (isinstance(cluster, dict) and cluster.get("address", "local") == "local")


def _with_models(job: dict[str, Any]) -> bool:
    """Whether an annotation, or what is evaluated, names a model."""
    annotations = job.get("annotations")
    named = [*(annotations if isinstance(annotations, list) else []), job]
    return any(isinstance(each, dict) and each.get("model") is not None for each in named)
