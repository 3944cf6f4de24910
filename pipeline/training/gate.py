"""Whether a trained model is good enough to be used: pure.

judged(GateSettings(metric="macro_f1", at_least=0.5), {"macro_f1": 0.53, "accuracy": 0.77}, None)
    -> Verdict(passed=True, metric="macro_f1", value=0.53, reasons=())
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import JobError
from pipeline.training.job import GateSettings

LESS_IS_BETTER = frozenset({"loss", "log_loss", "perplexity", "mse", "mae", "rmse", "ece"})
"""Figures of which less is better."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says; `reasons` are those for which a model did not pass."""

    passed: bool
    metric: str | None
    value: float | None
    reasons: tuple[str, ...]


def judged(gate: GateSettings | None, figures: Mapping[str, float], compared: Mapping[str, float] | None) -> Verdict:
    """Hold the figures of the test rows against the gate; `compared` are those of `not_worse_than` on the same rows.

    Without a gate every model passes. Raises JobError where the evaluation has no such figure.
    """
    if gate is None:
        return Verdict(True, None, None, ())
    if gate.metric not in figures:
        raise JobError(
            f"gate.metric: there is no figure {gate.metric!r}; the evaluation has {', '.join(sorted(figures))}"
        )
    value = figures[gate.metric]
    reasons = []
    if gate.at_least is not None and not value >= gate.at_least:
        reasons.append(f"{gate.metric} is {value:.4f}, less than at_least {gate.at_least:g}")
    if gate.at_most is not None and not value <= gate.at_most:
        reasons.append(f"{gate.metric} is {value:.4f}, more than at_most {gate.at_most:g}")
    if gate.not_worse_than is not None:
        assert compared is not None, "the other model was evaluated too"
        other = compared[gate.metric]
        worse = value > other if gate.metric in LESS_IS_BETTER else value < other
        if worse or value != value:
            reasons.append(f"{gate.metric} is {value:.4f}, worse than {other:.4f} of {gate.not_worse_than.ref}")
    return Verdict(not reasons, gate.metric, value, tuple(reasons))
