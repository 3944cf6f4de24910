"""Hits, what was said and what is gold, label by label, and F1 of them: pure.

    Counts(hits_XL=[[8, 0]], said_XL=[[10, 0]], gold_XL=[[9, 3]])
    f1_XL  -> [[0.842, 0.0]]
    macro  -> [0.421], micro -> [0.727], weighted -> [0.632]

X samples, one row of sums each; L labels. A label that a sample neither holds nor is said to hold has no F1 (NaN) and
stands in no mean, as in scikit-learn and seqeval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.metrics.bootstrap import Floats


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums over the rows of X samples."""

    hits_XL: Floats
    said_XL: Floats
    gold_XL: Floats

    def f1s(self) -> Floats:
        """Of each label."""
        return ratio(2 * self.hits_XL, self.said_XL + self.gold_XL)

    def precisions(self) -> Floats:
        """Of each label; 0 where it is never said."""
        return np.nan_to_num(ratio(self.hits_XL, self.said_XL))

    def recalls(self) -> Floats:
        """Of each label; 0 where it is never gold."""
        return np.nan_to_num(ratio(self.hits_XL, self.gold_XL))

    def macro(self) -> Floats:
        """The mean over labels; every label weighs the same."""
        f1_XL = self.f1s()
        return ratio(np.nan_to_num(f1_XL).sum(1), np.isfinite(f1_XL).sum(1))

    def weighted(self) -> Floats:
        """The mean over labels, by how often each is gold."""
        return ratio((np.nan_to_num(self.f1s()) * self.gold_XL).sum(1), self.gold_XL.sum(1))

    def micro(self) -> Floats:
        """Of all labels' counts together."""
        return ratio(2 * self.hits_XL.sum(1), self.said_XL.sum(1) + self.gold_XL.sum(1))


def per_class(
    names: Sequence[str],
    of_label: tuple[npt.NDArray[Any], ...],
    said_L: npt.NDArray[Any],
    between_L: Sequence[tuple[float, float] | None],
) -> list[dict[str, Any]]:
    """A line for each label; its F1 with an interval; `gold` and `predicted` are how often it is that.

    `of_label`: precision_L, recall_L, f1_L, gold_L, as scikit-learn gives them.
    """
    return [
        {
            "label": name,
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "f1_low": None if between is None else between[0],
            "f1_high": None if between is None else between[1],
            "gold": int(gold),
            "predicted": int(said),
        }
        for name, precision, recall, f1, gold, said, between in zip(names, *of_label, said_L, between_L, strict=True)
    ]


def ratio(above: Floats, below: Floats) -> Floats:
    """Each quotient; NaN where it would be of nothing."""
    found: Floats = np.full(np.broadcast(above, below).shape, np.nan)
    np.divide(above, below, out=found, where=below != 0)
    return found
