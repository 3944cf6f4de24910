"""A trial: how a worker of this run computes an annotation fastest, found on texts of its own. Without Ray.

    repays(Expected(rows=2_000_000, tokens_of_a_row=90, weights_bytes=90_887_256, …)) -> True
    try_out(work, units, "topic") -> (Tried("torch", 2048, 7_021.4), Tried("openvino", 2048, 9_801.0), …)
    best(tried) -> Tried("openvino", 4096, 10_120.7)

A run that `engine: auto` leaves the choice to is tried before its first unit, where it is long enough that a trial
repays itself; what was found is pinned in the plan, and decides for all units.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.annotator import AnnotationSpec, Annotator
from pipeline.corpus.reader import UnitReader
from pipeline.models.engines import AUTO, OPENVINO, TORCH, why_not_openvino
from pipeline.output.planfile import PinnedAnnotation, Tried
from pipeline.repeats import Repeats
from pipeline.tasks.base import Task, Texts

if TYPE_CHECKING:
    from pipeline.corpus.plan import Unit
    from pipeline.models.loading import LoadedModel
    from pipeline.stages import Work

AT_MOST = 1 / 50
"""The share of a run that its trial may cost. By processor time MiniLM got 0 to 10% more tokens from OpenVINO than from
torch in bfloat16, and a fifth to a quarter more in float32: often there is little to gain."""

MARGIN = 0.05
"""So much faster than no trial's choice another has to be: rounds differ by as much."""

SAMPLE_TOKENS = 8192
"""Of a round: four micro-batches of the default budget, two of the largest that is tried."""

ROUNDS = 2

_UNITS = 3
"""Whose texts are looked for: the first may be all quarantined."""

_FLOPS_OF_A_THREAD = 4e11
"""Two for each weight and token, embeddings counted: MiniLM in bfloat16 at 9,000 tokens/s, a fast processor's."""

_STARTING_SECONDS = 6.0
_LOADING_BYTES_A_SECOND = 4e7  # of weights: both engines, conversion, compiling


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of an annotation before it runs, as far as it decides for how long."""

    rows: int
    tokens_of_a_row: float  # at most
    weights_bytes: int
    threads: int  # of one actor
    actors: int

    @property
    def _tokens_per_second(self) -> float:
        """Of one actor."""
        return self.threads * _FLOPS_OF_A_THREAD / (2 * max(1.0, self.weights_bytes / 4))

    @property
    def seconds(self) -> float:
        """Of computing, with all actors."""
        return self.rows * self.tokens_of_a_row / self._tokens_per_second / self.actors

    @property
    def trial_seconds(self) -> float:
        """A process starts, loads the model three times and computes the sample some times; all else waits."""
        passes = (2 + len(_FACTORS)) * ROUNDS * 1.5  # a half to warm up
        return (
            _STARTING_SECONDS
            + self.weights_bytes / _LOADING_BYTES_A_SECOND
            + passes * SAMPLE_TOKENS / self._tokens_per_second
        )


_FACTORS = (1, 0.5, 2)
"""Of the default token budget, which are tried with the faster engine."""


def repays(expected: Expected) -> bool:
    """Whether a trial costs little beside the run that it may make faster."""
    return expected.trial_seconds <= AT_MOST * expected.seconds


def may_choose(task: Task, pinned: PinnedAnnotation) -> bool:
    """Whether the job leaves the choice of the engine open, and there is one: on a CPU, with OpenVINO installed."""
    if task.model is None or task.config.engine != AUTO or pinned.dtype is None:
        return False
    return why_not_openvino(task, pinned.device, pinned.dtype) is None


def group(task: Task, pinned: PinnedAnnotation) -> Hashable:
    """Annotations that agree in it compute alike, and may share a forward pass: one trial is for all of them."""
    return (task.config.pool, pinned.digest, task.needs, pinned.dtype, pinned.device)


def best(tried: Sequence[Tried]) -> Tried | None:
    """The fastest, unless it is hardly faster than the first: torch with the default budget. None: nothing could."""
    able = [each for each in tried if each.tokens_per_second is not None]
    if not able:
        return None
    fastest = max(able, key=_speed)
    first = tried[0]
    return fastest if first not in able or _speed(fastest) > (1 + MARGIN) * _speed(first) else first


def decided(
    pins: Mapping[str, PinnedAnnotation], names: Sequence[str], tried: Sequence[Tried]
) -> dict[str, PinnedAnnotation]:
    """The pins of a plan with what the trial of these annotations says; torch as planned where it could say nothing."""
    chosen = best(tried)
    how = {"engine": TORCH} if chosen is None else {"engine": chosen.engine, "token_budget": chosen.token_budget}
    return {name: replace(pin, **how, tried=tuple(tried)) if name in names else pin for name, pin in pins.items()}


def _speed(tried: Tried) -> float:
    return tried.tokens_per_second or 0.0


# ------------------------------------------------------------------------------------------------------- on a worker


def try_out(work: "Work", units: Sequence["Unit"], names: Sequence[str]) -> tuple[Tried, ...]:
    """Compute texts of the first units in each way; the annotations `names` agree in `group`, and one of them is tried.

    The first is torch with the budget of the plan. Empty where the units have no texts for any of them. A way that
    fails, or runs out of memory, has no speed.
    """
    every = [spec.with_calibration(work.store) for spec in work.annotations]
    specs = [spec for spec in every if spec.name in names]
    for unit in units[:_UNITS]:
        fragments = {span.fragment: work.fragments[span.fragment] for span in unit.spans}
        found = UnitReader(work.read).read(unit, fragments)
        at_fault = {problem.row for problem in found.problems}
        for spec in specs:
            annotator = Annotator(every, found.table.schema, [spec], Repeats(work.repeats.once))
            for task, texts in annotator.texts(found.table, at_fault):
                if texts.values:
                    return _Trial(spec, task, texts).tried()
    return ()


class _Trial:
    """One annotation, some texts, and what came of trying."""

    def __init__(self, spec: AnnotationSpec, task: Task, texts: Texts) -> None:
        self._spec, self._task, self._texts = spec, task, texts
        self._warm: Texts | None = None
        self._timed: Texts | None = None

    def tried(self) -> tuple[Tried, ...]:
        """Both engines with the planned budget, then the faster one once more beside others."""
        budget = self._spec.pinned.token_budget
        torch, openvino = (self._with(engine, [budget])[0] for engine in (TORCH, OPENVINO))
        if (faster := best([torch, openvino])) is None:
            return torch, openvino
        again, *others = self._with(faster.engine, [int(factor * budget) for factor in _FACTORS])
        first = [again if each is faster and again.tokens_per_second else each for each in (torch, openvino)]
        return (*first, *others)

    def _with(self, engine: str, budgets: Sequence[int]) -> list[Tried]:
        """One engine with each budget in turn, round by round."""
        from pipeline.models.loading import load

        pinned, task = self._spec.pinned, self._task
        assert self._spec.model is not None
        assert task.needs is not None
        assert pinned.dtype is not None
        try:
            how = (pinned.dtype, pinned.device, pinned.threads, budgets[0], engine)
            loaded = load(self._spec.model, task.needs, *how, calibration=self._spec.calibration)
        except Exception:  # noqa: BLE001 - whatever an engine has against a model, the other is there
            return [Tried(engine, budget, None) for budget in budgets]
        rounds = [[self._speed(replace(loaded, token_budget=budget)) for budget in budgets] for _ in range(ROUNDS)]
        return [
            Tried(engine, budget, None if None in speeds else max(speed for speed in speeds if speed is not None))
            for budget, speeds in zip(budgets, zip(*rounds, strict=True), strict=True)
        ]

    def _speed(self, loaded: "LoadedModel") -> float | None:
        """Real tokens a second in the model; None where it fails."""
        try:
            self._task.start(loaded)
            warm, timed = self._sample()
            # A model meets other shapes all the time, so the timed texts are others than those that warm it up.
            self._task.annotate(_fresh(warm))
            said = self._task.annotate(_fresh(timed))
        except Exception:  # noqa: BLE001 - as above
            return None
        if loaded.budget.told() is not None or said.model_seconds <= 0 or not said.forward_tokens:
            return None
        return said.forward_tokens / said.model_seconds

    def _sample(self) -> tuple[Texts, Texts]:
        """Texts from all over the unit: a third to warm up with, and as many as have `SAMPLE_TOKENS`."""
        if self._warm is None or self._timed is None:
            count = len(self._texts.values)
            few = _some(self._texts, np.linspace(0, count - 1, min(count, 16)).astype(np.intp))
            tokens = max(1.0, float(self._task.annotate(few).tokens_R.mean()))
            wanted = min(count, int(1.5 * SAMPLE_TOKENS / tokens) + 2)
            chosen = np.linspace(0, count - 1, wanted).astype(np.intp)
            others = np.arange(len(chosen)) % 3 > 0
            self._warm = _some(self._texts, chosen[::3])
            self._timed = _some(self._texts, chosen[others] if others.any() else chosen)
        return self._warm, self._timed


def _some(texts: Texts, chosen: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> Texts:
    """These texts alone, which share nothing with others."""
    indices = chosen.tolist()
    inputs = {name: [values[index] for index in indices] for name, values in texts.inputs.items()}
    return Texts([texts.values[index] for index in indices], inputs)


def _fresh(texts: Texts) -> Texts:
    """The same texts, of which nothing is known yet."""
    return Texts(texts.values, texts.inputs)
