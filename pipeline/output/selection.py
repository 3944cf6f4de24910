"""Rows of a table by number, whatever the types: Arrow has no `take` and no `filter` for string and binary views."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def take(table: pa.Table, rows: Sequence[int] | npt.NDArray[np.int64]) -> pa.Table:
    """The table's rows at these places, in this order; the same row may be taken more than once."""
    numbers = np.asarray(rows, np.int64)
    try:
        return table.take(pa.array(numbers))
    except pa.ArrowNotImplementedError:
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
        slices = [table.slice(int(run[0]), len(run)) for run in runs if len(run)]
        return pa.concat_tables([table.slice(0, 0), *slices]).combine_chunks()
