"""The lists that `all_scores` and `top_k` leave: for each row labels, and a score of each.

    labels ["games", "web"], scores [0.25, 0.75]   ->  best "web", best_R 0.75; of gold "games" 0.25

R rows, V values of all lists one after another, K labels that occur in them.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.metrics.columns import number_lists, row_of_values, string_lists


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model said of each row's labels; a row without prediction has none."""

    names: pa.Array  # of the K labels, sorted
    row_V: npt.NDArray[np.int64]
    label_V: npt.NDArray[np.int64]
    score_V: npt.NDArray[np.float32]
    has_R: npt.NDArray[np.bool_]  # rows with lists, which may be empty

    @classmethod
    def of(cls, table: pa.Table, labels: str, scores: str) -> Self:
        """From two columns of lists.

        Raises JobError: a column that is not there or of another type; lists of different lengths, or with nulls in
        them.
        """
        label_lists, score_lists = string_lists(table, labels), number_lists(table, scores)
        row_V = row_of_values(label_lists)
        values, score_values = label_lists.flatten(), score_lists.flatten()
        if not np.array_equal(row_V, row_of_values(score_lists)):
            raise JobError(f"columns {labels!r} and {scores!r} differ in the lengths of their lists: a score a label")
        if values.null_count or score_values.null_count:
            raise JobError(f"columns {labels!r} and {scores!r} hold lists with nulls in them")
        names = pc.unique(values)
        names = names.take(pc.sort_indices(names))
        label_V = np.asarray(pc.index_in(values, names)).astype(np.int64)
        return cls(names, row_V, label_V, np.asarray(score_values), np.asarray(label_lists.is_valid()))

    def is_complete(self) -> bool:
        """Whether each row that has lists has a score of every label."""
        counts_R = np.bincount(self.row_V, minlength=len(self.has_R))
        return bool(len(self.names) and (counts_R[self.has_R] == len(self.names)).all())

    def best(self) -> tuple[pa.Array, npt.NDArray[np.float32]]:
        """The label of each row's highest score, the first of equal ones, and the score; null, NaN without a list."""
        score_R = np.full(len(self.has_R), np.nan, np.float32)
        label_R = np.zeros(len(self.has_R), np.int64)
        if len(self.row_V):
            starts = np.flatnonzero(np.r_[True, self.row_V[1:] != self.row_V[:-1]])
            score_R[self.row_V[starts]] = np.maximum.reduceat(self.score_V, starts)
            top_T = np.flatnonzero(self.score_V == score_R[self.row_V])[::-1]
            label_R[self.row_V[top_T]] = self.label_V[top_T]  # of a row's equal ones the first is written last
        return self.names.take(pa.array(label_R, mask=np.isnan(score_R))), score_R

    def of_label(self, label_R: pa.Array) -> npt.NDArray[np.float32]:
        """The score of one label of each row: 0 where the list lacks it, NaN without a list."""
        wanted_R = np.asarray(pc.fill_null(pc.index_in(label_R, self.names), -1))
        found_R = np.where(self.has_R, np.float32(0), np.float32(np.nan))
        is_it_V = self.label_V == wanted_R[self.row_V]
        found_R[self.row_V[is_it_V]] = self.score_V[is_it_V]
        return found_R

    def matrix(self, names: pa.Array) -> npt.NDArray[np.float32]:
        """The score of each of these L labels: 0 where a list lacks it, NaN for a row without a list."""
        place_K = np.asarray(pc.fill_null(pc.index_in(self.names, names), len(names))).astype(np.int64)
        found_RL = np.full((len(self.has_R), len(names) + 1), np.nan, np.float32)
        found_RL[self.has_R] = 0
        found_RL[self.row_V, place_K[self.label_V]] = self.score_V
        return found_RL[:, :-1]
