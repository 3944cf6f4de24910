from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.split import SUBSETS, Shares, subset_named, subset_of

GROUPS = st.text(max_size=20)
PINNED = ["test", "train", "train", "train", "train", "test"]
SHARES = st.builds(Shares, st.floats(0, 0.49), st.floats(0, 0.49), st.integers(0, 9))


@settings(deadline=None)
@given(group=GROUPS, shares=SHARES)
def test_a_group_is_always_on_the_same_side(group: str, shares: Shares) -> None:
    assert subset_of(group, shares) == subset_of(group, shares)
    assert subset_of(group, shares) in SUBSETS


@settings(deadline=None)
@given(group=GROUPS, shares=SHARES, more=st.floats(0, 0.02))
def test_larger_shares_take_rows_from_the_training_alone(group: str, shares: Shares, more: float) -> None:
    before = subset_of(group, shares)
    after = subset_of(group, Shares(shares.validation + more, shares.test, shares.seed))
    assert after == before or (before, after) == ("train", "validation")


def test_shares_are_kept() -> None:
    counts = Counter(subset_of(f"source {number}", Shares(0.1, 0.2, 0)) for number in range(20_000))
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_another_seed_is_another_split() -> None:
    groups = [str(number) for number in range(200)]
    first, second = ([subset_of(group, Shares(0.3, 0.3, seed)) for group in groups] for seed in (0, 1))
    assert first != second


def test_without_shares_everything_trains() -> None:
    assert {subset_of(str(number), Shares(0, 0, 0)) for number in range(500)} == {"train"}


def test_the_split_of_today_is_that_of_tomorrow() -> None:
    groups = ("dpkg", "apt", "\ud800", "", "bash", "curl")
    assert [subset_of(each, Shares(0.3, 0.3, 7)) for each in groups] == PINNED


@pytest.mark.parametrize(
    ("word", "subset"),
    [("train", "train"), (" Training ", "train"), ("VALID", "validation"), ("val", "validation"),
     ("dev", "validation"), ("validation", "validation"), ("test", "test"), ("held out", None), ("", None)],
)  # fmt: skip
def test_words_for_subsets(word: str, subset: str | None) -> None:
    assert subset_named(word) == subset
