"""Any number of labels for each row: F1 over labels and rows, AUC, calibration.

    tags                   topic_labels                Multilabels(gold="tags", predicted="topic_labels")
    ["games", "gui"]       ["games"]                   -> micro_f1 0.67, macro_f1 0.5, samples_f1 0.83,
    []                     []                             subset_accuracy 0.5

With the lists of `all_scores` there are auc and ece too, and without a column of predictions those labels count as
predicted that have at least `threshold`. A row without prediction has no labels, and is wrong even where gold has none;
an empty prediction of an empty gold is right. Labels that are neither gold nor predicted anywhere stand in no mean.
R rows, L labels, B resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobError
from pipeline.metrics.base import Found, Kind, Value
from pipeline.metrics.bootstrap import Bootstrap, Floats, intervals
from pipeline.metrics.columns import nulls, row_of_values, string_lists
from pipeline.metrics.counts import Counts, per_class, ratio
from pipeline.metrics.libraries import library
from pipeline.metrics.ranking import of_scores
from pipeline.metrics.scores import Scores


@dataclass(frozen=True, slots=True)
class Multilabels(Kind):
    """Which columns hold gold and prediction: `predicted`, or the lists `labels` and `scores` of all labels."""

    gold: str
    predicted: str | None = None
    labels: str | None = None
    scores: str | None = None
    threshold: float = 0.5  # of `scores`, where there is no `predicted`
    known: tuple[str, ...] | None = None  # what the model can say; default: what the lists hold, where they hold all

    main = "micro_f1"
    figures = ("micro_f1", "macro_f1", "weighted_f1", "samples_f1", "subset_accuracy", "macro_auc", "micro_auc", "ece")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without gold; one whose list is empty is judged.

        Raises JobError: neither a prediction nor both lists are named; a column that is not there, or of another type.
        """
        self._read(table)
        return {f"{self.gold} is null": nulls(table, self.gold)}

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """micro_f1, macro_f1, weighted_f1, samples_f1, subset_accuracy; with all scores macro_auc, micro_auc, ece."""
        read = self._read(table)
        gold, said = read.gold, read.said
        rows = len(table)
        hits = gold * said
        hits_R, said_R, gold_R = (_sum(each, 1) for each in (hits, said, gold))
        exact_R = (hits_R == said_R) & (hits_R == gold_R) & ~read.without_R
        f1_R = np.where(said_R + gold_R > 0, np.nan_to_num(ratio(2 * hits_R, said_R + gold_R)), ~read.without_R)

        sums = bootstrap.sums(
            {
                "hits": hits,
                "said": said,
                "gold": gold,
                "exact": exact_R[:, None],
                "f1": f1_R[:, None],
                "rows": np.ones((rows, 1)),
            }
        )
        counts = Counts(sums["hits"], sums["said"], sums["gold"])
        values = {
            **_library_f1(gold, said, counts),
            "samples_f1": Value(float(f1_R.mean()), ratio(sums["f1"], sums["rows"])[:, 0], rows),
            "subset_accuracy": Value(float(exact_R.mean()), ratio(sums["exact"], sums["rows"])[:, 0], rows),
        }
        tables: dict[str, Any] = {
            "per_class": _lines(read, counts),
            "without_prediction": int(read.without_R.sum()),
        }
        if read.known is not None:
            tables["unknown_labels"] = {
                name: int(count)
                for name, count in zip(read.names, _sum(gold, 0), strict=True)
                if count and name not in read.known
            }
        if read.scores is not None:
            # Of a label that the model does not know there is no score to judge.
            scored_names = read.scores.names.to_pylist()
            places = [read.names.index(name) for name in scored_names]
            judged = of_scores(
                gold[:, places].toarray() > 0, read.scores.matrix(read.scores.names), ~read.without_R, bootstrap
            )
            values |= judged.values
            tables["reliability"] = judged.bins
            area_by_name = dict(zip(scored_names, judged.areas, strict=True))
            for line in tables["per_class"]:
                line["auc"] = area_by_name.get(line["label"])
        return Found(values, tables)

    def _read(self, table: pa.Table) -> "_Read":
        gold = string_lists(table, self.gold)
        lists = None
        if self.labels is not None and self.scores is not None:
            lists = Scores.of(table, self.labels, self.scores)
        if self.predicted is not None:
            predictions = string_lists(table, self.predicted)
            row_N, label_N = row_of_values(predictions), predictions.flatten()
            without_R = nulls(table, self.predicted)
        elif lists is not None and self.labels is not None:
            is_said_V = lists.score_V >= np.float32(self.threshold)
            row_N, label_N = lists.row_V[is_said_V], lists.names.take(pa.array(lists.label_V[is_said_V]))
            without_R = nulls(table, self.labels)
        else:
            raise JobError(
                "labels are measured by a column of predictions, or by one of lists of labels and one of lists of "
                "their scores"
            )
        if lists is not None and not lists.is_complete():
            lists = None
        known = self.known if self.known is not None or lists is None else tuple(lists.names.to_pylist())
        every = pa.concat_arrays([gold.flatten(), label_N, pa.array(known or (), pa.string())])
        names = pc.drop_null(pc.unique(every))
        names = names.take(pc.sort_indices(names))
        return _Read(
            names.to_pylist(),
            _indicator(row_of_values(gold), gold.flatten(), names, len(table)),
            _indicator(row_N, label_N, names, len(table)),
            without_R,
            lists,
            None if known is None else frozenset(known),
        )


@dataclass(frozen=True, slots=True)
class _Read:
    """The columns of R rows: which of L labels each has."""

    names: list[str]
    gold: Any  # gold_RL, sparse, ones
    said: Any
    without_R: npt.NDArray[np.bool_]
    scores: Scores | None  # where each row that has a prediction has all of them
    known: frozenset[str] | None


def _indicator(row_N: npt.NDArray[np.int64], label_N: pa.Array, names: pa.Array, rows: int) -> Any:
    """indicator_RL, sparse: 1 where a row has a label; a label that stands twice in a row is one."""
    place_N = np.asarray(pc.fill_null(pc.index_in(label_N, names, skip_nulls=True), -1)).astype(np.int64)
    named_N = place_N >= 0
    found = library("scipy.sparse").csr_array(
        (np.ones(named_N.sum()), (row_N[named_N], place_N[named_N])), (rows, len(names))
    )
    found.sum_duplicates()
    found.data[:] = 1
    return found


def _sum(indicator_RL: Any, axis: int) -> Floats:
    return np.asarray(indicator_RL.sum(axis), np.float64).reshape(-1)


def _library_f1(gold: Any, said: Any, counts: Counts) -> dict[str, Value]:
    """Over the labels that occur; none where none does."""
    present = np.flatnonzero(_sum(gold, 0) + _sum(said, 0))
    if len(present) == 0:
        return {}
    metrics = library("sklearn.metrics")
    resampled = {"micro": counts.micro(), "macro": counts.macro(), "weighted": counts.weighted()}
    gold, said = (each[:, present].astype(np.int64) for each in (gold, said))
    if len(present) == 1:  # scikit-learn takes a single column for labels of one choice
        gold, said = (
            library("scipy.sparse").hstack([each, np.zeros((each.shape[0], 1), np.int64)], "csr")
            for each in (gold, said)
        )
    return {
        f"{average}_f1": Value(
            float(metrics.f1_score(gold, said, labels=range(len(present)), average=average, zero_division=0)),
            resampled_B,
            gold.shape[0],
        )
        for average, resampled_B in resampled.items()
    }


def _lines(read: _Read, counts: Counts) -> list[dict[str, Any]]:
    of_rows = Counts(*(_sum(each, 0)[None] for each in (read.gold * read.said, read.said, read.gold)))
    of_label = (of_rows.precisions()[0], of_rows.recalls()[0], np.nan_to_num(of_rows.f1s()[0]), of_rows.gold_XL[0])
    return per_class(read.names, of_label, of_rows.said_XL[0], intervals(counts.f1s()))
