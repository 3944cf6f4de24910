"""How sure a figure is: rows are drawn again with replacement, and what is summed over rows is summed over the draws.

    stats_RS = [[1, 0], [1, 1], [0, 1]]              # say: right, and said "games"
    Bootstrap(rows=3, resamples=2).sums(stats_RS)    # [[2, 1], [3, 2]]: of rows 0, 1, 2, drawn 1 1 0 and 2 1 0 times
    interval([0.61, 0.58, …])                        # (0.57, 0.64): 95% of the resamples lie between

R rows, S statistics, B resamples, U units (rows, or groups of rows that are drawn as one), C resamples at once. A
metric is a function of sums over rows (of hits, of n-grams …), so that no text is looked at twice. The percentile
bootstrap of Efron 1979 (Annals of Statistics 7); of groups: the cluster bootstrap of Field and Welsh 2007.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.libraries import library

Floats = npt.NDArray[np.float64]

_COVERAGE = 0.95
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

    def sums(self, stats_RS: Any) -> Floats:
        """sums_BS: the sum of each statistic over the rows of each resample; `stats_RS` is an array or scipy-sparse."""
        stats_SU = (stats_RS if self._group_R is None else self._of_groups() @ stats_RS).T
        if not isinstance(stats_SU, np.ndarray):
            stats_SU = stats_SU.tocsr()
        blocks = [stats_SU @ weights_UC for weights_UC in self._blocks()]
        sums_BS: Floats = np.hstack([*blocks, np.empty((stats_SU.shape[0], 0))]).T
        return sums_BS

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
        return library("scipy.sparse").csr_array((np.ones(self.rows), (self._group_R, np.arange(self.rows))), (self._units, self.rows))


def interval(resampled_B: Floats) -> tuple[float, float] | None:
    """What 95% of the resamples lie between; None where fewer than half of them have a value (NaN: it has none)."""
    found = resampled_B[np.isfinite(resampled_B)]
    if len(found) == 0 or 2 * len(found) < len(resampled_B):
        return None
    low, high = np.quantile(found, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return float(low), float(high)


def intervals(resampled_BN: Floats) -> list[tuple[float, float] | None]:
    """`interval` of each of N figures."""
    return [interval(resampled_B) for resampled_B in resampled_BN.T]
