"""Which rows a job wants, once its predicate is read.

    RowFilter(sql="section = 'games'", columns=("section",), expression=(section == "games"))

Apart from `pipeline.corpus.filter`, which reads predicates: its parser takes 8 MB of each process that imports it, and
most jobs have none.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowFilter:
    """Which rows the job wants."""

    sql: str
    columns: tuple[str, ...]  # top-level columns that it reads, as they come
    expression: Any  # pyarrow.compute.Expression, boolean; true keeps the row
