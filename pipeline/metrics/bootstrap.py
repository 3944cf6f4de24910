"""How sure a figure is: rows are drawn again with replacement, and what is summed over rows is summed over the draws.

    right_R1 = [[1], [1], [0]]
    Bootstrap(rows=3, resamples=2).sums({"right": right_R1})   # {"right": [[2], [3]]}: rows drawn 1 1 1, 2 1 0 times
    interval([0.61, 0.58, …])                                  # (0.57, 0.64): 95% of the resamples lie between

R rows, S statistics, B resamples, U units (rows, or groups of rows that are drawn as one), C resamples at once. A
metric is a function of sums over rows (of hits, of n-grams …), so that no text is looked at twice. The percentile
bootstrap of Efron 1979 (Annals of Statistics 7); of groups: the cluster bootstrap of Field and Welsh 2007.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.libraries import library

Floats = npt.NDArray[np.float64]

COVERAGE = 0.95
_BLOCK_BYTES = 32 << 20


class Bootstrap:
    """Draws of R rows: each call of `sums` and `weights` sees the same ones, those of its seed."""

    def __init__(
        self, rows: int, seed: int = 0, resamples: int = 1000, group_R: npt.NDArray[np.int64] | None = None
    ) -> None:
        """`group_R`: the number of each row's group, 0 to G - 1; rows of one group are drawn together."""
        self.rows = rows
        self.resamples = resamples
        self._seed = seed
        self._group_R = group_R
        self._units = rows if group_R is None else int(group_R.max(initial=-1)) + 1

    def weights(self) -> Iterator[Floats]:
        """How often each row was drawn, weights_RC, for some resamples at a time."""
        for weights_UC in self._blocks():
            yield weights_UC if self._group_R is None else weights_UC[self._group_R]

    def sums(self, stats: Mapping[str, Any]) -> dict[str, Floats]:
        """For each name sums_BS: the sum of each of its statistics over the rows of each resample.

        The statistics of a name are an array of R rows and S columns, or a sparse one (`in_column`).
        """
        sparse = library("scipy.sparse")
        # Sparse even where it is not: for arrays this thin BLAS took ten times as long, its threads waiting in turn.
        stats_RS = sparse.hstack([sparse.csr_array(each_RS, dtype=np.float64) for each_RS in stats.values()], "csr")
        stats_SU = (stats_RS if self._group_R is None else self._of_groups() @ stats_RS).T.tocsr()
        blocks = [stats_SU @ weights_UC for weights_UC in self._blocks()]
        sums_BS = np.hstack([*blocks, np.empty((stats_SU.shape[0], 0))]).T
        edges = np.cumsum([each_RS.shape[1] for each_RS in stats.values()])
        return dict(zip(stats, np.split(sums_BS, edges[:-1], axis=1), strict=True))

    def _blocks(self) -> Iterator[Floats]:
        draws = np.random.default_rng(self._seed)
        units = self._units
        at_once = max(1, _BLOCK_BYTES // (8 * max(1, units)))
        for start in range(0, self.resamples, at_once):
            count = min(at_once, self.resamples - start)
            weights_CU = np.empty((count, units))
            for weights_U in weights_CU:
                weights_U[:] = np.bincount(draws.integers(0, units, units, np.int32), minlength=units)
            yield np.ascontiguousarray(weights_CU.T)

    def _of_groups(self) -> Any:
        """Which rows are of which unit, sparse."""
        return library("scipy.sparse").csr_array(
            (np.ones(self.rows), (self._group_R, np.arange(self.rows))), (self._units, self.rows)
        )


def in_column(
    column_R: npt.NDArray[np.int64],
    width: int,
    where_R: npt.NDArray[np.bool_] | None = None,
    value_R: npt.NDArray[Any] | None = None,
) -> Any:
    """A sparse array of R rows and `width` columns: 1, or the row's value, in the row's column.

    `where_R`: the rows that have one; the others are zero.
    """
    row_N = np.arange(len(column_R)) if where_R is None else np.flatnonzero(where_R)
    value_N = np.ones(len(row_N)) if value_R is None else value_R[row_N]
    return library("scipy.sparse").csr_array((value_N, (row_N, column_R[row_N])), (len(column_R), width))


def interval(resampled_B: Floats) -> tuple[float, float] | None:
    """What 95% of the resamples lie between; None where fewer than half of them have a value (NaN: it has none)."""
    found = resampled_B[np.isfinite(resampled_B)]
    if len(found) == 0 or 2 * len(found) < len(resampled_B):
        return None
    low, high = np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def intervals(resampled_BN: Floats) -> list[tuple[float, float] | None]:
    """`interval` of each of N figures."""
    return [interval(resampled_B) for resampled_B in resampled_BN.T]
