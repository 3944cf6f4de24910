from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jobs.bench.report import report
from jobs.bench.rounds import OURS, Ran
from jobs.bench.shown import compared
from jobs.bench.workload import Measured
from jobs.bench.workloads.encoding import Encoding
from jobs.bench.workloads.labeling import Tagging
from jobs.summary import text

LONGEST = "sentence-transformers bf16"
COSINE = Encoding.agreement
SAME = Tagging.agreement
DID = Measured(rows=100, tokens=8000, padded_tokens=10_000, seconds=2.0, first_row_seconds=6.0, flop=4e9)
RAN = Ran(DID, whole_seconds=9.0, peak_bytes=10**9, product_flop_per_second=1e10, agreed_R=np.array([0.99, 1.0]))


def ran(**changes: Any) -> Ran:
    """The same with other figures."""
    return replace(RAN, measured=replace(DID, **changes))


def test_figures_are_medians_and_ratios_those_within_each_round() -> None:
    slow_machine = {OURS: ran(seconds=4.0), "other": ran(seconds=12.0)}
    rounds = [
        {OURS: RAN, "other": ran(seconds=8.0)},
        slow_machine,
        {OURS: RAN, "other": ran(rows=50)},
    ]
    ours, other = report(rounds, COSINE)
    assert (ours["name"], other["name"]) == (OURS, "other")
    assert ours["tokens_per_second"] == 4000
    assert (ours["tokens_per_second_least"], ours["tokens_per_second_most"]) == (2000, 4000)
    assert other["tokens_per_second"] == 1000
    assert ours["corpusmill_is_times_as_fast"] == 1
    assert other["corpusmill_is_times_as_fast"] == 3  # of 4, 3 and 1: not of the medians, which is 4
    assert ours["docs_per_second"] == 50
    assert ours["flop_per_second"] == 2e9
    assert ours["share_of_matrix_product"] == pytest.approx(0.2)
    assert ours["padding_share"] == pytest.approx(0.2)
    assert (ours["cosine_least"], ours["cosine_median"]) == (0.99, 0.995)


def test_what_a_contender_does_not_tell_is_none() -> None:
    silent = replace(ran(padded_tokens=None, flop=None, first_row_seconds=None), peak_bytes=None, agreed_R=None)
    (row,) = report([{OURS: silent}], COSINE)
    names = ("padding_share", "peak_bytes", "flop_per_second", "share_of_matrix_product", "first_row_seconds")
    assert [row[name] for name in names] == [None] * 5
    assert "cosine_least" not in row


def test_a_person_sees_a_row_for_each_and_what_is_missing() -> None:
    measured = {
        "workload": "encoding",
        "model": "models/mine",
        "rows": 100,
        "max_tokens": 256,
        "rounds": 1,
        "contenders": report(
            [{OURS: RAN, LONGEST: ran(tokens=8_000_000), "other": ran(seconds=5.0, flop=None)}],
            COSINE,
        ),
        "missing": {"openvino bf16": "pip install openvino"},
        "output": "out/bench",
    }
    shown = text(compared(measured, width=80), width=80)
    assert "…" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["corpusmill", "4,000", "20%", "20%", "1.0", "6.0", "0.9900"] in lines
    assert ["other", "1,600", "2.5", "x", "20%", "1.0", "6.0", "0.9900"] in lines
    assert "openvino bf16 (pip install openvino)" in shown
    assert "out/bench/bench.json and bench.png" in shown


def test_what_nobody_tells_has_no_column() -> None:
    untold = {"flop": None, "first_row_seconds": None}
    agreed = np.array([1.0, 0.0, 1.0, 1.0])
    rounds = [
        {OURS: replace(ran(**untold), agreed_R=agreed), "other": replace(ran(**untold, seconds=4.0), agreed_R=agreed)}
    ]
    measured = {
        "workload": "tagging",
        "model": "models/mine",
        "rows": 100,
        "max_tokens": 256,
        "rounds": 1,
        "contenders": report(rounds, SAME),
        "missing": {},
        "output": "out/bench",
    }
    shown = text(compared(measured, width=80), width=80)
    head, *lines = (line.split() for line in shown.splitlines())
    assert head == ["tokens/s", "docs/s", "x", "padding", "GB", "same"]
    assert ["other", "2,000", "25", "2.0", "x", "20%", "1.0", "75.0%"] in lines
    assert "product" not in shown
    assert "missing" not in shown
