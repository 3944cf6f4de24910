import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.centrality import central, chosen

VECTORS_SD = np.array([[1, 0], [0.8, 0.6], [0.8, 0.6], [0, 1]], np.float32)

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
anything = arrays(np.float32, shapes, elements=st.floats(width=32))
# few values, so that zeros, repeated and opposed sentences are common
coarse = arrays(np.float32, shapes, elements=st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0]))
diversities = st.sampled_from([0.0, 0.3, 0.5, 0.9])
weights = st.sampled_from([-1.0, -0.3, 0.0, 1.0])


def directions(vectors_SD):
    """One name for each thing said; None where nothing is said."""
    named = []
    for vector in vectors_SD.astype(float):
        length = np.linalg.norm(vector)
        named.append(tuple(np.round(vector / length, 6)) if length else None)
    return named


def by_hand(vectors_SD, before):
    unit = [np.array(named or np.zeros(vectors_SD.shape[1])) for named in directions(vectors_SD)]
    return [
        sum((unit[at] @ unit[other]) * (before if other < at else 1) for other in range(len(unit)) if other != at)
        / max(1, len(unit) - 1)
        for at in range(len(unit))
    ]


@settings(max_examples=50, deadline=None)
@given(coarse, weights)
def test_centrality_is_the_mean_cosine_to_the_others_weighed_by_where_they_stand(vectors_SD, before):
    np.testing.assert_allclose(central(vectors_SD, before), by_hand(vectors_SD, before), atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(anything, st.integers(1, 14), diversities, weights)
def test_any_vectors_give_so_many_sentences_in_order_and_scores_that_are_numbers(vectors_SD, most, diversity, before):
    found = chosen(vectors_SD, most, diversity, before)
    assert found == sorted(set(found))
    assert len(found) == min(most, len(vectors_SD))
    assert set(found) <= set(range(len(vectors_SD)))
    assert (np.abs(central(vectors_SD, before)) <= 1 + 1e-6).all()
    assert chosen(vectors_SD, most, diversity, before) == found


@settings(max_examples=150, deadline=None)
@given(coarse, st.integers(1, 12), diversities, weights)
def test_nothing_is_said_twice_while_something_else_is_left(vectors_SD, most, diversity, before):
    named = directions(vectors_SD)
    found = [named[sentence] for sentence in chosen(vectors_SD, most, diversity, before)]
    said = set(named) - {None}
    assert len(set(found) - {None}) == min(most, len(said))
    assert found.count(None) == max(0, min(most, len(named)) - (len(named) - named.count(None)))


@settings(max_examples=40, deadline=None)
@given(coarse, st.integers(0, 99))
def test_where_place_says_nothing_scores_follow_their_sentences_and_the_best_is_taken(vectors_SD, seed):
    shuffled_S = np.random.default_rng(seed).permutation(len(vectors_SD))
    worth_S = central(vectors_SD, before=1)
    np.testing.assert_allclose(central(vectors_SD[shuffled_S], before=1), worth_S[shuffled_S], atol=1e-6)
    said_S = vectors_SD.any(1)
    for order_S in (np.arange(len(vectors_SD)), shuffled_S):
        best = order_S[chosen(vectors_SD[order_S], 1, before=1)[0]]
        assert not said_S.any() or (said_S[best] and worth_S[best] > worth_S[said_S].max() - 1e-5)


def test_of_equal_sentences_the_first_is_taken():
    assert chosen(VECTORS_SD[[1, 1, 1, 1]], 1, before=1) == [0]
    assert chosen(VECTORS_SD[[0, 1, 1, 3]], 1, before=1) == [1]
    assert chosen(np.eye(4, dtype=np.float32), 2, before=1) == [0, 1]


def test_what_comes_early_stands_for_what_follows():
    np.testing.assert_allclose(central(VECTORS_SD), [1.6 / 3, 1.36 / 3, 0.06 / 3, -0.36 / 3], atol=1e-6)
    np.testing.assert_allclose(central(VECTORS_SD, before=1), [1.6 / 3, 2.4 / 3, 2.4 / 3, 1.2 / 3], atol=1e-6)
    assert chosen(VECTORS_SD, 1) == [0]


def test_diversity_takes_what_is_new_before_what_is_near():
    near_SD = np.array([[1, 0, 0], [0.96, 0.28, 0], [0.96, -0.28, 0], [0, 0, 1]], np.float32)
    assert chosen(near_SD, 2, diversity=0, before=1) == [0, 1]
    assert chosen(near_SD, 2, diversity=0.7, before=1) == [0, 3]


def test_vectors_that_rounding_set_apart_say_the_same():
    twice_SD = np.array([[0.6, 0.8], [0.6008, 0.7994], [0, 1], [1, 0]], np.float32)
    assert chosen(twice_SD, 3, diversity=0, before=1) in ([0, 2, 3], [1, 2, 3])


def test_a_sentence_without_a_direction_comes_last():
    vectors_SD = np.array([[0, 0], [1, 0], [np.nan, 1], [1, 0], [np.inf, 0]], np.float32)
    assert central(vectors_SD).tolist() == [0, 0.25, 0, pytest.approx(-0.075), 0]
    assert chosen(vectors_SD, 2) == [1, 3]
    assert chosen(vectors_SD, 3) == [0, 1, 3]
    assert chosen(np.zeros((3, 2), np.float32), 2) == [0, 1]


def test_no_sentences_give_none():
    none_SD = np.empty((0, 4), np.float32)
    assert central(none_SD).shape == (0,)
    assert chosen(none_SD, 3) == []


def test_thousands_of_sentences_are_chosen_from():
    vectors_SD = np.random.default_rng(0).normal(size=(20_000, 16)).astype(np.float32)
    assert len(chosen(vectors_SD, 5)) == 5
