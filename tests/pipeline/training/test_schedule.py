from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.job import TrainingSettings
from pipeline.training.schedule import Schedule

FIGURES = {"macro_f1": True, "accuracy": True, "mae": False}


def schedule(steps_per_epoch: int = 10, has_validation: bool = True, **of_training: Any) -> Schedule:
    return Schedule.of(TrainingSettings.model_validate(of_training), steps_per_epoch, FIGURES, has_validation)


@settings(deadline=None)
@given(epochs=st.floats(0.01, 20), steps_per_epoch=st.integers(1, 400), warmup=st.floats(0, 0.99))
def test_epochs_become_steps(epochs: float, steps_per_epoch: int, warmup: float) -> None:
    found = schedule(steps_per_epoch, epochs=epochs, warmup=warmup)
    assert found.steps == max(1, ceil(epochs * steps_per_epoch))
    assert 0 <= found.warmup_steps < found.steps or found.warmup_steps == 0
    assert found.validates(found.steps)
    assert found.saves(found.steps)


def test_steps_stand_in_place_of_epochs() -> None:
    assert schedule(steps=7, epochs=100.0).steps == 7


@settings(deadline=None)
@given(steps=st.integers(1, 300), every=st.integers(1, 50), steps_per_epoch=st.integers(1, 60))
def test_a_validation_that_chooses_has_a_checkpoint(steps: int, every: int, steps_per_epoch: int) -> None:
    found = schedule(steps_per_epoch, steps=steps, validate_every=every)
    for step in range(1, steps + 1):
        assert found.validates(step) == (step % every == 0 or step == steps)
        assert found.saves(step) or not found.validates(step)


def test_checkpoints_come_at_ends_of_epochs_and_every_so_many_steps() -> None:
    found = schedule(10, False, epochs=3, checkpoint_every=4)
    assert [step for step in range(1, 31) if found.saves(step)] == [4, 8, 10, 12, 16, 20, 24, 28, 30]


def test_the_best_is_by_the_objectives_first_figure_where_there_is_a_validation() -> None:
    assert schedule().best == "macro_f1"
    assert schedule().more_is_better
    assert schedule(has_validation=False).best is None
    assert schedule(best="mae").best == "mae"
    assert not schedule(best="mae").more_is_better
    assert not schedule(best="loss").more_is_better


def test_a_score_is_more_where_it_is_better() -> None:
    history = [{"step": 5, "loss": 1.0}, {"step": 5, "eval_mae": 0.5, "eval_macro_f1": 0.25}]
    assert schedule(best="macro_f1").scores(history) == {5: 0.25}
    assert schedule(best="mae").scores(history) == {5: -0.5}
    assert schedule(best="loss").scores(history) == {}


def test_a_training_is_done_at_its_last_step_or_when_it_is_ended() -> None:
    found = schedule(steps=4, early_stopping={"patience": 1})
    worse = [{"step": 1, "eval_macro_f1": 0.5}, {"step": 2, "eval_macro_f1": 0.25}]
    assert [found.done(step, []) for step in (3, 4, 5)] == [False, True, True]
    assert found.done(2, worse)


@settings(deadline=None)
@given(scores=st.lists(st.floats(0, 1), max_size=12), patience=st.integers(1, 4), at_least=st.floats(0, 0.2))
def test_early_stopping_waits_for_its_patience(scores: list[float], patience: int, at_least: float) -> None:
    found = schedule(early_stopping={"patience": patience, "at_least": at_least})
    history = [{"step": step, "eval_macro_f1": score} for step, score in enumerate(scores, 1)]
    if len(scores) <= patience:
        assert not found.ended(history)
    if found.ended(history):
        best_before = max(scores[:-patience])
        assert all(score <= best_before + at_least for score in scores[-patience:])


@pytest.mark.parametrize("of_training", [{}, {"early_stopping": {"patience": 1}, "has_validation": False}])
def test_without_early_stopping_nothing_ends_before_the_last_step(of_training: dict[str, Any]) -> None:
    worse = [{"step": step, "eval_macro_f1": -float(step)} for step in range(9)]
    assert not schedule(**of_training).ended(worse)
