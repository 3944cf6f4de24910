"""A checkpoint is there as a whole or not at all, and the right ones stay."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.output.failpoints import CHECKPOINT_NAMES
from pipeline.output.storage import Store
from pipeline.training import checkpoints

scores_of_steps = st.dictionaries(st.integers(1, 200), st.floats(-5, 5) | st.none(), min_size=1, max_size=12)


def _scores(drawn: dict[int, float | None]) -> dict[int, float]:
    return {step: score for step, score in drawn.items() if score is not None}


@given(scores_of_steps, st.integers(1, 6))
def test_the_latest_and_the_best_stay_and_no_more_than_were_asked_for(
    drawn: dict[int, float | None], keep: int
) -> None:
    scores = _scores(drawn)
    kept = checkpoints.kept(list(drawn), scores, keep)
    assert max(drawn) in kept
    assert kept <= set(drawn)
    assert len(kept) == min(len(drawn), max(keep, 1 if checkpoints.best(drawn, scores) in (None, max(drawn)) else 2))
    if scores:
        assert checkpoints.best(drawn, scores) in kept


@given(scores_of_steps, st.integers(1, 6))
def test_pruning_after_each_step_keeps_the_best_of_all_steps(drawn: dict[int, float | None], keep: int) -> None:
    there: set[int] = set()
    scores: dict[int, float] = {}
    for step in sorted(drawn):
        there.add(step)
        if (score := drawn[step]) is not None:
            scores[step] = score
        there = checkpoints.kept(sorted(there), scores, keep)
    assert checkpoints.best(there, scores) == checkpoints.best(drawn, scores)


@given(scores_of_steps, st.integers(1, 6))
def test_what_was_kept_once_would_be_kept_again(drawn: dict[int, float | None], keep: int) -> None:
    kept = checkpoints.kept(list(drawn), _scores(drawn), keep)
    assert checkpoints.kept(sorted(kept), _scores(drawn), keep) == kept


def test_without_scores_the_latest_stay() -> None:
    assert checkpoints.kept([10, 20, 30, 40], {}, 2) == {30, 40}
    assert checkpoints.best([10, 20], {}) is None
    assert checkpoints.kept([], {}, 2) == set()


def test_of_equal_scores_the_first_one_is_the_best() -> None:
    assert checkpoints.best([10, 20, 30], {10: 0.5, 20: 0.7, 30: 0.7}) == 20


def _whole(store: Store, name: str, content: bytes = b"weights") -> Path:
    folder = store.full(f"metadata/tmp/{name}")
    (folder / "inside").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "inside/more").write_bytes(b"more")
    return folder


def test_a_folder_becomes_a_checkpoint_at_once(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    assert checkpoints.latest(store) is None
    for step in (8, 16):
        checkpoints.commit(store, _whole(store, f"saving-{step}"), step)
    assert checkpoints.steps(store) == [8, 16]
    assert checkpoints.latest(store) == 16
    assert (checkpoints.folder_of(store, 8) / "inside/more").read_bytes() == b"more"


def test_a_checkpoint_that_stands_is_not_replaced(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    checkpoints.commit(store, _whole(store, "first", b"first"), 8)
    checkpoints.commit(store, _whole(store, "second", b"second"), 8)
    assert (checkpoints.folder_of(store, 8) / "model.safetensors").read_bytes() == b"first"


def test_pruning_leaves_nothing_of_what_goes(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for step in (8, 16, 24):
        checkpoints.commit(store, _whole(store, f"saving-{step}"), step)
    checkpoints.prune(store, {8: 0.9, 16: 0.5}, 2)
    assert checkpoints.steps(store) == [8, 24]
    assert list(store.full("metadata/tmp").iterdir()) == []


def test_other_names_are_no_checkpoints(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for name in ("step-8.half", "step-", "xstep-9", "notes"):
        store.full(f"checkpoints/{name}").mkdir(parents=True)
    assert checkpoints.steps(store) == []


@pytest.mark.parametrize("name", CHECKPOINT_NAMES)
def test_whoever_dies_half_way_leaves_whole_checkpoints_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(str(tmp_path))
    checkpoints.commit(store, _whole(store, "saving-8"), 8)

    def die(point: str) -> None:
        if point == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "failpoint", die)
    with suppress(KeyboardInterrupt):
        checkpoints.commit(store, _whole(store, "saving-16"), 16)
        checkpoints.prune(store, {}, 1)
        pytest.fail(f"{name} was never passed")
    there = checkpoints.steps(store)
    assert there
    for step in there:
        assert len(list(checkpoints.folder_of(store, step).rglob("*"))) == 3


def test_what_a_killed_process_was_removing_is_swept(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    left = tmp_path / "metadata/tmp/checkpoint-0f0f"
    left.mkdir(parents=True)
    (left / "model.safetensors").touch()
    (tmp_path / "metadata/tmp/other").touch()
    checkpoints.sweep(store)
    assert [each.name for each in (tmp_path / "metadata/tmp").iterdir()] == ["other"]
