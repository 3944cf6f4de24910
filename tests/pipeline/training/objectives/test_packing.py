from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.objectives._packing import Part, packed

LENGTHS = st.lists(st.integers(0, 40), max_size=30)


def used(sequence, gap):
    return sum(part.stop - part.start for part in sequence) + gap * (len(sequence) - 1)


def test_the_sample_of_the_docstring():
    assert packed([5, 3, 9, 40, 2], room=20, gap=1) == [
        [Part(3, 0, 20)],
        [Part(0, 0, 5), Part(1, 0, 3), Part(2, 0, 9)],
        [Part(3, 20, 40)],
        [Part(4, 0, 2)],
    ]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 25), st.integers(0, 3))
def test_every_token_stands_in_one_sequence_and_none_is_too_long(lengths, room, gap):
    sequences = packed(lengths, room, gap)
    places = [
        (part.row, place) for sequence in sequences for part in sequence for place in range(part.start, part.stop)
    ]
    assert sorted(places) == [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert all(0 < used(sequence, gap) <= room for sequence in sequences)
    assert all(part.start < part.stop for sequence in sequences for part in sequence)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 25), st.integers(0, 3))
def test_a_text_that_fits_is_never_cut_and_a_longer_one_no_more_often_than_it_must(lengths, room, gap):
    cuts = [0] * len(lengths)
    for sequence in packed(lengths, room, gap):
        for part in sequence:
            cuts[part.row] += 1
    assert cuts == [-(-length // room) for length in lengths]


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), min_size=2, max_size=30), st.integers(0, 3))
def test_two_sequences_side_by_side_would_not_fit_into_one(lengths, gap):
    sequences = packed(lengths, 20, gap)
    for one, other in pairwise(sequences):
        first = other[0].stop - other[0].start
        assert used(one, gap) + gap + first > 20
