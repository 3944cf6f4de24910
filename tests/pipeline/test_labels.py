import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.labels import BEST_FIELDS, LIST_FIELDS, best, every, ranked

LABELS = ["games", "web", "math"]
SCORES_RL = np.array([[0.25, 0.5, 0.25], [np.nan, np.nan, np.nan], [0.5, 0.0, 0.5]], np.float32)
GOOD_R = np.array([True, False, True])


def lists(columns):
    return {name: column.to_pylist() for name, column in columns.items()}


def test_the_best_label_and_of_equals_the_first():
    assert lists(best(SCORES_RL, LABELS, GOOD_R)) == {"label": ["web", None, "games"], "score": [0.5, None, 0.5]}


def test_below_the_bound_the_label_is_null_and_the_score_stays():
    assert lists(best(SCORES_RL[[0]], LABELS, GOOD_R[[0]], at_least=0.6)) == {"label": [None], "score": [0.5]}


def test_the_k_best_in_falling_order_and_of_equals_the_first():
    assert lists(ranked(SCORES_RL, LABELS, GOOD_R, most=2)) == {
        "labels": [["web", "games"], None, ["games", "math"]],
        "scores": [[0.5, 0.25], None, [0.5, 0.5]],
    }


def test_all_above_a_bound_perhaps_none():
    assert lists(ranked(SCORES_RL, LABELS, GOOD_R, at_least=0.5)) == {
        "labels": [["web"], None, ["games", "math"]],
        "scores": [[0.5], None, [0.5, 0.5]],
    }
    assert lists(ranked(SCORES_RL, LABELS, GOOD_R, at_least=0.9))["labels"] == [[], None, []]


def test_every_label_in_its_own_order():
    assert lists(every(SCORES_RL, LABELS, GOOD_R)) == {
        "labels": [LABELS, None, LABELS],
        "scores": [[0.25, 0.5, 0.25], None, [0.5, 0.0, 0.5]],
    }


def test_no_rows_give_empty_columns_of_the_right_types():
    none, good = np.empty((0, 3), np.float32), np.empty(0, np.bool_)
    for fields, columns in [
        (BEST_FIELDS, best(none, LABELS, good)),
        (LIST_FIELDS, ranked(none, LABELS, good)),
        (LIST_FIELDS, every(none, LABELS, good)),
    ]:
        assert [pa.field(name, column.type) for name, column in columns.items()] == list(fields)
        assert all(len(column) == 0 for column in columns.values())


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (7, 3), elements=st.floats(0, 1, width=32)), arrays(np.bool_, 7), st.integers(1, 3))
def test_the_first_of_the_ranked_is_the_best(scores_RL, good_R, most):
    columns = ranked(scores_RL, LABELS, good_R, most=most)
    assert [found and found[0] for found in columns["labels"].to_pylist()] == best(scores_RL, LABELS, good_R)[
        "label"
    ].to_pylist()
    for row, scores in enumerate(columns["scores"].to_pylist()):
        assert scores is None if not good_R[row] else scores == sorted(scores_RL[row].tolist(), reverse=True)[:most]
