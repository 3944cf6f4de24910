import numpy as np
import pyarrow as pa
import pytest

from pipeline.agreement import Agreement, agreement, can_compare

VECTORS = pa.list_(pa.float32(), 2)


def vectors(*rows):
    return {"v": pa.array(rows, VECTORS)}


def test_of_vectors_it_is_the_cosine_that_99_of_100_rows_reach():
    exact = vectors(*[[1.0, 0.0]] * 200)
    found = vectors(*[[0.0, 1.0]] * 2, [1.0, 1.0], *[[3.0, 0.0]] * 197)
    told = agreement(exact, found)
    assert told is not None
    assert (told.of, told.rows) == ("cosine", 200)
    assert told.figure == pytest.approx(np.sqrt(0.5))


def test_of_few_vectors_all_must_reach_it():
    assert agreement(vectors([1.0, 0.0], [1.0, 0.0]), vectors([1.0, 0.0], [0.0, 2.0])) == Agreement("cosine", 0.0, 2)


def test_of_labels_it_is_the_share_of_rows_that_have_the_same_whatever_their_scores():
    exact = {"label": pa.array(["a", "b", "c", "d"]), "score": pa.array([0.1, 0.2, 0.3, 0.4], pa.float32())}
    found = {"label": pa.array(["a", "b", "c", "x"]), "score": pa.array([0.2, 0.3, 0.4, 0.4], pa.float32())}
    assert agreement(exact, found) == Agreement("same", 0.75, 4)


def test_entities_are_the_same_by_label_and_place():
    entities = pa.list_(pa.struct([("label", pa.string()), ("start", pa.int32()), ("score", pa.float32())]))
    exact = [[{"label": "P", "start": 3, "score": 0.5}], []]
    other = [[{"label": "P", "start": 3, "score": 0.6}], [{"label": "P", "start": 3, "score": 0.5}]]
    found = agreement({"entities": pa.array(exact, entities)}, {"entities": pa.array(other, entities)})
    assert found == Agreement("same", 0.5, 2)


def test_lists_of_scores_within_an_entity_may_differ():
    fills = pa.list_(pa.struct([("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]))
    exact = pa.array([[{"labels": ["a"], "scores": [0.5]}], [{"labels": ["a"], "scores": [0.5]}]], fills)
    found = pa.array([[{"labels": ["a"], "scores": [0.6]}], [{"labels": ["b"], "scores": [0.5]}]], fills)
    assert agreement({"fills": exact}, {"fills": found}) == Agreement("same", 0.5, 2)


def test_a_row_that_neither_has_is_not_compared_and_one_that_only_one_has_does_not_agree():
    assert agreement(vectors([1.0, 0.0], None), vectors([1.0, 0.0], None)) == Agreement("cosine", 1.0, 1)
    assert agreement(vectors([1.0, 0.0], None), vectors([1.0, 0.0], [1.0, 0.0])) == Agreement("cosine", 0.0, 2)
    assert agreement({"label": pa.array(["a", None])}, {"label": pa.array([None, None])}) is not None
    assert agreement(vectors(None), vectors(None)) is None


def test_numbers_alone_cannot_be_compared():
    score = {"score": pa.array([0.5], pa.float32())}
    assert agreement(score, score) is None
    assert not can_compare([pa.field("score", pa.float32())])
    assert can_compare([pa.field("labels", pa.list_(pa.string())), pa.field("scores", pa.list_(pa.float32()))])
    assert can_compare([pa.field("embedding", VECTORS)])


def test_people_read_what_was_compared():
    assert str(Agreement("cosine", 0.99341, 256)) == "99% of 256 rows have a cosine of at least 0.9934"
    assert str(Agreement("same", 0.996, 250)) == "99.60% of 250 rows are the same"
