"""Spans of a text, each with a label: precision, recall and F1 of whole entities.

    entities [{label: PER, start: 0, end: 13}, {label: LOC, start: 17, end: 21}]      gold
    pii_entities [{label: PER, start: 0, end: 13, text: …, score: 0.98}]              predicted
    Spans(gold="entities", predicted="pii_entities")  -> precision 1.0, recall 0.5, spans_f1 0.67, macro_f1 0.5

A span is found if label, start and end (code points) are those of a gold one: what seqeval counts of BIO tags
(Tjong Kim Sang and De Meulder 2003, of CoNLL), and spans may overlap too. A row without prediction has no spans. A span
that a row holds twice counts once. R rows, N spans of all of them, L labels.
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
from pipeline.metrics.columns import nulls, row_of_values, structs
from pipeline.metrics.counts import Counts, per_class, ratio
from pipeline.metrics.libraries import library

Integers = npt.NDArray[np.int64]

_FIELDS = ("label", "start", "end")


@dataclass(frozen=True, slots=True)
class Spans(Kind):
    """Which columns hold the spans: lists of structs of label, start and end."""

    gold: str
    predicted: str

    main = "spans_f1"
    figures = ("spans_f1", "precision", "recall", "macro_f1", "weighted_f1", "exact_rows")

    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Rows without gold; one whose list is empty is judged.

        Raises JobError: a column that is not there, or of another type; spans that lack one of the three.
        """
        for name in (self.gold, self.predicted):
            spans = structs(table, name, _FIELDS).flatten()
            lacking = sum(pc.struct_field(spans, field).null_count for field in _FIELDS)
            if lacking:
                raise JobError(
                    f"column {name!r} holds spans without label, start or end: {lacking:,} of these are null"
                )
        return {f"{self.gold} is null": nulls(table, self.gold)}

    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """spans_f1 (micro), precision, recall, macro_f1, weighted_f1; exact_rows, the share of rows without a fault."""
        rows = len(table)
        spans = _distinct(structs(table, self.gold, _FIELDS), structs(table, self.predicted, _FIELDS))
        without_R = nulls(table, self.predicted)
        exact_R = ~without_R
        exact_R[spans.row_N[spans.is_gold_N != spans.is_said_N]] = False

        stats = {
            "hits": spans.of_rows(spans.is_gold_N & spans.is_said_N, rows),
            "said": spans.of_rows(spans.is_said_N, rows),
            "gold": spans.of_rows(spans.is_gold_N, rows),
            "exact": exact_R[:, None],
            "rows": np.ones((rows, 1)),
        }
        total = {name: np.asarray(each_RS.sum(0), np.float64).reshape(1, -1) for name, each_RS in stats.items()}
        sums = bootstrap.sums(stats)
        resampled = _figures(sums)
        counts = _counts(total)
        of_label = (counts.precisions()[0], counts.recalls()[0], counts.f1s()[0], counts.gold_XL[0])
        return Found(
            {name: Value(float(value_X[0]), resampled[name], rows) for name, value_X in _figures(total).items()},
            {
                "per_class": per_class(spans.names, of_label, counts.said_XL[0], intervals(_counts(sums).f1s())),
                "without_prediction": int(without_R.sum()),
            },
        )


def _counts(sums: Mapping[str, Floats]) -> Counts:
    return Counts(sums["hits"], sums["said"], sums["gold"])


def _figures(sums: Mapping[str, Floats]) -> dict[str, Floats]:
    """Each figure of X samples, from their sums."""
    counts = _counts(sums)
    hits_X, said_X, gold_X = (each_XL.sum(1) for each_XL in (counts.hits_XL, counts.said_XL, counts.gold_XL))
    any_X = said_X + gold_X > 0
    return {
        "spans_f1": counts.micro(),
        "precision": np.where(any_X, np.nan_to_num(ratio(hits_X, said_X)), np.nan),
        "recall": np.where(any_X, np.nan_to_num(ratio(hits_X, gold_X)), np.nan),
        "macro_f1": counts.macro(),
        "weighted_f1": counts.weighted(),
        "exact_rows": ratio(sums["exact"], sums["rows"])[:, 0],
    }


@dataclass(frozen=True, slots=True)
class _Distinct:
    """N spans, each one once: whose they are, and who says so."""

    names: list[str]
    row_N: Integers
    label_N: Integers
    is_gold_N: npt.NDArray[np.bool_]
    is_said_N: npt.NDArray[np.bool_]

    def of_rows(self, where_N: npt.NDArray[np.bool_], rows: int) -> Any:
        """counts_RL, sparse: how many of these spans each row has."""
        places = (self.row_N[where_N], self.label_N[where_N])
        return library("scipy.sparse").csr_array((np.ones(len(places[0])), places), (rows, len(self.names)))


def _distinct(gold: pa.ListArray, said: pa.ListArray) -> _Distinct:
    labels = pa.concat_arrays([pc.struct_field(each.flatten(), "label").cast(pa.string()) for each in (gold, said)])
    both = pc.unique(labels)
    names = both.take(pc.sort_indices(both))
    columns_N4 = np.stack(
        [
            np.concatenate([row_of_values(each) for each in (gold, said)]),
            np.asarray(pc.index_in(labels, names)).astype(np.int64),
            *(
                np.concatenate(
                    [np.asarray(pc.struct_field(each.flatten(), side)).astype(np.int64) for each in (gold, said)]
                )
                for side in ("start", "end")
            ),
        ],
        axis=1,
    )
    spans_N4, which = np.unique(columns_N4, axis=0, return_inverse=True)
    which = which.reshape(-1)
    golden = len(gold.flatten())
    is_gold_N, is_said_N = np.zeros((2, len(spans_N4)), np.bool_)
    is_gold_N[which[:golden]] = True
    is_said_N[which[golden:]] = True
    return _Distinct(names.to_pylist(), spans_N4[:, 0], spans_N4[:, 1], is_gold_N, is_said_N)
