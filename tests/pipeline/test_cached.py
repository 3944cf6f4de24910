"""The parts in which a unit's new texts are computed; what comes of them stands in test_annotator."""

from math import factorial
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cached import _CHUNKS, _SMALLEST_CHUNK, _chunks


@given(st.lists(st.integers(0, 500), max_size=1200), st.integers(0, 3), st.integers(0, 9))
def test_every_text_is_in_one_part_beside_texts_of_like_lengths(lengths: list[int], skip: int, seed: int) -> None:
    texts = list(range(skip, len(lengths)))
    chunks = _chunks(texts, dict(enumerate(lengths)), Random(seed))
    assert sorted(text for chunk in chunks for text in chunk) == texts
    assert len(chunks) <= _CHUNKS
    assert len(chunks) == 1 or min(map(len, chunks)) >= _SMALLEST_CHUNK
    by_length = sorted((chunk for chunk in chunks if chunk), key=lambda chunk: lengths[chunk[0]])
    told = [lengths[text] for chunk in by_length for text in chunk]
    assert told == sorted(told)


def test_units_begin_at_lengths_of_their_own() -> None:
    lengths = {text: text for text in range(1200)}
    orders = {tuple(chunk[0] for chunk in _chunks(list(range(1200)), lengths, Random(seed))) for seed in range(200)}
    assert len(orders) == factorial(_CHUNKS)
