"""A number for each row beside the right one: errors and correlations.

    rating  stars_score      Numbers(gold="rating", predicted="stars_score")
    4.0     3.7              -> rmse 0.36, mae 0.35, mse 0.13, pearson 1.0, spearman 1.0, r2 0.77
    2.5     2.9

Rows where one of both is null or not finite cannot be judged: they are left out, and told. A correlation, and r2, with
numbers that are all the same have no value. R rows, C resamples at once, B in all.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap, Floats
from pipeline.metrics.columns import numbers
from pipeline.metrics.counts import ratio
from pipeline.metrics.libraries import library

_NO_SPREAD = 1e-12  # of the mean square: less is rounding, not variance


@dataclass(frozen=True, slots=True)
class Numbers(Kind):
    """Which columns hold the right number and the predicted one."""

    gold: str
    predicted: str

    main = "rmse"
    figures = ("rmse", "mae", "mse", "r2", "pearson", "spearman")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without a finite number on either side.

        Raises JobError: a column that is not there, or of another type.
        """
        return {
            f"{name} is null or not finite": ~np.isfinite(numbers(table, name)) for name in (self.gold, self.predicted)
        }

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """rmse, mae, mse, pearson, spearman, r2."""
        gold_R, said_R = numbers(table, self.gold), numbers(table, self.predicted)
        rows = len(gold_R)
        # Centred and of one scale, squares of large numbers keep their digits.
        x_R, y_R = _standard(gold_R), _standard(said_R)
        stats_R8 = np.stack([np.ones(rows), x_R, y_R, x_R**2, y_R**2, x_R * y_R, (said_R - gold_R) ** 2], 1)
        sums_B8 = bootstrap.sums({"moments": stats_R8, "absolute": np.abs(said_R - gold_R)[:, None]})
        moments_B7, absolute_B = sums_B8["moments"], sums_B8["absolute"][:, 0]
        rows_B = moments_B7[:, 0]
        mse_B = ratio(moments_B7[:, 6], rows_B)

        metrics = library("sklearn.metrics")
        mse = float(metrics.mean_squared_error(gold_R, said_R))
        values = {
            "rmse": Value(mse**0.5, mse_B**0.5, rows),
            "mae": Value(float(metrics.mean_absolute_error(gold_R, said_R)), ratio(absolute_B, rows_B), rows),
            "mse": Value(mse, mse_B, rows),
        }
        if np.ptp(gold_R) > 0:
            spread_B = _spread(moments_B7[:, 3], moments_B7[:, 1], rows_B) * gold_R.var()
            values["r2"] = Value(float(metrics.r2_score(gold_R, said_R)), 1 - ratio(moments_B7[:, 6], spread_B), rows)
        if np.ptp(gold_R) > 0 and np.ptp(said_R) > 0:
            stats = library("scipy.stats")
            values["pearson"] = Value(float(stats.pearsonr(gold_R, said_R)[0]), _pearson(moments_B7[:, :6]), rows)
            spearman_B = _spearman(gold_R, said_R, bootstrap)
            values["spearman"] = Value(float(stats.spearmanr(gold_R, said_R)[0]), spearman_B, rows)
        return Found(values)


def _standard(values_R: Floats) -> Floats:
    centred_R = values_R - values_R.mean()
    scale = centred_R.std()
    scaled_R: Floats = centred_R / scale if scale > 0 else centred_R
    return scaled_R


def _spread(squares_B: Floats, sums_B: Floats, rows_B: Floats) -> Floats:
    """Sums of squares around the mean of each resample; 0 where all its numbers are one."""
    around_B = squares_B - sums_B**2 / np.maximum(rows_B, 1)
    return np.where(around_B > _NO_SPREAD * rows_B, around_B, 0)


def _pearson(moments_B6: Floats) -> Floats:
    """Of each resample, from its sums of 1, x, y, x², y², xy."""
    rows_B, x_B, y_B, xx_B, yy_B, xy_B = moments_B6.T
    together_B = xy_B - x_B * y_B / np.maximum(rows_B, 1)
    return ratio(together_B, np.sqrt(_spread(xx_B, x_B, rows_B) * _spread(yy_B, y_B, rows_B)))


def _spearman(gold_R: Floats, said_R: Floats, bootstrap: Bootstrap) -> Floats:
    """Of each resample, of the ranks that its rows have in it."""
    ranked = [_Ranked.of(gold_R), _Ranked.of(said_R)]
    found = [np.empty(0)]
    for weights_RC in bootstrap.weights():
        x_RC, y_RC = (each.ranks(weights_RC) for each in ranked)
        moments = (weights_RC, weights_RC * x_RC, weights_RC * y_RC)
        squares = (moments[1] * x_RC, moments[2] * y_RC, moments[1] * y_RC)
        found.append(_pearson(np.stack([each_RC.sum(0) for each_RC in (*moments, *squares)], 1)))
    return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Where each of R numbers stands among D different ones."""

    place_R: npt.NDArray[np.int64]
    by_place: Any  # places_DR, sparse

    @classmethod
    def of(cls, values_R: Floats) -> "_Ranked":
        different, place_R = np.unique(values_R, return_inverse=True)
        rows = len(values_R)
        by_place = library("scipy.sparse").csr_array(
            (np.ones(rows), (place_R, np.arange(rows))), (len(different), rows)
        )
        return cls(place_R, by_place)

    def ranks(self, weights_RC: Floats) -> Floats:
        """ranks_RC: the mean rank of equal numbers in each resample, from -1 (lowest) to 1."""
        drawn_DC = self.by_place @ weights_RC
        ranks_DC = np.cumsum(drawn_DC, 0) - (drawn_DC - 1) / 2
        scaled_RC: Floats = (2 * ranks_DC / weights_RC.sum(0) - 1)[self.place_R]
        return scaled_RC
