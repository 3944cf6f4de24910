import math

import pyarrow as pa
import pytest

from pipeline.errors import JobError
from pipeline.metrics.base import measure
from pipeline.metrics.perplexity import Perplexity

KIND = Perplexity("loss", "tokens")


def holds_its_value(figure):
    return figure.low <= figure.value <= figure.high


def test_every_token_weighs_the_same_whatever_text_it_stands_in():
    measured = measure(KIND, pa.table({"loss": [2.0, 4.0], "tokens": [30, 10]}))
    assert measured.figures["loss"].value == 2.5
    assert measured.figures["perplexity"].value == pytest.approx(math.exp(2.5))
    assert measured.tables["judged_tokens"] == 40
    for figure in measured.figures.values():
        assert holds_its_value(figure)


def test_tokens_that_were_not_judged_do_not_weigh():
    found = measure(Perplexity("loss", "tokens", unjudged_tokens=2), pa.table({"loss": [2.0, 4.0], "tokens": [5, 3]}))
    assert found.figures["loss"].value == pytest.approx((3 * 2 + 1 * 4) / 4)


def test_texts_without_a_loss_or_a_judged_token_are_left_out_and_told():
    table = pa.table({"loss": [2.0, None, float("nan"), 3.0, 9.0], "tokens": [4, 4, 4, 1, None]})
    found = measure(Perplexity("loss", "tokens", unjudged_tokens=1), table)
    assert found.figures["loss"].value == 2
    assert found.tables["left_out"] == {"loss is null or not finite": 2, "tokens has no judged token": 2}


def test_a_perplexity_beyond_all_numbers_is_infinite_and_null_in_json():
    found = measure(KIND, pa.table({"loss": [2000.0, 2000.0], "tokens": [4, 4]}))
    assert found.figures["perplexity"].value == math.inf
    assert found.to_json()["figures"]["perplexity"]["value"] is None
    assert found.figures["loss"].value == 2000


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(JobError, match=r"^no column 'tokens' to measure, among loss$"):
        measure(KIND, pa.table({"loss": [2.0]}))
