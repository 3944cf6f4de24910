import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.bootstrap import Bootstrap, in_column, interval, intervals

pytest.importorskip("scipy.sparse")


def weights(bootstrap):
    return np.hstack(list(bootstrap.weights()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 5))
def test_each_resample_draws_as_many_rows_as_there_are(rows, resamples, seed):
    weights_RB = weights(Bootstrap(rows, seed, resamples))
    assert weights_RB.shape == (rows, resamples)
    assert (weights_RB.sum(0) == rows).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 20))
def test_sums_are_over_the_rows_that_the_weights_tell(groups, resamples):
    stats_RS = np.random.default_rng(0).normal(size=(len(groups), 3))
    for group_R in (None, np.unique(groups, return_inverse=True)[1]):
        bootstrap = Bootstrap(len(groups), 7, resamples, group_R)
        column_R = np.arange(len(groups)) % 2
        sums = bootstrap.sums({"dense": stats_RS, "sparse": in_column(column_R, 2)})
        weights_RB = weights(bootstrap)
        assert sums["dense"] == pytest.approx(weights_RB.T @ stats_RS)
        assert sums["sparse"] == pytest.approx(weights_RB.T @ np.eye(2)[column_R])


def test_rows_of_one_group_are_drawn_together():
    weights_RB = weights(Bootstrap(5, 0, 40, np.array([0, 1, 0, 1, 2])))
    assert (weights_RB[0] == weights_RB[2]).all()
    assert (weights_RB[1] == weights_RB[3]).all()
    assert (weights_RB[[0, 1, 4]].sum(0) == 3).all()


def test_a_seed_gives_the_same_draws_and_another_seed_others():
    assert (weights(Bootstrap(30, 1, 10)) == weights(Bootstrap(30, 1, 10))).all()
    assert (weights(Bootstrap(30, 1, 10)) != weights(Bootstrap(30, 2, 10))).any()


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    whole = weights(Bootstrap(30, 1, 10))
    monkeypatch.setattr("pipeline.metrics.bootstrap._BLOCK_BYTES", 8 * 30 * 3)
    assert [block.shape[1] for block in Bootstrap(30, 1, 10).weights()] == [3, 3, 3, 1]
    assert (weights(Bootstrap(30, 1, 10)) == whole).all()


def test_no_resamples_give_no_interval():
    sums = Bootstrap(3, 0, 0).sums({"rows": np.ones((3, 1))})
    assert sums["rows"].shape == (0, 1)
    assert interval(sums["rows"][:, 0]) is None


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    values_R = np.random.default_rng(4).normal(size=2000)
    means_B = Bootstrap(2000, 0, 2000).sums({"values": values_R[:, None]})["values"][:, 0] / 2000
    bounds = interval(means_B)
    assert bounds is not None
    assert bounds[1] - bounds[0] == pytest.approx(2 * 1.96 * values_R.std() / 2000**0.5, rel=0.1)


def test_the_interval_covers_the_truth_19_times_of_20():
    draws = np.random.default_rng(9)
    covered = 0
    for seed in range(300):
        right_R1 = (draws.random((200, 1)) < 0.7).astype(float)
        bounds = interval(Bootstrap(200, seed, 300).sums({"right": right_R1})["right"][:, 0] / 200)
        covered += bounds is not None and bounds[0] <= 0.7 <= bounds[1]
    assert 0.90 <= covered / 300 <= 0.98


def test_resamples_without_a_value_are_passed_over_up_to_half():
    assert interval(np.array([1.0, 1.0, np.nan])) == (1, 1)
    assert interval(np.array([1.0, np.nan, np.nan])) is None
    assert intervals(np.array([[1.0, np.nan], [1.0, np.nan]])) == [(1, 1), None]


def test_only_the_rows_that_are_named_have_a_value():
    found = in_column(np.array([0, 2, 1]), 3, np.array([True, True, False]), np.array([5, 6, 7]))
    assert found.toarray().tolist() == [[5, 0, 0], [0, 0, 6], [0, 0, 0]]
