import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import micro_batches, padding

lengths = st.lists(st.integers(1, 600), max_size=200).map(lambda values: np.array(values, np.int64))
budgets = st.integers(1, 3000)


@settings(max_examples=60, deadline=None)
@given(lengths, budgets)
def test_every_row_goes_once(lengths_R, budget):
    batches = micro_batches(lengths_R, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths_R)))


@settings(max_examples=60, deadline=None)
@given(lengths, budgets)
def test_the_budget_is_kept_unless_a_single_row_exceeds_it(lengths_R, budget):
    for batch in micro_batches(lengths_R, budget):
        assert len(batch) * lengths_R[batch].max() <= budget or len(batch) == 1


@settings(max_examples=60, deadline=None)
@given(lengths, budgets)
def test_no_micro_batch_could_take_the_first_row_of_the_next(lengths_R, budget):
    batches = micro_batches(lengths_R, budget)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths_R[batch].max() > budget


@settings(max_examples=60, deadline=None)
@given(lengths, budgets)
def test_padding_is_what_a_padded_array_holds_besides_tokens(lengths_R, budget):
    batches = micro_batches(lengths_R, budget)
    by_hand = 0
    for batch in batches:
        mask_BL = np.arange(lengths_R[batch].max()) < lengths_R[batch][:, None]
        by_hand += int((~mask_BL).sum())
    assert padding(lengths_R, batches) == by_hand


def test_rows_of_one_length_keep_their_order():
    assert [batch.tolist() for batch in micro_batches(np.array([5, 90, 5, 90, 5]), 180)] == [[1, 3], [0, 2, 4]]


def test_a_row_over_the_budget_goes_alone():
    assert [batch.tolist() for batch in micro_batches(np.array([2, 500, 2]), 100)] == [[1], [0, 2]]


def test_no_rows_give_no_micro_batches():
    assert micro_batches(np.array([], np.int64), 10) == []
    assert padding(np.array([], np.int64), []) == 0


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 900))
def test_packed_micro_batches_hold_as_many_real_tokens_as_the_budget_says_and_twice_as_many_beside_padding(
    lengths, budget
):
    lengths_R = np.array(lengths, np.int64)
    batches = micro_batches(lengths_R, budget, packed=True)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch, after in zip(batches, [*batches[1:], None], strict=True):
        real, padded = lengths_R[batch].sum(), len(batch) * lengths_R[batch].max()
        assert len(batch) == 1 or (real <= budget and padded <= 2 * budget)
        if after is not None:  # one more would have been too many
            assert real + lengths_R[after[0]] > budget or padded + lengths_R[batch].max() > 2 * budget
