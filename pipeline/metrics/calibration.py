"""Whether a score of 0.8 is right in 8 cases of 10: pure.

    probabilities [0.95, 0.91, 0.62], right [1, 1, 0], 15 bins
    -> ece 0.253: |1 - 0.93| * 2/3 + |0 - 0.62| * 1/3
       bins [{"low": 0.6, "high": 0.667, "rows": 1, "confidence": 0.62, "right": 0.0}, …]

Expected calibration error in bins of equal width (Guo et al. 2017, arXiv:1706.04599). N judgements, K bins.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.bootstrap import Floats

BINS = 15


def bins(probabilities_N: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each probability; a bin holds its upper bound, the first one 0 too."""
    # A float32 that stands for a bound is seldom that bound in float64; it is by its own bounds that it is judged.
    bounds = np.linspace(0, 1, BINS + 1).astype(probabilities_N.dtype)
    found: npt.NDArray[np.int64] = np.searchsorted(bounds[1:-1], probabilities_N, side="left")
    return found


def error(gaps_XK: Floats, judged_X: Floats) -> Floats:
    """The error of each of X samples, from the sums of right - probability in each bin; NaN where nothing is judged."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.abs(gaps_XK).sum(-1) / judged_X
    return found


def centred(resampled_B: Floats, value: float) -> Floats:
    """Resamples moved so that their mean is the value: an error of absolute gaps grows with every resample's noise."""
    known = resampled_B[np.isfinite(resampled_B)]
    return resampled_B if len(known) == 0 else np.maximum(resampled_B - (known.mean() - value), 0)


def error_of(bins: list[dict[str, Any]]) -> float:
    """The error that bins of `reliability` come to."""
    rows = sum(each["rows"] for each in bins)
    return float(sum(each["rows"] * abs(each["right"] - each["confidence"]) for each in bins) / rows)


def reliability(probabilities_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Each bin that holds something: its bounds, how many, their mean probability, the share that is right."""
    bin_N = bins(probabilities_N)
    rows_K = np.bincount(bin_N, minlength=BINS)
    confidence_K = np.bincount(bin_N, probabilities_N, BINS)
    right_K = np.bincount(bin_N, right_N, BINS)
    return [
        {
            "low": each / BINS,
            "high": (each + 1) / BINS,
            "rows": int(rows_K[each]),
            "confidence": float(confidence_K[each] / rows_K[each]),
            "right": float(right_K[each] / rows_K[each]),
        }
        for each in np.flatnonzero(rows_K)
    ]
