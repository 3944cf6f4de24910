"""What a filter makes needless to read, found from hive folders and from the footers' statistics.

    prune(…)      ({0: (0, 1), 1: (), 2: (7,)}, 81_920)     row groups that may hold a match, rows that need not be read
    matching(…)   {0: [3, 17, 4095], 2: [28_701]}           file positions that do match, for a sample of them

Pruning never drops a match: where statistics cannot be trusted for a type, or a footer cannot be read, all is kept.
"""

import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import reduce
from itertools import accumulate
from operator import and_
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs

from pipeline.corpus.fragments import DECODE_ERRORS, THREADS, UnreadableFileError, open_parquet
from pipeline.corpus.hive import names_of, scalar_of
from pipeline.corpus.plan import Fragment
from pipeline.corpus.row_filter import RowFilter
from pipeline.corpus.rowgroup import Piece
from pipeline.corpus.rows import RowReader

_READERS = 4  # row groups decoded at once by `matching`

_ORDERED = (
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_timestamp,
    pa.types.is_decimal,
)
"""Types whose statistics bound every value. Not floats: NaN is in no statistics, and `NOT (x < 1)` holds for it."""


def prune(
    filesystem: fs.FileSystem, root: str, fragments: Sequence[Fragment], schema: pa.Schema, row_filter: RowFilter
) -> tuple[dict[int, tuple[int, ...]], int]:
    """By fragment index the row groups that the filter may match, and the number of rows in all others.

    Fragments with a problem are left out. Files that their hive folders exclude are not opened.
    """
    index_of = {
        posixpath.join(root, fragment.path): index
        for index, fragment in enumerate(fragments)
        if fragment.problem is None
    }
    kept: dict[int, tuple[int, ...]] = dict.fromkeys(index_of.values(), ())
    form = ds.ParquetFileFormat()
    asked = [
        form.make_fragment(path, filesystem, _guarantee(fragments[index], schema)) for path, index in index_of.items()
    ]
    dataset = ds.FileSystemDataset(asked, schema=schema, format=form, filesystem=filesystem)
    possible = list(dataset.get_fragments(filter=row_filter.expression))
    names = {key for fragment in fragments for key in names_of(fragment.partition)}
    bounded = [schema.field(name) for name in row_filter.columns if name not in names]
    with ThreadPoolExecutor(THREADS) as pool:
        for path, groups in pool.map(lambda each: (each.path, _groups(each, schema, bounded, row_filter)), possible):
            index = index_of[path]
            kept[index] = tuple(range(len(fragments[index].row_groups))) if groups is None else groups
    pruned = (
        group.rows
        for index, groups in kept.items()
        for number, group in enumerate(fragments[index].row_groups)
        if number not in groups
    )
    return kept, sum(pruned)


def matching(
    filesystem: fs.FileSystem,
    root: str,
    fragments: Sequence[Fragment],
    schema: pa.Schema,
    row_filter: RowFilter,
    kept: Mapping[int, Sequence[int]],
) -> dict[int, npt.NDArray[np.int64]]:
    """By fragment index the ascending positions of the rows in the kept row groups that match the filter.

    Reads only the filter's columns. Row groups that cannot be read have no positions.
    """
    names = {key for fragment in fragments for key in names_of(fragment.partition)}
    reader = RowReader(schema, (), tuple(names), row_filter)

    def positions(index: int) -> npt.NDArray[np.int64]:
        fragment = fragments[index]
        firsts = [0, *accumulate(group.rows for group in fragment.row_groups)]
        found = [np.empty(0, np.int64)]
        try:
            with open_parquet(filesystem, posixpath.join(root, fragment.path), checked=True) as parquet:
                for number in kept[index]:
                    piece = Piece(number, firsts[number], 0, fragment.row_groups[number].rows)
                    with suppress(*DECODE_ERRORS):
                        found.append(reader.read(parquet, piece, fragment.partition).positions_R)
        except UnreadableFileError:
            pass
        return np.concatenate(found)

    wanted = [index for index in sorted(kept) if kept[index]]
    with ThreadPoolExecutor(_READERS) as pool:
        return {index: rows for index, rows in zip(wanted, pool.map(positions, wanted), strict=True) if len(rows)}


def _guarantee(fragment: Fragment, schema: pa.Schema) -> Any:
    """What the path says of every row, as an expression; None where it says nothing."""
    known = []
    for name in names_of(fragment.partition):
        value = scalar_of(fragment.partition, schema.field(name))
        known.append(pc.field(name) == value if value.is_valid else pc.field(name).is_null())
    return reduce(and_, known) if known else None


def _groups(
    fragment: ds.ParquetFileFragment, schema: pa.Schema, bounded: Sequence[pa.Field], row_filter: RowFilter
) -> tuple[int, ...] | None:
    """The row groups that may match by their statistics; None where these cannot tell.

    Arrow keeps a row group whose column has nulls: its bounds say nothing of them.
    """
    try:
        physical = fragment.physical_schema
        for field in bounded:
            # A column of another type than the corpus's would be compared by statistics of that other type.
            same = field.name in physical.names and physical.field(field.name).type == field.type
            if not same or not any(ordered(field.type) for ordered in _ORDERED):
                return None
        return tuple(group.id for group in fragment.subset(row_filter.expression, schema=schema).row_groups)
    except DECODE_ERRORS:
        return None
