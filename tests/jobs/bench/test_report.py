from dataclasses import replace

import numpy as np
import pytest

from jobs.bench.report import report
from jobs.bench.rounds import OURS, Ran
from jobs.bench.shown import compared
from jobs.summary import text

LONGEST = "sentence-transformers bf16"
RAN = Ran(
    rows=100,
    tokens=8000,
    padded_tokens=10_000,
    seconds=2.0,
    whole_seconds=9.0,
    first_row_seconds=6.0,
    peak_bytes=10**9,
    flop=4e9,
    product_flop_per_second=1e10,
    cosines_R=np.array([0.99, 1.0]),
)


def test_figures_are_medians_and_ratios_those_within_each_round() -> None:
    slow_machine = {OURS: replace(RAN, seconds=4.0), "other": replace(RAN, seconds=12.0)}
    rounds = [
        {OURS: RAN, "other": replace(RAN, seconds=8.0)},
        slow_machine,
        {OURS: RAN, "other": replace(RAN, rows=50)},
    ]
    ours, other = report(rounds)
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
    silent = replace(RAN, padded_tokens=None, peak_bytes=None, flop=None)
    (row,) = report([{OURS: silent}])
    names = ("padding_share", "peak_bytes", "flop_per_second", "share_of_matrix_product")
    assert [row[name] for name in names] == [None] * 4


def test_a_person_sees_a_row_for_each_and_what_is_missing() -> None:
    measured = {
        "model": "models/mine",
        "rows": 100,
        "max_tokens": 256,
        "rounds": 1,
        "contenders": report(
            [{OURS: RAN, LONGEST: replace(RAN, tokens=8_000_000), "other": replace(RAN, seconds=5.0, flop=None)}]
        ),
        "missing": {"openvino bf16": ["openvino"]},
        "output": "out/bench",
    }
    shown = text(compared(measured, width=80), width=80)
    assert "…" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["corpusmill", "4,000", "20%", "20%", "1.0", "6.0", "0.9900"] in lines
    assert ["other", "1,600", "2.5", "x", "20%", "1.0", "6.0", "0.9900"] in lines
    assert "openvino bf16 (pip install openvino)" in shown
    assert "out/bench/bench.json and bench.png" in shown
