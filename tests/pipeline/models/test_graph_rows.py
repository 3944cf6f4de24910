"""What a graph in rows takes: every real token once, where attention and products look for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.graph_rows import ATTENTION_GRAIN, PLACES_N, PLACES_T, ROWS_GRAIN, laid_out


@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.none() | st.integers(70, 90), st.integers(0, 3))
def test_each_real_token_has_its_row_and_each_row_its_place(
    lengths: list[int], most_tokens: int | None, pad_id: int
) -> None:
    real_BL = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids_BL = np.where(real_BL, np.arange(real_BL.size).reshape(real_BL.shape) + 100, pad_id)
    types_BL = real_BL.astype(np.int64)
    found = laid_out({"input_ids": ids_BL, "token_type_ids": types_BL}, lengths, most_tokens, pad_id)
    wide, tokens = found["input_ids"], sum(lengths)
    assert {values.dtype for values in found.values()} == {np.dtype(np.int64)}
    assert np.array_equal(wide[:, : max(lengths)], ids_BL)
    assert (wide[:, max(lengths) :] == pad_id).all()
    assert found["attention_mask"].sum(1).tolist() == lengths
    assert np.array_equal(found["token_type_ids"], found["attention_mask"])  # as they were given here
    in_rows = wide.reshape(-1)[found[PLACES_T]]
    assert np.array_equal(in_rows[:tokens], ids_BL[real_BL])
    assert (in_rows[tokens:] == ids_BL[0, 0]).all()
    back = in_rows[found[PLACES_N]].reshape(wide.shape)
    assert np.array_equal(back[found["attention_mask"] == 1], ids_BL[real_BL])
    assert (back == np.where(found["attention_mask"] == 1, back, back[:, :1])).all()  # padding is of its own text
    assert len(in_rows) % ROWS_GRAIN == 0
    assert len(in_rows) - tokens < ROWS_GRAIN
    assert wide.shape[1] % ATTENTION_GRAIN == 0 or wide.shape[1] == most_tokens
    assert wide.shape[1] - max(lengths) < ATTENTION_GRAIN


@pytest.mark.parametrize(("tokens", "most", "padded"), [(33, 40, 40), (40, 40, 40), (33, 512, 48), (48, 40, 48)])
def test_no_text_goes_beyond_the_places_that_a_model_has_because_it_is_padded(
    tokens: int, most: int, padded: int
) -> None:
    found = laid_out({"input_ids": np.ones((1, tokens), np.int64)}, [tokens], most, 0)
    assert found["input_ids"].shape == (1, padded)
