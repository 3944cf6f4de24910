"""What the rounds say: medians, and the ratio to corpusmill within each round. Pure.

report([{"corpusmill": Ran(…), "openvino bf16": Ran(…)}, …], agreement) ->
    [{"name": "corpusmill", "tokens_per_second": 35_000, …}, …]
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from jobs.bench.rounds import OURS, Ran
from jobs.bench.workload import Agreement


def report(rounds: Sequence[Mapping[str, Ran]], agreement: Agreement | None) -> list[dict[str, Any]]:
    """A row for each contender, corpusmill first; figures that a contender does not tell are None."""
    return [_row(name, rounds, agreement) for name in rounds[0]]


def _row(name: str, rounds: Sequence[Mapping[str, Ran]], agreement: Agreement | None) -> dict[str, Any]:
    ran = [each[name] for each in rounds]
    did = [each.measured for each in ran]
    rates = [each.tokens / each.seconds for each in did]
    ours = [each[OURS].measured for each in rounds]
    ratios = [each.tokens / each.seconds / rate for each, rate in zip(ours, rates, strict=True)]
    return {
        "name": name,
        "rows": did[0].rows,
        "tokens": did[0].tokens,
        "tokens_per_second": median(rates),
        "tokens_per_second_least": min(rates),
        "tokens_per_second_most": max(rates),
        "docs_per_second": median(each.rows / each.seconds for each in did),
        "corpusmill_is_times_as_fast": median(ratios),
        "flop_per_second": _median(did, lambda each: each.flop and each.flop / each.seconds),
        "share_of_matrix_product": _median(
            ran,
            lambda each: (
                each.measured.flop and each.measured.flop / each.measured.seconds / each.product_flop_per_second
            ),
        ),
        "padding_share": _median(did, lambda each: each.padded_tokens and 1 - each.tokens / each.padded_tokens),
        "peak_bytes": _median(ran, lambda each: each.peak_bytes),
        "first_row_seconds": _median(did, lambda each: each.first_row_seconds),
        "whole_seconds": median(each.whole_seconds for each in ran),
        **_agreement([each.agreed_R for each in ran if each.agreed_R is not None], agreement),
    }


def _agreement(agreed: Sequence[npt.NDArray[np.float64]], agreement: Agreement | None) -> dict[str, float]:
    """Cosines have a least and a median; what is the same or not has a share."""
    if not agreed or agreement is None:
        return {}
    all_R = np.concatenate(agreed)
    if agreement.key == "same_share":
        return {"same_share": float(all_R.mean())}
    return {"cosine_least": float(all_R.min()), "cosine_median": float(np.median(all_R))}


_Each = TypeVar("_Each")


def _median(ran: Sequence[_Each], of: Callable[[_Each], float | None]) -> float | None:
    """None where a contender does not tell."""
    told = [value for each in ran if (value := of(each)) is not None]
    return median(told) if told else None
