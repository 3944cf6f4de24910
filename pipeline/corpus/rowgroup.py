"""Rows of one row group: only what is wanted of it is decoded and kept.

Piece(group=2, first=8192, start=1024, stop=2048)                       1,024 rows from row 9,216 of the file on
Piece(group=2, first=8192, start=7, stop=90, selected=(8199, 8281))     two rows of a sample, by their file positions
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.selection import take_rows

_BATCH_BYTES = 16 * 2**20  # uncompressed, of all columns: what is decoded at once where a row group is divided
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [start, stop) of a row group whose own row 0 is row `first` of the file; `selected` are file positions."""

    group: int
    first: int
    start: int
    stop: int
    selected: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """Rows that the piece stands for."""
        return self.stop - self.start if self.selected is None else len(self.selected)

    @property
    def positions(self) -> Sequence[int]:
        """File positions of its rows, ascending."""
        return range(self.first + self.start, self.first + self.stop) if self.selected is None else self.selected

    @property
    def position_array(self) -> npt.NDArray[np.int64]:
        """The same as an array of R rows."""
        return np.asarray(self.positions, dtype=np.int64)


def pieces_of(ends_G: Sequence[int], wanted: Sequence[int]) -> list[Piece]:
    """The pieces of a file that hold the wanted rows: a range, or ascending file positions.

    `ends_G`: for each of G row groups the file position behind its last row. Rows beyond the file's end are in no
    piece. Only row groups that hold wanted rows are looked at: a file may have thousands.
    """
    pieces, taken = [], 0
    while taken < len(wanted):
        number = bisect_right(ends_G, wanted[taken])
        if number == len(ends_G):
            break
        begin = ends_G[number - 1] if number else 0
        inside = wanted[taken : bisect_left(wanted, ends_G[number])]
        chosen = None if isinstance(wanted, range) else tuple(inside)
        pieces.append(Piece(number, begin, inside[0] - begin, inside[-1] - begin + 1, chosen))
        taken += len(inside)
    return pieces


def ranges_of(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending rows as runs (first row, rows): 3 4 5 9 -> (3, 3) (9, 1)."""
    if isinstance(rows, range):
        if rows:
            yield rows.start, len(rows)
        return
    first = count = 0
    for row in rows:
        if count and row == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = row, 1
    if count:
        yield first, count


def read_columns(parquet: pq.ParquetFile, piece: Piece, names: Sequence[str]) -> pa.Table:
    """The columns of these names that the file has, in the file's own types: the rows of the piece, in their order.

    A table without columns has no rows either. Raises one of `fragments.DECODE_ERRORS` where the bytes are damaged.
    """
    present = [name for name in names if name in parquet.schema_arrow.names]
    if not present:
        return pa.table({})
    group = parquet.metadata.row_group(piece.group)
    if piece.selected is None and piece.rows == group.num_rows:
        table = parquet.read_row_group(piece.group, columns=present, use_threads=False)
    else:
        size = max(1, _BATCH_BYTES * group.num_rows // max(1, group.total_byte_size))
        table = _divided(parquet, piece, present, min(size, _BATCH_ROWS))
    if table.num_rows != piece.rows:
        raise ValueError(f"row group {piece.group} gave {table.num_rows} rows instead of {piece.rows}")
    # A name with a dot is also the path of a nested field, which pyarrow reads along.
    table = table.select(present)
    table.validate()
    return table


def _divided(parquet: pq.ParquetFile, piece: Piece, names: list[str], batch_rows: int) -> pa.Table:
    """Decode from the beginning of the row group up to the last wanted row, a batch at a time."""
    wanted_R = piece.position_array - piece.first
    kept, begin = [], 0
    batches = parquet.iter_batches(batch_rows, row_groups=[piece.group], columns=names, use_threads=False)
    for batch in batches:
        end = begin + batch.num_rows
        low, high = np.searchsorted(wanted_R, (begin, end))
        if high - low == batch.num_rows:
            kept.append(pa.Table.from_batches([batch]))
        elif high > low:
            kept.append(take_rows(pa.Table.from_batches([batch]), wanted_R[low:high] - begin))
        begin = end
        if begin >= piece.stop:
            break
    return pa.concat_tables(kept) if kept else pa.table({})
