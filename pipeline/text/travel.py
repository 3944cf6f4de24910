"""Tokens on their way from the process that reads a text to the one that holds the model.

    packed({"topic/": ([0, 2], [Tokens(…), Failure(…)])}, rows=3) -> pa.Table of 3 rows, a column `topic/`
    unpacked(table) -> {"topic/": [Tokens(…), None, None]}

A row without tokens, or whose tokenizer failed, holds null: who needs them looks again.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.quarantine import Failure
from pipeline.text.tokens import Tokens

_NUMBERS = pa.large_list(pa.int32())

Found = Sequence[Tokens | Failure | None]


def packed(found: Mapping[str, tuple[Sequence[int], Found]], rows: int) -> pa.Table:
    """A column for each name: the tokens of `rows` rows, of which the given ones have some."""
    return pa.table({name: _column(rows_R, found_R, rows) for name, (rows_R, found_R) in found.items()})


def unpacked(table: pa.Table) -> dict[str, list[Tokens | None]]:
    """What was packed, as views of the table."""
    return {name: _tokens(table[name].combine_chunks()) for name in table.column_names}


def _column(rows_R: Sequence[int], found_R: Found, rows: int) -> pa.StructArray:
    tokens_N: list[Tokens | None] = [None] * rows
    for row, found in zip(rows_R, found_R, strict=True):
        tokens_N[row] = found if isinstance(found, Tokens) else None
    told = {tokens.offsets_T2 is not None for tokens in tokens_N if tokens is not None}
    assert len(told) < 2, "all have offsets, or none has"
    with_offsets = True in told
    ids = _lists([None if tokens is None else tokens.ids_T for tokens in tokens_N])
    places: pa.Array = pa.nulls(rows, _NUMBERS)
    if with_offsets:
        places = _lists(
            [None if tokens is None or tokens.offsets_T2 is None else tokens.offsets_T2.ravel() for tokens in tokens_N]
        )
    whole = pa.array([tokens is None or tokens.whole for tokens in tokens_N], pa.bool_())
    return pa.StructArray.from_arrays([ids, places, whole], ["ids", "offsets", "whole"])


def _lists(values_N: Sequence[npt.NDArray[np.int32] | None]) -> pa.Array:
    lengths_N = [0 if values is None else len(values) for values in values_N]
    offsets = np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)])
    flat = [values for values in values_N if values is not None]
    numbers = np.concatenate(flat) if flat else np.zeros(0, np.int32)
    missing = pa.array([values is None for values in values_N], pa.bool_())
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(numbers, pa.int32()), mask=missing)


def _tokens(column: pa.StructArray) -> list[Tokens | None]:
    ids, places, whole = (column.field(name) for name in ("ids", "offsets", "whole"))
    there = ids.is_valid().to_numpy(zero_copy_only=False).tolist()
    numbers, cuts = ids.values.to_numpy(), ids.offsets.to_numpy().tolist()
    told = whole.to_numpy(zero_copy_only=False).tolist()
    if places.null_count == len(places):
        return [
            Tokens(numbers[start:stop], None, is_whole) if is_there else None
            for is_there, (start, stop), is_whole in zip(there, pairwise(cuts), told, strict=True)
        ]
    pairs_T2 = places.values.to_numpy().reshape(-1, 2)
    return [
        Tokens(numbers[start:stop], pairs_T2[start:stop], is_whole) if is_there else None
        for is_there, (start, stop), is_whole in zip(there, pairwise(cuts), told, strict=True)
    ]
