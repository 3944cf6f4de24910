import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeline.models.generation.drawing import Filters, RowNoise, draw, kept

filters = st.builds(
    Filters,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([None, 1, 5, 30]),
    top_p=st.sampled_from([None, 0.3, 0.9]),
    min_p=st.sampled_from([None, 0.05]),
)


def scores_of(seed, size=50):
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), filters)
def test_filters_leave_what_transformers_leaves(seed, asked):
    scores_V = scores_of(seed)
    warped = TemperatureLogitsWarper(asked.temperature)(None, torch.from_numpy(scores_V)[None].double())
    if asked.top_k:
        warped = TopKLogitsWarper(asked.top_k)(None, warped)
    if asked.top_p:
        warped = TopPLogitsWarper(asked.top_p)(None, warped)
    if asked.min_p:
        warped = MinPLogitsWarper(asked.min_p)(None, warped)
    found_V = kept(scores_V.astype(np.float64) / asked.temperature, asked)
    assert found_V.tolist() == torch.isfinite(warped[0]).tolist()


@settings(max_examples=400, deadline=None)
@example(seed=480, asked=Filters(temperature=0.5, top_k=5, top_p=0.9), slack=0.01)  # a near tie at the edge of top-p
@given(st.integers(0, 9999), filters, st.sampled_from([1e-4, 1e-2, 0.2]))
def test_scores_that_are_off_by_less_than_the_slack_draw_the_same_token_or_none(seed, asked, slack):
    scores_V, uniform_V = scores_of(seed), RowNoise(seed, [1, 2]).at(0, 50)
    off_V = scores_V + np.random.default_rng(seed + 1).uniform(-slack / 2, slack / 2, 50).astype(np.float32)
    token = draw(scores_V, uniform_V, asked, slack)
    assert token in (None, draw(off_V, uniform_V, asked, 0.0))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9999), filters, st.sampled_from([1e-4, 1e-2, 0.2]))
def test_what_all_scores_within_the_slack_leave_is_left_by_each_and_what_each_leaves_by_some(seed, asked, slack):
    scores_V = scores_of(seed, 30).astype(np.float64)
    off_V = scores_V + np.random.default_rng(seed + 1).uniform(-slack / 2, slack / 2, 30)
    surely_V, perhaps_V = kept(scores_V, asked, -slack), kept(scores_V, asked, slack)
    for each_V in (kept(scores_V, asked), kept(off_V, asked)):
        assert not (surely_V & ~each_V).any()
        assert not (each_V & ~perhaps_V).any()


def test_tokens_are_drawn_as_often_as_their_probability():
    scores_V = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    noise = RowNoise(3, [7])
    drawn = [draw(scores_V, noise.at(step, 3), Filters(), 0.0) for step in range(4000)]
    assert np.bincount(np.array(drawn, np.int64)) / 4000 == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_a_row_s_noise_depends_on_seed_prompt_and_step_alone():
    told = RowNoise(1, [5, 6]).at(2, 8).tolist()
    assert RowNoise(1, np.array([5, 6], np.int32)).at(2, 8).tolist() == told
    others = [RowNoise(2, [5, 6]).at(2, 8), RowNoise(1, [6, 5]).at(2, 8), RowNoise(1, [5, 6]).at(3, 8)]
    assert all(other.tolist() != told for other in others)
