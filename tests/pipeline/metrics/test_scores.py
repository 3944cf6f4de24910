import numpy as np
import pyarrow as pa

from pipeline.metrics.scores import Scores


def scores(labels, values):
    return Scores.of(
        pa.table(
            {"labels": pa.array(labels, pa.list_(pa.string())), "scores": pa.array(values, pa.list_(pa.float32()))}
        ),
        "labels",
        "scores",
    )


def test_the_best_is_the_first_of_the_highest_and_null_where_nothing_is_said():
    names, score_R = scores(
        [["web", "games"], ["math", "web"], [], None, ["web"]], [[0.5, 0.5], [0.2, 0.8], [], None, [0.0]]
    ).best()
    assert names.to_pylist() == ["web", "web", None, None, "web"]
    np.testing.assert_array_equal(score_R, np.array([0.5, 0.8, np.nan, np.nan, 0.0], np.float32))


def test_lists_are_complete_where_each_row_that_has_them_has_every_label():
    assert scores([["a", "b"], None, ["b", "a"]], [[0.1, 0.9], None, [0.5, 0.5]]).is_complete()
    assert not scores([["a", "b"], ["b"]], [[0.1, 0.9], [0.5]]).is_complete()
    assert not scores([["a"], []], [[0.9], []]).is_complete()  # what a threshold leaves of one label
    assert not scores([None], [None]).is_complete()


def test_the_score_of_a_label_is_found_wherever_it_stands():
    found = scores([["a", "b"], ["b", "a"], ["b"], [], None], [[0.25, 0.75], [0.5, 0.5], [1.0], [], None])
    np.testing.assert_array_equal(found.of_label(pa.array(["a", "c", "a", "a", "a"])), [0.25, 0, 0, 0, np.nan])
    np.testing.assert_array_equal(
        found.matrix(pa.array(["b", "zoo", "a"])),
        np.array([[0.75, 0, 0.25], [0.5, 0, 0.5], [1, 0, 0], [0, 0, 0], [np.nan] * 3], np.float32),
    )


def test_rows_that_a_slice_leaves_out_are_not_read():
    whole = pa.table(
        {
            "labels": pa.array([["x"], ["a", "b"], ["b"]], pa.list_(pa.string())),
            "scores": pa.array([[0.1], [0.2, 0.8], [0.6]], pa.list_(pa.float32())),
        }
    )
    assert Scores.of(whole.slice(1), "labels", "scores").best()[0].to_pylist() == ["b", "b"]
