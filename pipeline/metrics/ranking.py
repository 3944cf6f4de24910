"""Whether what is right has the higher scores: the area under the ROC curve, and how sure it is: pure.

    scores [0.9, 0.6, 0.4], right [1, 0, 1]   ->  area 0.5; placements [1.0, 0.5, 0.0]

The area is the share of pairs of a right and a wrong one in which the right one scores higher, equal scores counting
half. A placement is one judgement's part in it: the share of the other side that stands where it should (DeLong et al.
1988, Biometrics 44); the area is the mean of the right ones' placements, and of the wrong ones' too. N judgements: R
rows with a score of each of L labels; K bins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics import calibration
from pipeline.metrics.base import Value
from pipeline.metrics.bootstrap import Bootstrap, Floats
from pipeline.metrics.counts import ratio
from pipeline.metrics.libraries import library


@dataclass(frozen=True, slots=True)
class Judged:
    """What scores of all labels give, each label of each row a judgement of its own."""

    values: Mapping[str, Value]  # macro_auc and micro_auc, where both sides are there, and ece
    areas: list[float | None]  # of each label; None: all rows have it, or none has
    bins: list[dict[str, Any]]  # of calibration.reliability


def placements(scores_N: npt.NDArray[np.floating], right_N: npt.NDArray[np.bool_]) -> Floats:
    """For each right one the share of the wrong ones below it; for each wrong one that of the right ones above it."""
    found_N = np.full(len(scores_N), np.nan)
    for side_N, sign in ((right_N, 1), (~right_N, -1)):
        others = np.sort(sign * scores_N[~side_N])
        own = sign * scores_N[side_N]
        if len(others):
            below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
            found_N[side_N] = below / (2 * len(others))
    return found_N


def resampled_areas(area: Floats | float, right: Floats, rights: Floats, wrong: Floats, wrongs: Floats) -> Floats:
    """The areas of resamples to first order, from sums of placements: of the right ones and of the wrong ones, with how
    many they are; NaN where a resample has none of one side.

    Pairs of drawn rows are not looked at again: the error is of the order of one pair's weight.
    """
    return np.clip(ratio(right, rights) + ratio(wrong, wrongs) - area, 0, 1)


def of_scores(
    gold_RL: npt.NDArray[np.bool_],
    scores_RL: npt.NDArray[np.float32],
    judged_R: npt.NDArray[np.bool_],
    bootstrap: Bootstrap,
) -> Judged:
    """AUC, the mean over labels and of all judgements together, and calibration.

    Rows that are not in `judged_R` have no scores and are not judged.
    """
    rows, count = int(judged_R.sum()), gold_RL.shape[1]
    gold_RL, scores_RL = gold_RL & judged_R[:, None], np.where(judged_R[:, None], scores_RL, 0)
    wrong_RL = ~gold_RL & judged_R[:, None]
    sides_L = np.flatnonzero(gold_RL.any(0) & wrong_RL.any(0))
    roc_auc = library("sklearn.metrics").roc_auc_score
    area_by_label = {
        label: float(roc_auc(gold_RL[judged_R, label], scores_RL[judged_R, label])) for label in sides_L.tolist()
    }
    if not rows or not count:
        return Judged({}, [None] * count, [])

    placed_RL = np.zeros((len(judged_R), len(sides_L)))
    for place, label in enumerate(sides_L):
        placed_RL[judged_R, place] = placements(scores_RL[judged_R, label], gold_RL[judged_R, label])
    all_N, gold_N = scores_RL[judged_R].reshape(-1), gold_RL[judged_R].reshape(-1)
    together_RL = np.zeros(gold_RL.shape)
    together_RL[judged_R] = np.nan_to_num(placements(all_N, gold_N)).reshape(rows, count)
    bin_RL = calibration.bins(scores_RL)
    gap_RL = np.where(judged_R[:, None], gold_RL - scores_RL, 0)
    gap_RK = np.stack([np.where(bin_RL == each, gap_RL, 0).sum(1) for each in range(calibration.BINS)], 1)
    sums = bootstrap.sums(
        {
            "right": np.where(gold_RL[:, sides_L], placed_RL, 0),
            "wrong": np.where(wrong_RL[:, sides_L], placed_RL, 0),
            "rights": gold_RL[:, sides_L],
            "judged": judged_R[:, None],
            "right_of_all": np.where(gold_RL, together_RL, 0).sum(1)[:, None],
            "wrong_of_all": np.where(wrong_RL, together_RL, 0).sum(1)[:, None],
            "rights_of_all": gold_RL.sum(1)[:, None],
            "gaps": gap_RK,
        }
    )
    judged_B1 = sums["judged"]
    bins = calibration.reliability(all_N, gold_N)
    ece = calibration.error_of(bins)
    ece_B = calibration.error(sums["gaps"], judged_B1[:, 0] * count)
    values = {"ece": Value(ece, calibration.centred(ece_B, ece), rows)}
    if area_by_label:
        areas_L = np.array(list(area_by_label.values()))
        areas_BL = resampled_areas(areas_L, sums["right"], sums["rights"], sums["wrong"], judged_B1 - sums["rights"])
        known_BL = np.isfinite(areas_BL)
        macro_B = ratio(np.where(known_BL, areas_BL, 0).sum(1), known_BL.sum(1))
        values["macro_auc"] = Value(float(areas_L.mean()), macro_B, rows)
        rights_B1 = sums["rights_of_all"]
        area = float(roc_auc(gold_N, all_N))
        micro_B1 = resampled_areas(
            area, sums["right_of_all"], rights_B1, sums["wrong_of_all"], judged_B1 * count - rights_B1
        )
        values["micro_auc"] = Value(area, micro_B1[:, 0], rows)
    return Judged(values, [area_by_label.get(label) for label in range(count)], bins)
