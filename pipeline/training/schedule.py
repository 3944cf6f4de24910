"""When a training validates, saves, logs and ends: pure.

Schedule(steps=1536, steps_per_epoch=384, warmup_steps=92, validate_every=384, checkpoint_every=500, best="macro_f1", …)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from pipeline.training.job import EarlyStopping, TrainingSettings

CHECKPOINT_STEPS = 500
LOGS = 100
"""Points of a curve, about."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of one training."""

    steps: int
    steps_per_epoch: int
    warmup_steps: int
    validate_every: int
    checkpoint_every: int
    log_every: int
    best: str | None  # the figure that chooses the checkpoint; None: the last is taken
    more_is_better: bool
    early_stopping: EarlyStopping | None

    @classmethod
    def of(
        cls, settings: TrainingSettings, steps_per_epoch: int, figures: Mapping[str, bool], has_validation: bool
    ) -> "Schedule":
        """The steps that the settings ask for. `figures`: those of a validation, and whether more is better."""
        steps = settings.steps or max(1, ceil(settings.epochs * steps_per_epoch))
        best = settings.best or next(iter(figures), "loss")
        return cls(
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            warmup_steps=int(settings.warmup * steps),
            validate_every=settings.validate_every or steps_per_epoch,
            checkpoint_every=settings.checkpoint_every or CHECKPOINT_STEPS,
            log_every=max(1, steps // LOGS),
            best=best if has_validation else None,
            more_is_better=figures.get(best, False),
            early_stopping=settings.early_stopping if has_validation else None,
        )

    def validates(self, step: int) -> bool:
        """At the end of every so many steps, and at the last one."""
        return step % self.validate_every == 0 or step >= self.steps

    def saves(self, step: int) -> bool:
        """Every so many steps, at the end of an epoch, with each validation that may choose it, and at the last."""
        chosen = self.best is not None and self.validates(step)
        return step % self.checkpoint_every == 0 or step % self.steps_per_epoch == 0 or chosen or step >= self.steps

    def scores(self, history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """The figure that chooses among checkpoints, more being better, of each step that was validated."""
        sign = 1.0 if self.more_is_better else -1.0
        key = f"eval_{self.best}"
        return {int(each["step"]): sign * float(each[key]) for each in history if key in each}

    def done(self, step: int, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether nothing comes after this step."""
        return step >= self.steps or self.ended(history)

    def ended(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether so many validations in a row were no better than the best before them (early stopping)."""
        if self.early_stopping is None:
            return False
        values = [float(each[f"eval_{self.best}"]) for each in history if f"eval_{self.best}" in each]
        scores = values if self.more_is_better else [-value for value in values]
        best, since = float("-inf"), 0
        for score in scores:
            if score > best + self.early_stopping.at_least or best == float("-inf"):
                best, since = score, 0
            else:
                since += 1
        return since >= self.early_stopping.patience
