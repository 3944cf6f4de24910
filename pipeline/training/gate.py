"""Whether a trained model is good enough to be used: pure.

judged(GateSettings(metric="macro_f1", at_least=0.5), {"macro_f1": 0.53, "accuracy": 0.77}, None)
    -> Verdict(passed=True, metric="macro_f1", value=0.53, reasons=())
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isnan, nan

from pipeline.errors import JobError
from pipeline.metrics.base import lower_is_better
from pipeline.training.job import GateSettings


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says; `reasons` are those for which a model did not pass."""

    passed: bool
    metric: str | None
    value: float | None
    reasons: tuple[str, ...]


def check_gate(gate: GateSettings | None, figures: Sequence[str]) -> None:
    """Before anything is trained: JobError where an evaluation that may find these figures has not the gate's.

    Nor is a bound of much use on the wrong side: `at_most` alone is for figures of which less is better.
    """
    if gate is None:
        return
    if gate.metric not in figures:
        meant = get_close_matches(gate.metric, figures, n=1)
        hint = f"; did you mean {meant[0]!r}?" if meant else ";"
        raise JobError(f"gate.metric: there is no figure {gate.metric!r}{hint} the evaluation has {', '.join(figures)}")
    if gate.at_least is not None and gate.at_most is None and lower_is_better(gate.metric):
        raise JobError(f"gate.at_least: of {gate.metric} less is better; say at_most")
    if gate.at_most is not None and gate.at_least is None and not lower_is_better(gate.metric):
        raise JobError(f"gate.at_most: of {gate.metric} more is better; say at_least")


def judged(gate: GateSettings | None, figures: Mapping[str, float], compared: Mapping[str, float] | None) -> Verdict:
    """Hold the figures of the test rows against the gate; `compared` are those of `not_worse_than` on the same rows.

    Without a gate every model passes. With one a figure that has no value (a correlation of equal numbers) does not.
    """
    if gate is None:
        return Verdict(True, None, None, ())
    value = figures.get(gate.metric)
    if value is None or isnan(value):
        return Verdict(False, gate.metric, None, (f"{gate.metric} has no value on these rows",))
    reasons = []
    if gate.at_least is not None and not value >= gate.at_least:
        reasons.append(f"{gate.metric} is {value:.4f}, less than at_least {gate.at_least:g}")
    if gate.at_most is not None and not value <= gate.at_most:
        reasons.append(f"{gate.metric} is {value:.4f}, more than at_most {gate.at_most:g}")
    if gate.not_worse_than is not None:
        assert compared is not None, "the other model was evaluated too"
        other = compared.get(gate.metric, nan)  # nothing is worse than what has no value
        if value > other if lower_is_better(gate.metric) else value < other:
            reasons.append(f"{gate.metric} is {value:.4f}, worse than {other:.4f} of {gate.not_worse_than.ref}")
    return Verdict(not reasons, gate.metric, value, tuple(reasons))
