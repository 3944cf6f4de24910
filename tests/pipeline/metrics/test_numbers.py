import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.numbers import Numbers

sklearn = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

KIND = Numbers("gold", "said")
# Tenths, so that numbers are often equal: ranks of equal ones are what is easily got wrong.
tenths = st.integers(-30, 30).map(lambda value: value / 10)


def theirs(gold_R, said_R):
    mse = sklearn.mean_squared_error(gold_R, said_R)
    found = {"mse": mse, "rmse": mse**0.5, "mae": sklearn.mean_absolute_error(gold_R, said_R)}
    if np.ptp(gold_R) > 0:
        found["r2"] = sklearn.r2_score(gold_R, said_R)
    if np.ptp(gold_R) > 0 and np.ptp(said_R) > 0:
        found["pearson"] = stats.pearsonr(gold_R, said_R)[0]
        found["spearman"] = stats.spearmanr(gold_R, said_R)[0]
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(tenths, tenths), min_size=3, max_size=30), st.sampled_from([0.0, 1e5]))
def test_figures_and_resamples_are_those_of_the_libraries(rows, far_away):
    gold_R, said_R = np.array(rows).T + far_away
    assume(np.ptp(gold_R) > 0 and np.ptp(said_R) > 0)
    measured = measure(KIND, pa.table({"gold": gold_R, "said": said_R}), seed=2, resamples=6)
    assert {name: figure.value for name, figure in measured.figures.items()} == pytest.approx(theirs(gold_R, said_R))
    weights_RB = np.hstack(list(Bootstrap(len(rows), 2, 6).weights()))
    for each, weights_R in enumerate(weights_RB.T):
        drawn = np.repeat(np.arange(len(rows)), weights_R.astype(int))
        known = theirs(gold_R[drawn], said_R[drawn])
        for name, values_B in measured.resampled.items():
            expected = known.get(name, np.nan)
            assert values_B[each] == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_rows_without_a_finite_number_are_left_out_and_told():
    table = pa.table({"gold": [1.0, None, 3.0, 4.0, 2.0], "said": [1.0, 2.0, None, float("inf"), 3.0]})
    measured = measure(KIND, table)
    assert measured.figures["mae"].value == 0.5
    assert measured.tables["left_out"] == {"gold is null or not finite": 1, "said is null or not finite": 2}


def test_whole_numbers_and_float32_are_numbers():
    table = pa.table({"gold": [1, 2, 4], "said": pa.array([1, 2, 3], pa.float32())})
    assert measure(KIND, table).figures["mse"].value == pytest.approx(1 / 3)


def test_one_row_has_an_error_and_no_correlation():
    measured = measure(KIND, pa.table({"gold": [1.0], "said": [3.0]}))
    assert {name: figure.value for name, figure in measured.figures.items()} == {"rmse": 2, "mae": 2, "mse": 4}


def test_texts_are_no_numbers():
    with pytest.raises(JobError, match=r"^column 'said' holds string, and numbers are measured$"):
        measure(KIND, pa.table({"gold": [1.0], "said": ["3"]}))
