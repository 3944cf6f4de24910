"""Scores become label columns: pure.

    scores_RL = [[0.1, 0.7, 0.2]], labels = ["games", "web", "math"]
    best   -> labels ["web"], scores [0.7]
    ranked(most=2) -> labels [["web", "math"]], scores [[0.7, 0.2]]
    every  -> labels [["games", "web", "math"]], scores [[0.1, 0.7, 0.2]]

R rows, L labels. A row that is not in `good_R` becomes null. Of equal scores the label that stands first goes first.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.bool_]

BEST_FIELDS: tuple[pa.Field, ...] = (pa.field("label", pa.string()), pa.field("score", pa.float32()))
LIST_FIELDS: tuple[pa.Field, ...] = (
    pa.field("labels", pa.list_(pa.string())),
    pa.field("scores", pa.list_(pa.float32())),
)


def best(
    scores_RL: Scores, labels: Sequence[str], good_R: Rows, at_least: float | None = None
) -> Mapping[str, pa.Array]:
    """The label with the highest score; null where that is below `at_least`, its score stays."""
    top_R = np.where(good_R[:, None], scores_RL, 0).argmax(1)
    score_R = scores_RL[np.arange(len(scores_RL)), top_R]
    named_R = good_R if at_least is None else good_R & (score_R >= np.float32(at_least))
    return {
        "label": pa.array(labels, pa.string()).take(pa.array(top_R, mask=~named_R)),
        "score": pa.array(score_R, pa.float32(), mask=~good_R),
    }


def ranked(
    scores_RL: Scores,
    labels: Sequence[str],
    good_R: Rows,
    most: int | None = None,
    at_least: float | None = None,
) -> Mapping[str, pa.Array]:
    """Labels by falling score: `most` of them, and only those with `at_least` that score; perhaps none."""
    order_RL = np.argsort(-scores_RL, axis=1, kind="stable")
    kept_RL = np.broadcast_to(good_R[:, None], order_RL.shape).copy()
    if most is not None:
        kept_RL[:, most:] = False
    if at_least is not None:
        kept_RL &= np.take_along_axis(scores_RL, order_RL, axis=1) >= np.float32(at_least)
    return _lists(scores_RL, labels, good_R, order_RL, kept_RL)


def every(scores_RL: Scores, labels: Sequence[str], good_R: Rows) -> Mapping[str, pa.Array]:
    """All labels in their own order."""
    order_RL = np.broadcast_to(np.arange(len(labels)), scores_RL.shape)
    return _lists(scores_RL, labels, good_R, order_RL, np.broadcast_to(good_R[:, None], scores_RL.shape))


def _lists(
    scores_RL: Scores, labels: Sequence[str], good_R: Rows, order_RL: npt.NDArray[np.intp], kept_RL: Rows
) -> Mapping[str, pa.Array]:
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept_RL.sum(1))]), pa.int32())
    found = {
        "labels": pa.array(labels, pa.string()).take(pa.array(order_RL[kept_RL])),
        "scores": pa.array(np.take_along_axis(scores_RL, order_RL, axis=1)[kept_RL], pa.float32()),
    }
    null_R = pa.array(~good_R)
    return {
        each.name: pa.ListArray.from_arrays(offsets, found[each.name], type=each.type, mask=null_R)
        for each in LIST_FIELDS
    }
