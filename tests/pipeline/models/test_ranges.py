import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.models.ranges import (
    BOUNDS,
    LARGEST,
    LEAST_OF_GELU,
    Range,
    affine,
    best_bounds,
    digest_of,
    from_bytes,
    lost_by_bounds,
    migration,
    quantized_weights,
    symmetric,
    to_bytes,
)

numbers = st.floats(-1000, 1000, width=32)
weights = arrays(np.float32, (5, 8), elements=st.floats(-4, 4, width=32))
magnitudes = arrays(np.float32, 8, elements=st.floats(0, 1000, width=32))


@given(magnitudes, weights, st.floats(0, 1))
def test_a_migration_changes_nothing_of_the_product(most_K, weights_NK, share):
    factors_K = migration(most_K, weights_NK, share)
    assert (factors_K > 0).all()
    assert np.isfinite(factors_K).all()
    before, after = most_K.astype(np.float64) * weights_NK, (most_K / factors_K) * (weights_NK * factors_K)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_a_whole_migration_makes_inputs_alike_and_none_the_weights():
    most_K, weights_NK = np.array([1, 100], np.float32), np.array([[2, 4], [1, -8]], np.float32)
    np.testing.assert_allclose(most_K / migration(most_K, weights_NK, 1.0), [1, 1], rtol=1e-6)
    np.testing.assert_allclose(np.abs(weights_NK * migration(most_K, weights_NK, 0.0)).max(0), [1, 1], rtol=1e-6)


@given(numbers, numbers, st.floats(0, 1))
def test_a_byte_is_at_most_a_step_off_and_zero_is_exact(one, other, where):
    least, greatest = min(one, other), max(one, other)
    scale, zero = affine(least, greatest)
    assert 0 <= zero <= 255
    value = least + where * (greatest - least)
    byte = min(255, max(0, round(value / scale) + zero))
    assert abs((byte - zero) * scale - value) <= scale * 1.001
    assert min(255, max(0, round(0.0 / scale) + zero)) == zero


@given(weights)
def test_a_weight_is_at_most_half_a_step_off(weights_NK):
    integers_NK, scales_N = quantized_weights(weights_NK)
    assert np.abs(integers_NK.astype(int)).max() <= LARGEST
    off_NK = np.abs(integers_NK * scales_N[:, None] - weights_NK)
    assert (off_NK <= scales_N[:, None] * 0.501).all()


@given(st.floats(0, 1e6))
def test_the_largest_magnitude_is_the_last_step(most):
    assert most / symmetric(most) <= LARGEST * 1.000001


def test_ranges_come_back_and_the_same_ones_are_the_same_bytes():
    one = Range(np.array([1, 2], np.float32), -1.0, 2.0)
    other = Range(np.array([3, 1], np.float32), -3.0, 0.5)
    data = to_bytes({"b": other, "a.b": one})
    assert data == to_bytes({"a.b": one, "b": other})
    assert digest_of(data) != digest_of(to_bytes({"a.b": other, "b": one}))
    found = from_bytes(data)
    assert list(found["a.b"].most_K) == [1, 2]
    assert (found["b"].least, found["b"].greatest) == (-3.0, 0.5)
    both = one.with_(other)
    assert (list(both.most_K), both.least, both.greatest) == ([3, 2], -3.0, 2.0)


after_a_gelu = arrays(np.float32, (3, 6), elements=st.floats(-0.125, 100, width=32))


@given(after_a_gelu)
def test_a_token_loses_no_more_than_itself_and_each_counts_alike(values_TK):
    lost_G = lost_by_bounds(values_TK)
    assert lost_G.shape == (len(BOUNDS),)
    assert (lost_G >= 0).all()
    each = [lost_by_bounds(values_TK[token : token + 1]) for token in range(3)]
    np.testing.assert_allclose(np.sum(each, axis=0), lost_G, rtol=1e-3, atol=1e-5)
    # Cut off is at most the whole; what is left is at most half a step off, and a step of the widest bound is a half.
    assert (lost_G[BOUNDS.index(128)] <= 3) or np.abs(values_TK).max() < 1


def test_one_large_output_in_a_hundred_tokens_does_not_take_the_steps_of_the_others():
    values_TK = np.random.default_rng(0).exponential(0.15, (100, 64)).astype(np.float32)
    values_TK[17, 5] = 90
    (bound,) = best_bounds({"a": lost_by_bounds(values_TK)}).values()
    assert 1 < bound < 10
    values_TK[:, 5] = 90  # but where all have it, it is what a token is
    (bound,) = best_bounds({"a": lost_by_bounds(values_TK)}).values()
    assert bound > 60


def test_layers_end_at_one_bound_unless_that_loses_much():
    random = np.random.default_rng(0)
    lost = {
        name: lost_by_bounds(random.uniform(LEAST_OF_GELU, most, (50, 64)).astype(np.float32))
        for name, most in {"a": 5.5, "b": 7.9, "c": 7.5, "d": 100}.items()
    }
    near = best_bounds({name: lost[name] for name in "abc"})
    assert len(set(near.values())) == 1
    assert 5 <= near["a"] <= 12
    far = best_bounds(lost)
    assert far["a"] < 10
    assert far["d"] > 80
    assert best_bounds({}) == {}
