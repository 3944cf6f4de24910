import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.models.ranges import (
    LARGEST,
    Range,
    affine,
    digest_of,
    from_bytes,
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
