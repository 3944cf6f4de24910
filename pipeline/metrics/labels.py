"""One label for each row: accuracy, F1, confusion, calibration.

    section    topic_label  topic_score      Labels(gold="section", predicted="topic_label", score="topic_score")
    games      games        0.93             -> accuracy 0.5, macro_f1 0.33, ece 0.37 …
    web        games        0.67             -> confusion {"labels": ["games", "web"], "counts": [[1, 0], [1, 0]], …}

With the lists of `all_scores` in place of label and score the prediction is the label of the highest score, and
log_loss is there too. A row without prediction counts as wrong. Macro and weighted F1 are over all labels that occur in
gold or prediction, as scikit-learn has it. R rows, L labels, K bins, B resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.metrics import calibration
from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap, in_column, intervals
from pipeline.metrics.columns import nulls, numbers, strings
from pipeline.metrics.counts import Counts, per_class, ratio
from pipeline.metrics.libraries import library
from pipeline.metrics.scores import Scores

_MATRIX_LABELS = 200  # with more, a matrix is too large to read and to keep
_CONFUSIONS = 50
_AVERAGES = ("macro", "micro", "weighted")
_ROUNDING = 1e-3  # the mean of windows' scores in float32 may be a little more than 1
_LEAST_PROBABILITY = np.finfo(np.float32).eps  # as scikit-learn clips scores in float32


@dataclass(frozen=True, slots=True)
class Labels(Kind):
    """Which columns hold gold and prediction: `predicted` (and its `score`), or the lists `labels` and `scores`."""

    gold: str
    predicted: str | None = None
    score: str | None = None  # of the predicted label, 0 to 1: gives ece
    labels: str | None = None
    scores: str | None = None
    known: tuple[str, ...] | None = None  # what the model can say; default: what the lists hold, where they hold all

    main = "accuracy"
    figures = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "ece", "log_loss")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without gold.

        Raises JobError: neither a prediction nor both lists are named; a column that is not there, or of another type.
        """
        self._read(table)
        return {f"{self.gold} is null": nulls(table, self.gold)}

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """accuracy, macro_f1, micro_f1, weighted_f1; with scores ece, with all of them log_loss."""
        read = self._read(table)
        coded = _coded(read.gold, read.predicted)
        rows, count = len(coded.gold_R), len(coded.names)
        scored_R = np.isfinite(read.score_R) & (coded.predicted_R < count)
        loss_R = read.losses()
        known_R = np.isfinite(loss_R)
        sums = bootstrap.sums(
            {
                "hits": in_column(coded.gold_R, count, coded.right_R),
                "said": in_column(coded.predicted_R, count, coded.predicted_R < count),
                "gold": in_column(coded.gold_R, count),
                "gaps": in_column(
                    calibration.bins(read.score_R), calibration.BINS, scored_R, coded.right_R - read.score_R
                ),
                "scored": scored_R[:, None],
                "losses": np.where(known_R, loss_R, 0)[:, None],
                "known": known_R[:, None],
            }
        )
        counts = Counts(sums["hits"], sums["said"], sums["gold"])
        rows_B = counts.gold_XL.sum(1)

        metrics = library("sklearn.metrics")
        every = {"labels": np.arange(count), "zero_division": 0}
        f1 = {name: metrics.f1_score(coded.gold_R, coded.predicted_R, average=name, **every) for name in _AVERAGES}
        values = {
            "accuracy": Value(
                metrics.accuracy_score(coded.gold_R, coded.predicted_R), counts.hits_XL.sum(1) / rows_B, rows
            ),
            "macro_f1": Value(f1["macro"], counts.macro(), rows),
            "micro_f1": Value(f1["micro"], counts.micro(), rows),
            "weighted_f1": Value(f1["weighted"], counts.weighted(), rows),
        }
        tables: dict[str, Any] = {
            "per_class": per_class(
                coded.names,
                metrics.precision_recall_fscore_support(coded.gold_R, coded.predicted_R, **every),
                np.bincount(coded.predicted_R, minlength=count)[:count],
                intervals(counts.f1s()),
            ),
            **_confusion(coded, metrics),
            "without_prediction": int((coded.predicted_R == count).sum()),
        }
        if scored_R.any():
            bins = calibration.reliability(read.score_R[scored_R], coded.right_R[scored_R])
            ece = calibration.error_of(bins)
            ece_B = calibration.centred(calibration.error(sums["gaps"], sums["scored"][:, 0]), ece)
            values["ece"] = Value(ece, ece_B, int(scored_R.sum()))
            tables["reliability"] = bins
        if known_R.any():
            loss_B = ratio(sums["losses"], sums["known"])[:, 0]
            values["log_loss"] = Value(float(loss_R[known_R].mean()), loss_B, int(known_R.sum()))
        if read.known is not None:
            tables["unknown_labels"] = _unknown(read.gold, read.known)
        return Found(values, tables)

    def _read(self, table: pa.Table) -> "_Read":
        gold = strings(table, self.gold)
        lists: Scores | None = None
        score_R: npt.NDArray[np.floating] = np.full(len(table), np.nan)
        known = None if self.known is None else pa.array(self.known, pa.string())
        if self.labels is not None and self.scores is not None:
            lists = Scores.of(table, self.labels, self.scores)
            predicted, score_R = lists.best()
            known = lists.names if known is None and lists.is_complete() else known
        elif self.predicted is None:
            raise JobError(
                "labels are measured by a column of predictions, or by one of lists of labels and one of lists of "
                "their scores"
            )
        if self.predicted is not None:
            predicted = strings(table, self.predicted)
        if self.score is not None:
            score_R = numbers(table, self.score)
        if ((score_R < -_ROUNDING) | (score_R > 1 + _ROUNDING)).any():
            raise JobError(
                f"column {self.score or self.scores!r} holds scores outside 0 to 1 "
                f"({np.nanmin(score_R):.4g} to {np.nanmax(score_R):.4g}): calibration is of probabilities"
            )
        return _Read(gold, predicted, score_R, lists, known)


@dataclass(frozen=True, slots=True)
class _Read:
    """The columns of R rows."""

    gold: pa.Array
    predicted: pa.Array  # null: no prediction
    score_R: npt.NDArray[np.floating]  # of the prediction; NaN: none
    lists: Scores | None
    known: pa.Array | None

    def losses(self) -> npt.NDArray[np.floating]:
        """Minus the logarithm of the gold label's score; NaN where not all scores are there."""
        if self.lists is None or not self.lists.is_complete():
            return np.full(len(self.gold), np.nan)
        return -np.log(np.clip(self.lists.of_label(self.gold).astype(np.float64), _LEAST_PROBABILITY, 1))


@dataclass(frozen=True, slots=True)
class _Coded:
    """Labels by number: L names, sorted; a row without prediction holds L."""

    names: list[str]
    gold_R: npt.NDArray[np.int64]
    predicted_R: npt.NDArray[np.int64]
    right_R: npt.NDArray[np.bool_]


def _coded(gold: pa.Array, predicted: pa.Array) -> _Coded:
    both = pc.drop_null(pc.unique(pa.concat_arrays([gold, predicted])))
    names = both.take(pc.sort_indices(both))
    gold_R, predicted_R = (
        np.asarray(pc.fill_null(pc.index_in(each, names, skip_nulls=True), len(names))).astype(np.int64)
        for each in (gold, predicted)
    )
    return _Coded(names.to_pylist(), gold_R, predicted_R, gold_R == predicted_R)


def _confusion(coded: _Coded, metrics: Any) -> dict[str, Any]:
    """The matrix, rows gold, columns predicted (up to 200 labels), and what was confused most."""
    count = len(coded.names)
    wrong_R = (coded.gold_R != coded.predicted_R) & (coded.predicted_R < count)
    cell_C, rows_C = np.unique(coded.gold_R[wrong_R] * count + coded.predicted_R[wrong_R], return_counts=True)
    most = np.argsort(-rows_C, kind="stable")[:_CONFUSIONS]
    confused = [
        {"gold": coded.names[cell // count], "predicted": coded.names[cell % count], "rows": int(rows)}
        for cell, rows in zip(cell_C[most], rows_C[most], strict=True)
    ]
    if count > _MATRIX_LABELS:
        return {"confused_most": confused}
    matrix = metrics.confusion_matrix(coded.gold_R, coded.predicted_R, labels=np.arange(count + 1))
    table = {
        "labels": coded.names,
        "counts": matrix[:count, :count].tolist(),
        "without_prediction": matrix[:count, count].tolist(),
    }
    return {"confusion": table, "confused_most": confused}


def _unknown(gold: pa.Array, known: pa.Array) -> dict[str, int]:
    """Gold labels that the model cannot say, by name, and in how many rows."""
    counted = pc.value_counts(gold.filter(pc.invert(pc.is_in(gold, known)))).to_pylist()
    return {each["values"]: each["counts"] for each in sorted(counted, key=lambda each: str(each["values"]))}
