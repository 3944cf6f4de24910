import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.metrics import find, known
from pipeline.training.gate import check_gate, judged
from pipeline.training.job import GateSettings

OTHER = "models/before"
VALUES = st.floats(0, 1)


def gate(**asked: object) -> GateSettings:
    return GateSettings.model_validate({"metric": "accuracy", **asked})


def test_without_a_gate_every_model_passes() -> None:
    verdict = judged(None, {}, None)
    assert verdict.passed
    assert verdict.metric is None


@settings(deadline=None)
@given(value=VALUES, bound=VALUES)
def test_at_least_passes_from_the_bound_on(value: float, bound: float) -> None:
    verdict = judged(gate(at_least=bound), {"accuracy": value}, None)
    assert verdict.passed == (value >= bound)
    assert bool(verdict.reasons) != verdict.passed
    assert verdict.value == value


@settings(deadline=None)
@given(value=VALUES, bound=VALUES)
def test_at_most_passes_up_to_the_bound(value: float, bound: float) -> None:
    assert judged(gate(metric="log_loss", at_most=bound), {"log_loss": value}, None).passed == (value <= bound)


@settings(deadline=None)
@given(value=VALUES, other=VALUES)
def test_not_worse_than_asks_for_more_of_what_is_better(value: float, other: float) -> None:
    more = judged(gate(not_worse_than=OTHER), {"accuracy": value}, {"accuracy": other})
    less = judged(gate(metric="perplexity", not_worse_than=OTHER), {"perplexity": value}, {"perplexity": other})
    assert more.passed == (value >= other)
    assert less.passed == (value <= other)


@settings(deadline=None)
@given(value=VALUES, least=VALUES, most=VALUES, other=VALUES)
def test_every_demand_that_fails_is_told(value: float, least: float, most: float, other: float) -> None:
    verdict = judged(gate(at_least=least, at_most=most, not_worse_than=OTHER), {"accuracy": value}, {"accuracy": other})
    assert len(verdict.reasons) == (value < least) + (value > most) + (value < other)


def test_a_reason_names_figure_value_and_bound() -> None:
    demands = gate(at_least=0.5, not_worse_than=OTHER)
    assert judged(demands, {"accuracy": 0.25}, {"accuracy": 0.75}).reasons == (
        "accuracy is 0.2500, less than at_least 0.5",
        "accuracy is 0.2500, worse than 0.7500 of models/before",
    )
    assert judged(gate(metric="loss", at_most=1), {"loss": 2.0}, None).reasons == (
        "loss is 2.0000, more than at_most 1",
    )


@pytest.mark.parametrize("figures", [{}, {"accuracy": math.nan}])
def test_a_figure_without_a_value_does_not_pass(figures: dict[str, float]) -> None:
    verdict = judged(gate(at_least=0), figures, None)
    assert not verdict.passed
    assert verdict.reasons == ("accuracy has no value on these rows",)


def test_nothing_is_worse_than_a_model_without_a_value() -> None:
    assert judged(gate(not_worse_than=OTHER), {"accuracy": 0.0}, {}).passed


def test_a_perplexity_that_is_infinite_does_not_pass_a_bound() -> None:
    assert not judged(gate(metric="perplexity", at_most=1e300), {"perplexity": math.inf}, None).passed


@pytest.mark.parametrize("kind", known())
def test_a_gate_may_ask_for_any_figure_of_an_evaluation_and_for_no_other(kind: str) -> None:
    figures = find(kind).figures
    assert find(kind).main in figures
    for metric in figures:
        check_gate(gate(metric=metric, not_worse_than=OTHER), figures)
    with pytest.raises(JobError, match=re.escape(f"there is no figure 'speed'; the evaluation has {figures[0]}")):
        check_gate(gate(metric="speed", at_least=1), figures)


def test_a_misspelt_figure_is_guessed() -> None:
    with pytest.raises(JobError, match="did you mean 'macro_f1'"):
        check_gate(gate(metric="macro_f", at_least=1), find("labels").figures)


def test_a_bound_on_the_wrong_side_is_refused() -> None:
    figures = find("labels").figures
    with pytest.raises(JobError, match="of log_loss less is better; say at_most"):
        check_gate(gate(metric="log_loss", at_least=1), figures)
    with pytest.raises(JobError, match="of accuracy more is better; say at_least"):
        check_gate(gate(at_most=1), figures)
    check_gate(gate(at_most=0.99, at_least=0.5), figures)
    check_gate(None, figures)


def test_a_gate_that_asks_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="a gate needs `at_least`, `at_most` or `not_worse_than`"):
        gate()
