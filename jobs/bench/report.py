"""What the rounds say: medians, and the ratio to corpusmill within each round. Pure.

report([{"corpusmill": Ran(…), "openvino bf16": Ran(…)}, …]) -> [{"name": "corpusmill", "tokens_per_second": …}, …]
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from jobs.bench.rounds import OURS, Ran


def report(rounds: Sequence[Mapping[str, Ran]]) -> list[dict[str, Any]]:
    """A row for each contender, corpusmill first; figures that a contender does not tell are None."""
    return [_row(name, rounds) for name in rounds[0]]


def _row(name: str, rounds: Sequence[Mapping[str, Ran]]) -> dict[str, Any]:
    ran = [each[name] for each in rounds]
    rates = [each.tokens / each.seconds for each in ran]
    ratios = [each[OURS].tokens / each[OURS].seconds / rate for each, rate in zip(rounds, rates, strict=True)]
    cosines = np.concatenate([each.cosines_R for each in ran])
    return {
        "name": name,
        "rows": ran[0].rows,
        "tokens": ran[0].tokens,
        "tokens_per_second": median(rates),
        "tokens_per_second_least": min(rates),
        "tokens_per_second_most": max(rates),
        "docs_per_second": median(each.rows / each.seconds for each in ran),
        "corpusmill_is_times_as_fast": median(ratios),
        "flop_per_second": _median(ran, lambda each: each.flop and each.flop / each.seconds),
        "share_of_matrix_product": _median(
            ran, lambda each: each.flop and each.flop / each.seconds / each.product_flop_per_second
        ),
        "padding_share": _median(ran, lambda each: each.padded_tokens and 1 - each.tokens / each.padded_tokens),
        "peak_bytes": _median(ran, lambda each: each.peak_bytes),
        "first_row_seconds": median(each.first_row_seconds for each in ran),
        "whole_seconds": median(each.whole_seconds for each in ran),
        "cosine_least": float(cosines.min()),
        "cosine_median": float(np.median(cosines)),
    }


def _median(ran: Sequence[Ran], of: Callable[[Ran], float | None]) -> float | None:
    """None where a contender does not tell."""
    told = [value for each in ran if (value := of(each)) is not None]
    return median(told) if told else None
