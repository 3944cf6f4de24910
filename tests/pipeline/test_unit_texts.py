"""What was said of the distinct texts, of all that have them."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation
from pipeline.unit_texts import of_all

WHICH_R = [0, 1, 0, 2, 1]
FAILED = Failure(Reason.MODEL_FAILED, "no answer")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int8(), 2)),
        pa.array([[1.0, None], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float16(), 2)),
        pa.array([[True], [False], [True]], pa.list_(pa.bool_(), 1)),
        pa.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)).slice(1),
        pa.array(["a", None, "c"]),
        pa.array([["a"], [], ["b", "c"]]),
    ],
)
def test_each_row_has_what_was_said_of_its_text(column: pa.Array) -> None:
    said = Annotation({"of": column}, np.array([3, 4, 5], np.int32), np.array([False, True, False]), {1: FAILED})
    found = of_all(said, WHICH_R)
    assert found.columns["of"].type == column.type
    assert found.columns["of"].to_pylist() == [column[which].as_py() for which in WHICH_R]
    assert found.tokens_R.tolist() == [3, 4, 3, 5, 4]
    assert found.truncated_R.tolist() == [False, True, False, False, True]
    assert found.failures == {1: FAILED, 4: FAILED}


def test_where_no_text_comes_again_nothing_is_copied() -> None:
    said = Annotation({"of": pa.array(["a", "b"])}, np.array([3, 4], np.int32), np.array([False, True]), {})
    assert of_all(said, [0, 1]) is said
