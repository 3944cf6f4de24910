"""Fragments become units: pure, without files, Ray or torch.

    Fragment(path="section=games/a.parquet", size=91532, fingerprint="91532-1763…", partition=(("section", "games"),),
             row_groups=(RowGroup(rows=4096, bytes=1_532_112), RowGroup(rows=17, bytes=6_101)))
    Unit(id="6f1c…", folder="section=games", spans=(Span(fragment=0, row_group=0, start=0, stop=2048),))
"""

from dataclasses import dataclass

from pipeline.quarantine import Reason


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One row group of a file: its rows, and the uncompressed bytes of the columns that will be read."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """One input file as it stood when it was planned.

    `path` is relative to the corpus root with `/` between folders; `partition` holds the hive keys and raw
    (still quoted) values of its folders, in path order. A file whose footer cannot be read has a `problem`, no row
    groups, and an unknown number of rows.
    """

    path: str
    size: int
    fingerprint: str  # size and modification time, or etag
    partition: tuple[tuple[str, str], ...]
    row_groups: tuple[RowGroup, ...]
    problem: tuple[Reason, str] | None = None

    @property
    def rows(self) -> int:
        """Rows in the whole file; 0 where the footer is unreadable."""
        return sum(group.rows for group in self.row_groups)

    @property
    def folder(self) -> str:
        """The hive folders of the file: `section=games/lang=en`, or nothing."""
        return "/".join(f"{key}={value}" for key, value in self.partition)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of one row group of one fragment; `selected` names a sample of them by file position."""

    fragment: int
    row_group: int
    start: int
    stop: int
    selected: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows that the span stands for."""
        return self.stop - self.start if self.selected is None else len(self.selected)


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive rows of one hive partition: read, annotated and committed together."""

    id: str
    folder: str
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Rows planned: all that are read, before the filter."""
        return sum(span.rows for span in self.spans)
