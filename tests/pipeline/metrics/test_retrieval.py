import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.retrieval import Retrieval

KIND = Retrieval("query", "document")


def values(measured):
    return {name: figure.value for name, figure in measured.figures.items()}


def column(rows):
    return pa.array([None if row is None else list(map(float, row)) for row in rows], pa.list_(pa.float32()))


def table(queries, documents):
    return pa.table({"query": column(queries), "document": column(documents)})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.sampled_from(["cosine", "dot"]))
def test_the_figures_are_those_of_looking_at_all_documents(rows, seed, similarity):
    # Small whole numbers: documents are often as near as each other, and else far from it.
    queries_QE, documents_DE = np.random.default_rng(seed).integers(-2, 3, (2, rows, 3)).astype(float)
    found = values(measure(Retrieval("query", "document", similarity), table(queries_QE, documents_DE), resamples=0))
    ranks = []
    for query, own in zip(queries_QE, documents_DE, strict=True):
        lengths_D = np.maximum(np.linalg.norm(query) * np.linalg.norm(documents_DE, axis=1), 1e-9)
        near_D = documents_DE @ query / (lengths_D if similarity == "cosine" else 1)
        near = own @ query / (max(np.linalg.norm(query) * np.linalg.norm(own), 1e-9) if similarity == "cosine" else 1)
        as_near = np.isclose(near_D, near).sum()
        ranks.append(1 + ((near_D > near) & ~np.isclose(near_D, near)).sum() + (as_near - 1) / 2)
    rank_Q = np.array(ranks)
    assert found == pytest.approx(
        {"mrr": (1 / rank_Q).mean(), **{f"recall_at_{at}": (rank_Q <= at).mean() for at in (1, 5, 10)}}
    )


def test_memory_is_bounded_and_chunks_give_the_same(monkeypatch):
    queries_QE, documents_DE = np.random.default_rng(1).normal(size=(2, 50, 4))
    whole = values(measure(KIND, table(queries_QE, documents_DE)))
    monkeypatch.setattr("pipeline.metrics.retrieval._CHUNK_BYTES", 4 * 50 * 7)
    assert values(measure(KIND, table(queries_QE, documents_DE))) == whole


def test_copies_of_the_right_document_share_the_mean_of_their_ranks():
    found = values(measure(KIND, table([[1, 0]] * 3, [[2, 0]] * 3)))
    assert found == pytest.approx({"mrr": 1 / 2, "recall_at_1": 0, "recall_at_5": 1, "recall_at_10": 1})


def test_a_row_without_query_or_document_is_not_found_and_told():
    measured = measure(KIND, table([[1, 0], None, [0, 1], [1, 1]], [[1, 0], [0, 1], None, [1, 1]]))
    assert measured.figures["recall_at_1"].value == 0.5
    assert measured.figures["recall_at_1"].rows == 4
    assert measured.tables["without_prediction"] == 2
    assert measured.tables["documents"] == 3


def test_where_no_row_has_both_nothing_is_found():
    assert set(values(measure(KIND, table([None, None], [None, [1, 0]]))).values()) == {0}


def test_fixed_size_lists_with_nulls_are_embeddings():
    fixed = pa.array([[1.0, 0.0], None, [0.0, 1.0]], pa.list_(pa.float32(), 2))
    assert measure(KIND, pa.table({"query": fixed, "document": fixed})).figures["recall_at_1"].value == pytest.approx(
        2 / 3
    )


def test_an_embedding_that_is_no_number_is_not_found():
    nan = float("nan")
    measured = measure(KIND, table([[nan, 0], [0, 1], [1, 0]], [[1, 0], [nan, 1], [1, 0]]))
    assert measured.figures["recall_at_10"].value == pytest.approx(1 / 3)
    assert measured.tables["without_prediction"] == 2


def test_lengths_that_differ_are_refused():
    with pytest.raises(JobError, match=r"^embeddings of 'query' have 2 numbers and those of 'document' 3"):
        measure(KIND, table([[1, 0]], [[1, 0, 0]]))
    with pytest.raises(JobError, match=r"^column 'query' holds lists of 1 to 2 numbers: no embeddings"):
        measure(KIND, table([[1, 0], [1]], [[1, 0], [1, 0]]))
