import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.perplexity import own_spans, perplexities
from pipeline.text.windows import spans


@pytest.mark.parametrize(
    ("both_sides", "expected"),
    [(False, [[0, 4], [4, 7], [7, 10], [0, 3]]), (True, [[0, 3], [3, 6], [6, 10], [0, 3]])],
)
def test_windows_share_what_they_judge(both_sides, expected):
    windows = np.array([*spans(10, 4, 1), (0, 3)])
    assert own_spans(windows, np.array([3, 0, 1]), both_sides).tolist() == expected


@given(
    tokens=st.lists(st.integers(1, 60), max_size=6),
    size=st.integers(1, 20),
    stride=st.integers(0, 19),
    both_sides=st.booleans(),
)
def test_each_token_is_judged_once_by_a_window_that_holds_it(tokens, size, stride, both_sides):
    stride = min(stride, size - 1)
    of_texts = [spans(count, size, stride) for count in tokens]
    windows_P2 = np.array([span for text in of_texts for span in text], np.int64).reshape(-1, 2)
    own_P2 = own_spans(windows_P2, np.array([len(text) for text in of_texts], np.int64), both_sides)
    assert (own_P2[:, 0] >= windows_P2[:, 0]).all()
    assert (own_P2[:, 1] <= windows_P2[:, 1]).all()
    judged = [token for start, stop in own_P2 for token in range(start, stop)]
    assert judged == [token for count in tokens for token in range(count)]


@given(tokens=st.integers(1, 200), size=st.integers(2, 20), stride=st.integers(1, 19))
def test_the_stride_is_the_least_context_of_a_token_that_follows_another_window(tokens, size, stride):
    stride = min(stride, size - 1)
    windows_P2 = np.array(spans(tokens, size, stride))
    own_P2 = own_spans(windows_P2, np.array([len(windows_P2)]), both_sides=False)
    assert (own_P2[1:, 0] - windows_P2[1:, 0] >= stride).all()


def test_every_token_of_a_text_weighs_the_same():
    losses_R, scores_R = perplexities(
        [np.array([1.0, 2.0, 3.0], np.float32), np.array([6.0], np.float32)], np.array([2])
    )
    assert losses_R.tolist() == [3.0]
    assert scores_R == pytest.approx(np.exp(3.0))


def test_a_text_without_losses_has_no_perplexity_and_a_large_loss_an_infinite_one():
    one, none = np.array([1.0], np.float32), np.zeros(0, np.float32)
    losses_R, scores_R = perplexities(
        [one, None, none, np.array([100.0], np.float32), none, one], np.array([2, 1, 1, 0, 2])
    )
    np.testing.assert_array_equal(losses_R, np.array([np.nan, np.nan, 100, np.nan, 1], np.float32))
    np.testing.assert_array_equal(scores_R, np.array([np.nan, np.nan, np.inf, np.nan, np.e], np.float32))
