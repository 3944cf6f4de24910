import datetime as dt

import pyarrow as pa
import pytest

from pipeline.corpus.rows import contradicting_rows


@pytest.mark.parametrize(
    ("values", "path", "contradicting"),
    [
        (pa.array(["a", "b", None]), "a", [1]),
        (pa.array(["a", "b"], pa.string_view()), "a", [1]),
        (pa.array(["a", "b"]).dictionary_encode(), "a", [1]),
        (pa.array([1, 2, None], pa.int8()), "1", [1]),
        (pa.array([1.0, 1.5]), "1", [1]),
        (pa.array([True, False]), "true", [1]),
        (pa.array([dt.date(2024, 1, 2), dt.date(2024, 1, 3)]), "2024-01-02", [1]),
        (pa.array([1, None]), "x", [0]),
        (pa.array(["a", None]), None, [0]),
    ],
    ids=str,
)
def test_a_row_contradicts_its_path_where_it_has_another_value(values, path, contradicting):
    assert contradicting_rows(pa.chunked_array([values]), path) == contradicting
