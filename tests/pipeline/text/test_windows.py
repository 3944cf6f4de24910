import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pipeline.text.windows import pool, spans

shapes = st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(0, 39)).filter(
    lambda shape: shape[2] < shape[1]
)


@settings(max_examples=100, deadline=None)
@given(shapes)
def test_every_token_is_covered_and_the_last_window_brings_something_new(shape):
    tokens, size, stride = shape
    found = spans(tokens, size, stride)
    assert {token for start, stop in found for token in range(start, stop)} == set(range(tokens))
    assert all(stop - start <= size for start, stop in found)
    assert all(before[1] - after[0] == stride for before, after in itertools.pairwise(found))
    assert found[-1][1] == tokens
    assert len(found) == 1 or found[-2][1] < tokens


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_windows_are_those_of_the_tokenizers_library(shape):
    tokens, size, stride = shape
    tokenizer = Tokenizer(WordLevel({str(token): token for token in range(300)}, unk_token="0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(size, stride=stride)
    first = tokenizer.encode(" ".join(map(str, range(tokens))))
    theirs = [encoding.ids for encoding in [first, *first.overflowing]]
    assert [list(range(start, stop)) for start, stop in spans(tokens, size, stride)] == theirs


@pytest.mark.parametrize(("how", "by_hand"), [("mean", np.mean), ("max", np.max)])
def test_rows_are_pooled_from_their_own_windows(how, by_hand):
    values_PD = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    pooled_RD = pool(values_PD, np.array([0, 2, 1, 0, 3, 0]), how)
    np.testing.assert_allclose(pooled_RD[1], by_hand(values_PD[:2], axis=0), rtol=1e-6)
    np.testing.assert_array_equal(pooled_RD[2], values_PD[2])
    np.testing.assert_allclose(pooled_RD[4], by_hand(values_PD[3:], axis=0), rtol=1e-6)
    assert np.isnan(pooled_RD[[0, 3, 5]]).all()


def test_no_windows_at_all_give_rows_of_nan():
    assert np.isnan(pool(np.empty((0, 3), np.float32), np.array([0, 0]), "mean")).all()
    assert pool(np.empty((0, 3), np.float32), np.array([], np.int64), "max").shape == (0, 3)
