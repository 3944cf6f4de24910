"""Gold and predicted columns of a table become figures with intervals, and tables.

    measure(Labels(gold="section", predicted="topic_label"), table)
    -> figures: accuracy 0.766 [0.753, 0.779] of 4,096 rows, macro_f1 0.532 [0.507, 0.551] …
       tables: per_class [{"label": "games", "precision": 0.91, …}], confusion {…}, left_out {"section is null": 12}

A kind says which columns it reads and what it makes of them; one file beside this one holds one kind. Figures that a
seed gives are the same on every machine.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.metrics.bootstrap import COVERAGE, Bootstrap, Floats, interval
from pipeline.metrics.columns import groups

_LOWER_IS_BETTER = frozenset({"ece", "log_loss", "loss", "mae", "mse", "perplexity", "rmse"})


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, and how sure it is: another sample of as many rows gives one between low and high, 19 times of 20."""

    value: float
    low: float | None  # None: no resamples, or most of them have no value
    high: float | None
    rows: int  # that it was computed from

    def to_json(self) -> dict[str, Any]:
        """As it stands in metrics.json; an infinite number is null there."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        finite = {name: number if number is None or math.isfinite(number) else None for name, number in numbers.items()}
        return {**finite, "rows": self.rows}

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.value:.4g}{between} of {self.rows:,} rows"


@dataclass(frozen=True, slots=True)
class Value:
    """A figure before its interval: what it is of the rows, and of each resample (NaN where it has no value)."""

    value: float
    resampled_B: Floats
    rows: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a kind makes of the rows that are not left out."""

    values: Mapping[str, Value]
    tables: Mapping[str, Any] = field(default_factory=dict)  # plain values, as JSON holds them


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures and tables of one measurement; a figure that has no value (a correlation of equal numbers) is absent."""

    main: str  # the figure that is asked first
    figures: Mapping[str, Figure]
    tables: Mapping[str, Any]
    drawn: Mapping[str, Any]  # how intervals came to be: resamples, seed, the column that groups rows
    resampled: Mapping[str, Floats] = field(
        default_factory=dict, repr=False
    )  # each figure's values_B, for `difference`

    def to_json(self) -> dict[str, Any]:
        """What stands in metrics.json."""
        return {
            "main": self.main,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "intervals": {"coverage": COVERAGE, **self.drawn},
            "tables": dict(self.tables),
        }


class Kind(ABC):
    """What is measured: a dataclass whose fields name columns."""

    main: ClassVar[str]
    """The figure that is asked first."""

    figures: ClassVar[tuple[str, ...]]
    """All that it may find, as far as the columns allow."""

    @abstractmethod
    def left_out(self, table: pa.Table) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Why some rows cannot be judged -> which; also where the columns are looked at first.

        Raises JobError: a column that is not there, or of another type.
        """

    @abstractmethod
    def found(self, table: pa.Table, bootstrap: Bootstrap) -> Found:
        """The figures and tables of R >= 1 rows, none of which is left out."""


def measure(kind: Kind, table: pa.Table, seed: int = 0, resamples: int = 1000, group: str | None = None) -> Measured:
    """Figures with 95% intervals over resampled rows, and tables.

    Rows without gold are left out, and told in `tables["left_out"]`; a row without a prediction (it was quarantined)
    counts as wrong where that has sense, and is told there where it has none. `group`: a column; rows that agree in it
    (packages of one source) are no independent samples and are drawn together. Without resamples there are no
    intervals.

    Raises JobError: a column that is not there, or of another type; no row to judge; a library is missing.
    """
    reasons = kind.left_out(table)
    out_R = np.zeros(len(table), np.bool_)
    for mask_R in reasons.values():
        out_R |= mask_R
    kept = table.filter(pa.array(~out_R))
    told = {reason: int(mask_R.sum()) for reason, mask_R in reasons.items() if mask_R.any()}
    if len(kept) == 0:
        why = "".join(f"; {reason}: {rows:,}" for reason, rows in told.items())
        raise JobError(f"there is nothing to measure among {len(table):,} rows{why}")
    bootstrap = Bootstrap(len(kept), seed, resamples, None if group is None else groups(kept, group))
    found = kind.found(kept, bootstrap)
    values = {name: value for name, value in found.values.items() if not math.isnan(value.value)}
    return Measured(
        main=kind.main,
        figures={name: _figure(value) for name, value in values.items()},
        tables={**found.tables, "left_out": told},
        drawn={"resamples": resamples, "seed": seed, "group": group},
        resampled={name: value.resampled_B for name, value in values.items()},
    )


def difference(ours: Measured, theirs: Measured) -> dict[str, Figure]:
    """Ours minus theirs, of each figure that both have: the paired bootstrap (Koehn 2004, of translations).

    Both must be of the same rows in the same order, by one seed: a difference whose interval does not hold 0 is there.

    Raises ValueError: of different rows or resamples.
    """
    found = {}
    for name in ours.figures.keys() & theirs.figures.keys():
        one, other = ours.figures[name], theirs.figures[name]
        ours_B, theirs_B = ours.resampled[name], theirs.resampled[name]
        if one.rows != other.rows or len(ours_B) != len(theirs_B):
            raise ValueError(
                f"{name} is of {one.rows} rows and {len(ours_B)} resamples here, of {other.rows} and {len(theirs_B)} "
                "there: both must be measured on the same rows"
            )
        found[name] = _figure(Value(one.value - other.value, ours_B - theirs_B, one.rows))
    return found


def lower_is_better(figure: str) -> bool:
    """Whether less of that figure is more: of losses and errors."""
    return figure in _LOWER_IS_BETTER


def _figure(value: Value) -> Figure:
    low, high = interval(value.resampled_B) or (None, None)
    return Figure(value.value, low, high, value.rows)
