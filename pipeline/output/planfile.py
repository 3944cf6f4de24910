"""The plan of a run: what it will do, pinned at its first execution and kept in `metadata/plan.json`.

    {"version": 1, "job": {"corpus": …, "annotations": […], "output": …}, "annotations": {"topic": {"digest": "53aa…",
     "engine": "torch", "dtype": "bfloat16", "threads": 1, "token_budget": 1024}}, "fragments": […], "units": […], …}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.corpus.plan import Fragment, Unit


@dataclass(frozen=True, slots=True)
class PinnedAnnotation:
    """What decides the values of one annotation besides its options."""

    ref: str | None  # None: the task needs no model
    revision: str | None
    digest: str | None
    engine: str | None
    dtype: str | None  # what `auto` became
    device: str
    threads: int
    token_budget: int  # padded tokens of one micro-batch


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a resumed run must find unchanged, and all that `verify` needs besides the receipts."""

    version: int
    corpusmill: str  # version of the package
    job: Mapping[str, Any]  # the job's corpus, annotations and output sections in canonical form
    root: str  # of the corpus, as the file system spells it
    schema: pa.Schema  # of the whole corpus, unified, partition columns last
    partition: tuple[str, ...]  # names of the partition columns
    identity_carried: bool  # the corpus brought its own `_file` and `_row`
    annotations: Mapping[str, PinnedAnnotation]
    fragments: tuple[Fragment, ...]
    units: tuple[Unit, ...]
    rows_pruned: int  # rows of fragments and row groups that the filter excludes by partition or statistics

    @property
    def rows(self) -> int:
        """Rows that the units stand for."""
        return sum(unit.rows for unit in self.units)
