"""Rows find their place in a unit, and doubles are found whatever the numbers are."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.output.coverage import Cover, Seen

ROWS = st.lists(st.integers(0, 50), max_size=30)
PLANNED = st.dictionaries(st.sampled_from("abc"), st.sets(st.integers(0, 50), max_size=20), max_size=3)


def chunked(values: list[str] | list[int], kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@settings(max_examples=100, deadline=None)
@given(PLANNED, st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 51)), max_size=30))
def test_every_row_has_the_place_that_counting_gives(
    planned: dict[str, set[int]], pairs: list[tuple[str, int]]
) -> None:
    cover = Cover(tuple(planned), tuple(np.array(sorted(rows), np.int64) for rows in planned.values()), ())
    places = {
        pair: place for place, pair in enumerate((file, row) for file in planned for row in sorted(planned[file]))
    }
    files, rows = [file for file, _ in pairs], [row for _, row in pairs]
    found = cover.ordinals(chunked(files, pa.string()), chunked(rows, pa.int64()))
    assert found.tolist() == [places.get(pair, -1) for pair in pairs]
    assert cover.total == len(places)
    assert [cover.named(place) for place in range(cover.total)] == [f"row {row} of {file}" for file, row in places]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.integers(8_180, 8_200) | st.integers(0, 2**50))), max_size=4)
)
def test_what_was_seen_before_is_told(parts: list[list[tuple[str, int]]]) -> None:
    seen, before = Seen(), set[tuple[str, int]]()
    for pairs in parts:
        found = seen.add([file for file, _ in pairs], np.array([row for _, row in pairs], np.int64))
        expected = {pair for pair in pairs if pair in before or pairs.count(pair) > 1}
        assert set(found) == expected
        before |= set(pairs)
