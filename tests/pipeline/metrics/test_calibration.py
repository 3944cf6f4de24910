import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import calibration

judgements = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60)


def test_a_bound_belongs_to_the_bin_below_it_in_float32_as_in_float64():
    bounds = [each / 15 for each in range(16)]
    for kind in (np.float32, np.float64):
        assert calibration.bins(np.array(bounds, kind)).tolist() == [0, *range(15)]


@settings(max_examples=60, deadline=None)
@given(judgements)
def test_the_error_of_the_bins_is_that_of_the_definition(rows):
    probabilities_N = np.array([probability for probability, _ in rows], np.float32)
    right_N = np.array([right for _, right in rows])
    error = 0.0
    for low in range(15):
        in_bin_N = (probabilities_N > np.float32(low / 15)) & (probabilities_N <= np.float32((low + 1) / 15))
        in_bin_N |= (probabilities_N == 0) & (low == 0)
        if in_bin_N.any():
            error += in_bin_N.mean() * abs(right_N[in_bin_N].mean() - probabilities_N[in_bin_N].mean(dtype=float))
    bins = calibration.reliability(probabilities_N, right_N)
    assert calibration.error_of(bins) == pytest.approx(error, abs=1e-6)
    assert sum(each["rows"] for each in bins) == len(rows)
    gaps_K = np.bincount(calibration.bins(probabilities_N), right_N - probabilities_N, calibration.BINS).astype(float)
    assert calibration.error(gaps_K[None], np.array([float(len(rows))])) == pytest.approx([error], abs=1e-6)


def test_resamples_are_moved_onto_the_value_and_never_below_nothing():
    assert calibration.centred(np.array([0.3, 0.5, np.nan]), 0.2)[:2] == pytest.approx([0.1, 0.3])
    assert calibration.centred(np.array([0.0, 0.6]), 0.2).tolist() == pytest.approx([0, 0.5])
