"""Whether a query finds its document among all: recall@k and the mean reciprocal rank.

    summary_embedding  description_embedding     Retrieval("summary_embedding", "description_embedding")
    [1.0, 0.0]         [0.9, 0.1]                -> recall_at_1 0.5, recall_at_5 1.0, recall_at_10 1.0, mrr 0.75
    [0.6, 0.8]         [0.0, 1.0]

The document of row i belongs to the query of row i; all rows' documents are the pool. A row without one of both, or
with numbers in it that are not finite, counts as not found. Documents that are as near as the right one (copies of it)
share the mean of their ranks. Q queries of R rows, D documents, E numbers of an embedding, C queries at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap
from pipeline.metrics.columns import number_lists, row_of_values
from pipeline.metrics.counts import ratio

_AT = (1, 5, 10)
_CHUNK_BYTES = 64 << 20
_ROUNDING = 1e-5  # of a product of float32 vectors of length 1: less is no difference


@dataclass(frozen=True, slots=True)
class Retrieval(Kind):
    """Which columns hold the embeddings of queries and documents."""

    query: str
    document: str
    similarity: Literal["cosine", "dot"] = "cosine"

    main = "mrr"
    figures = ("mrr", "recall_at_1", "recall_at_5", "recall_at_10")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """No row.

        Raises JobError: a column that is not there, or of another type.
        """
        number_lists(table, self.query)
        number_lists(table, self.document)
        return {}

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """mrr, recall_at_1, recall_at_5, recall_at_10.

        Raises JobError: embeddings of different lengths.
        """
        queries_QE, has_query_R = self._embeddings(table, self.query)
        documents_DE, has_document_R = self._embeddings(table, self.document)
        if len(queries_QE) and len(documents_DE) and queries_QE.shape[1] != documents_DE.shape[1]:
            raise JobError(
                f"embeddings of {self.query!r} have {queries_QE.shape[1]} numbers and those of {self.document!r} "
                f"{documents_DE.shape[1]}: nothing is near"
            )
        both_R = has_query_R & has_document_R
        own_Q = (np.cumsum(has_document_R) - 1)[both_R]
        rank_R = np.full(len(table), np.inf)
        rank_R[both_R] = _ranks(queries_QE[both_R[has_query_R]], documents_DE, own_Q)
        found_R4 = np.stack([1 / rank_R, *(rank_R <= at for at in _AT)], 1)
        sums = bootstrap.sums({"found": found_R4, "rows": np.ones((len(table), 1))})
        found_B4 = ratio(sums["found"], sums["rows"])
        names = ("mrr", *(f"recall_at_{at}" for at in _AT))
        return Found(
            {
                name: Value(float(mean), mean_B, len(table))
                for name, mean, mean_B in zip(names, found_R4.mean(0), found_B4.T, strict=True)
            },
            {"without_prediction": int((~both_R).sum()), "documents": len(documents_DE)},
        )

    def _embeddings(self, table: pa.Table, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Those that are there, one after another, and which rows have one."""
        lists = number_lists(table, name)
        has_R = np.array(lists.is_valid())
        counts = np.bincount(row_of_values(lists), minlength=len(lists))[has_R]
        if len(counts) and (counts.min() != counts.max() or counts[0] == 0):
            raise JobError(f"column {name!r} holds lists of {counts.min()} to {counts.max()} numbers: no embeddings")
        values_QE: npt.NDArray[np.float32] = np.asarray(pc.drop_null(lists).flatten()).reshape(
            len(counts), counts[0] if len(counts) else 0
        )
        finite_Q = np.isfinite(values_QE).all(1)
        has_R[has_R] = finite_Q
        values_QE = values_QE[finite_Q]
        if self.similarity == "cosine":
            values_QE = values_QE / np.maximum(np.linalg.norm(values_QE, axis=1, keepdims=True), np.float32(1e-12))
        return values_QE, has_R


def _ranks(
    queries_QE: npt.NDArray[np.float32], documents_DE: npt.NDArray[np.float32], own_Q: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The rank of each query's own document, from 1; some queries at a time, so that memory is bounded."""
    found_Q = np.empty(len(queries_QE))
    at_once = max(1, _CHUNK_BYTES // (4 * max(1, len(documents_DE))))
    for start in range(0, len(queries_QE), at_once):
        part = slice(start, start + at_once)
        near_CD = queries_QE[part] @ documents_DE.T
        own_C1 = near_CD[np.arange(len(near_CD)), own_Q[part]][:, None]
        slack_C1 = _ROUNDING * np.maximum(np.abs(own_C1), np.float32(1))
        nearer_C = (near_CD > own_C1 + slack_C1).sum(1)
        as_near_C = (near_CD >= own_C1 - slack_C1).sum(1) - nearer_C
        found_Q[part] = 1 + nearer_C + (as_near_C - 1) / 2
    return found_Q
