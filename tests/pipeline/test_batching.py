import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import TokenBudget, micro_batches, padding

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


@settings(max_examples=60, deadline=None)
@given(lengths, budgets, st.integers(0, 200))
def test_where_a_micro_batch_has_its_cost_it_ends_where_it_has_the_most_real_tokens_for_it(lengths_R, budget, fixed):
    batches = micro_batches(lengths_R, budget, fixed_tokens=fixed)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths_R)))
    in_order = np.concatenate([np.array([], np.int64), *(lengths_R[batch] for batch in batches)])
    assert (np.diff(in_order) <= 0).all()

    def worth(start, stop):
        return in_order[start:stop].sum() / ((stop - start) * in_order[start] + fixed)

    start = 0
    for batch in batches:
        most = max(1, budget // in_order[start])
        assert len(batch) <= most
        others = [worth(start, stop) for stop in range(start + 1, min(start + most, len(in_order)) + 1)]
        assert worth(start, start + len(batch)) >= max(others) * (1 - 1e-12)
        start += len(batch)


def test_a_budget_within_another_lowers_that_one_and_is_told_as_it_is():
    budget = TokenBudget(1000)
    assert budget.within(1000) is budget
    part = budget.within(100)
    assert (part.in_force, budget.in_force, budget.told()) == (100, 1000, None)
    part.lower(50)
    assert (part.in_force, budget.in_force) == (50, 50)
    assert budget.within(100) is budget
    part.met(8)  # a text that fits into no memory
    assert (budget.in_force, budget.told(), budget.told()) == (50, 8, 50)


def test_texts_of_one_length_fill_the_budget_whatever_a_micro_batch_costs():
    for fixed in (0, 32):
        assert [len(batch) for batch in micro_batches(np.full(45, 100), 2048, fixed_tokens=fixed)] == [20, 20, 5]


def test_log_uniform_lengths_of_a_small_unit_carry_little_padding():
    lengths_R = np.exp(np.random.default_rng(0).uniform(np.log(5), np.log(501), 512)).astype(np.int64)
    filled, cut = micro_batches(lengths_R, 2048), micro_batches(lengths_R, 2048, fixed_tokens=32)
    assert padding(lengths_R, filled) > 0.05 * lengths_R.sum()
    assert padding(lengths_R, cut) < 0.03 * lengths_R.sum()
    assert len(cut) < 2 * len(filled)


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
