import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import TokenBudget
from pipeline.errors import RunError
from pipeline.models.engine import AHEAD, Pending, forward_pieces, run_batches, run_pieces
from pipeline.quarantine import Reason

PAD = 9
POISON = 13


def sums(input_ids_BL, attention_mask_BL):
    """The sum and the number of a piece's real tokens; padding must not count."""
    assert (input_ids_BL[attention_mask_BL == 0] == PAD).all()
    return torch.stack([(input_ids_BL * attention_mask_BL).sum(1), attention_mask_BL.sum(1)], 1).float()


def run(pieces, forward=sums, budget=20, about_to_run=None):
    ids_P = [np.array(piece, np.int32) for piece in pieces]
    return forward_pieces(
        ids_P,
        lambda padded: forward(padded.input_ids_BL, padded.attention_mask_BL),
        width=2,
        token_budget=budget,
        pad_id=PAD,
        device="cpu",
        about_to_run=about_to_run,
    )


class Poisoned:
    """Raises for every micro-batch that holds the poison."""

    def __init__(self, fault):
        self.fault = fault
        self.calls = 0

    def __call__(self, input_ids_BL, attention_mask_BL):
        self.calls += 1
        if (input_ids_BL == POISON).any():
            raise self.fault
        return sums(input_ids_BL, attention_mask_BL)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(20, 99), min_size=1, max_size=12), max_size=30), st.integers(1, 60))
def test_rows_come_back_in_input_order(pieces, budget):
    done = run(pieces, budget=budget)
    assert done.values_PD.tolist() == [[sum(piece), len(piece)] for piece in pieces]
    assert done.failures == {}
    assert done.tokens == sum(map(len, pieces))


def test_padding_is_counted():
    assert run([[1, 1, 1], [2], [3, 3, 3, 3]], budget=100).padding_tokens == 4


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        (ValueError("no such thing\nsecond line"), Reason.MODEL_FAILED, "ValueError: no such thing"),
        (MemoryError("16 GiB"), Reason.OUT_OF_MEMORY, "MemoryError: 16 GiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            Reason.OUT_OF_MEMORY,
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), Reason.OUT_OF_MEMORY, "OutOfMemoryError: CUDA out of memory."),
    ],
)
def test_the_piece_at_fault_fails_alone(fault, reason, detail):
    pieces = [[1, 2], [3], [POISON, 1], [4, 4], [5]]
    done = run(pieces, Poisoned(fault), budget=100)
    assert {piece: (failure.reason, failure.detail) for piece, failure in done.failures.items()} == {
        2: (reason, detail)
    }
    assert np.isnan(done.values_PD[2]).all()
    others = [0, 1, 3, 4]
    assert done.values_PD[others].tolist() == [[sum(pieces[piece]), len(pieces[piece])] for piece in others]


def test_a_fault_among_many_costs_few_tries():
    forward = Poisoned(ValueError("no"))
    done = run([[1]] * 40 + [[POISON]] + [[2]] * 23, forward, budget=64)
    assert list(done.failures) == [40]
    assert forward.calls == 1 + 2 * 6  # halves of 64 down to 1


def test_memory_that_suffices_for_half_a_micro_batch_fails_nobody():
    def narrow(input_ids_BL, attention_mask_BL):
        if len(input_ids_BL) > 2:
            raise MemoryError
        return sums(input_ids_BL, attention_mask_BL)

    assert run([[1], [2], [3], [4], [5]], narrow, budget=100).failures == {}


class Narrow:
    """Has memory for so many padded tokens."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def __call__(self, input_ids_BL, attention_mask_BL):
        self.sizes.append(input_ids_BL.numel())
        if input_ids_BL.numel() > self.most:
            raise MemoryError
        return sums(input_ids_BL, attention_mask_BL)


def test_a_budget_that_memory_lowered_stays_lowered_in_later_units_and_is_told_once_a_unit():
    budget, forward = TokenBudget(64), Narrow(20)
    assert run([[1] * 4] * 16, forward, budget=budget).failures == {}
    assert (forward.sizes[0], budget.in_force, budget.told()) == (64, 16, 16)
    forward.sizes.clear()
    assert run([[1] * 4] * 16, forward, budget=budget).failures == {}
    assert (forward.sizes, budget.told()) == ([16, 16, 16, 16], 16)


def test_a_piece_that_does_not_fit_alone_lowers_nothing_for_later_units_though_it_is_told():
    budget, forward = TokenBudget(64), Narrow(31)
    done = run([[1] * 32, [2] * 32, [3] * 8], Narrow(31), budget=budget)
    assert {piece: failure.reason for piece, failure in done.failures.items()} == dict.fromkeys(
        [0, 1], Reason.OUT_OF_MEMORY
    )
    assert (budget.in_force, budget.told(), budget.told()) == (64, 32, None)
    assert run([[1] * 8] * 3, forward, budget=budget).failures == {}
    assert budget.told() is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 12).map(lambda length: [1] * length), min_size=1, max_size=30),
    st.integers(12, 200),
    st.integers(12, 60),
    st.booleans(),
)
def test_whatever_memory_allows_no_piece_that_fits_is_lost(pieces, tokens, most, again):
    budget = TokenBudget(tokens)
    for _ in range(1 + again):
        assert run(pieces, Narrow(most), budget=budget).failures == {}
    assert 1 <= budget.in_force <= tokens
    assert (budget.told() is None) == (budget.in_force == tokens)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_their_piece_alone(number):
    def broken(input_ids_BL, attention_mask_BL):
        values_BD = sums(input_ids_BL, attention_mask_BL)
        values_BD[(input_ids_BL == POISON).any(1), 0] = number
        return values_BD

    done = run([[1], [POISON], [3]], broken)
    assert list(done.failures) == [1]
    assert done.failures[1].reason == Reason.NON_FINITE_OUTPUT
    assert done.failures[1].detail == "1 of 2 numbers that the model gave are not finite"
    assert np.isnan(done.values_PD[1]).all()
    assert done.values_PD[[0, 2]].tolist() == [[1, 1], [3, 1]]


def test_each_try_is_told_before_it_runs():
    told: list[list[int]] = []
    forward = Poisoned(ValueError("no"))

    def listen(pieces):
        assert forward.calls == len(told)
        told.append(list(pieces))

    run([[1], [POISON], [2, 2]], forward, budget=6, about_to_run=listen)
    assert told == [[2, 0, 1], [2], [0, 1], [0], [1]]


def test_an_interrupt_ends_it():
    with pytest.raises(KeyboardInterrupt):
        run([[1], [POISON]], Poisoned(KeyboardInterrupt()))


def test_a_device_that_broke_is_not_blamed_on_rows():
    with pytest.raises(RunError, match="device-side assert"):
        run([[1], [POISON]], Poisoned(torch.AcceleratorError("CUDA error: device-side assert triggered", 710)))


def test_an_engine_that_cannot_go_on_is_not_blamed_on_rows():
    with pytest.raises(RunError, match="gave up"):
        run([[1], [POISON]], Poisoned(RunError("it gave up")))


def test_no_pieces_give_no_rows():
    assert run([]).values_PD.shape == (0, 2)


def test_token_types_are_padded_beside_the_ids():
    ids_P = [np.array([1, 2, 3], np.int32), np.array([4], np.int32)]
    types_P = [np.array([0, 1, 1], np.int32), np.array([1], np.int32)]

    def types(padded):
        assert set(padded.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
        return [padded.token_type_ids_BL[row, :length].tolist() for row, length in enumerate(padded.lengths_B)]

    ran = run_pieces(ids_P, types, token_budget=100, pad_id=PAD, device="cpu", types_P=types_P)
    assert ran.found_P == [[0, 1, 1], [1]]


def test_what_is_computed_of_a_piece_may_be_anything():
    ran = run_batches(
        np.array([3, 1, 2]), lambda batch: [f"piece {piece}" for piece in batch], token_budget=3, device="cpu"
    )
    assert ran.found_P == ["piece 0", "piece 1", "piece 2"]
    assert (ran.tokens, ran.padding_tokens) == (6, 0)
    assert ran.seconds > 0


def test_an_answer_for_too_few_pieces_is_nobodys_fault():
    with pytest.raises(ValueError, match="zip"):
        run_batches(np.array([1, 1]), lambda batch: ["one"], token_budget=9, device="cpu")


def test_after_memory_ran_out_the_other_micro_batches_are_halved_before_they_are_tried():
    tried = []

    def greedy(input_ids_BL, attention_mask_BL):
        tried.append(len(input_ids_BL))
        if len(input_ids_BL) > 19:
            raise MemoryError("out of memory")
        return sums(input_ids_BL, attention_mask_BL)

    done = run([[number] * 10 for number in range(128)], greedy, budget=640)
    assert done.values_PD.tolist() == [[10 * number, 10] for number in range(128)]
    assert tried == [64, 32, *[16] * 8]


def test_a_piece_that_memory_cannot_hold_makes_no_others_smaller():
    tried = []

    def greedy(input_ids_BL, attention_mask_BL):
        tried.append(len(input_ids_BL))
        if (input_ids_BL == POISON).any():
            raise MemoryError("out of memory")
        return sums(input_ids_BL, attention_mask_BL)

    done = run([[POISON] * 10, *[[1] * 10] * 63], greedy, budget=160)
    assert {piece: failure.reason for piece, failure in done.failures.items()} == {0: Reason.OUT_OF_MEMORY}
    assert tried[tried.index(1) + 1 :] == [1, 2, 4, 8, 16, 16, 16]


class Later(Pending[str]):
    """What comes when it is asked for, or a fault that comes then."""

    under_way = 0

    def __init__(self, found):
        self.found = found
        Later.under_way += 1

    def wait(self):
        Later.under_way -= 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_a_device_has_a_few_micro_batches_before_it_and_its_faults_come_late():
    most = []

    def compute(batch):
        found = Later(ValueError("no") if 5 in batch else [f"about {piece}" for piece in batch])
        most.append(Later.under_way)
        return found

    ran = run_batches(np.full(20, 3), compute, token_budget=9, device="cuda")
    assert ran.found_P == [None if piece == 5 else f"about {piece}" for piece in range(20)]
    assert ran.failures[5].detail == "ValueError: no"
    assert (max(most), Later.under_way) == (AHEAD, 0)
    most.clear()
    run_batches(np.full(20, 3), compute, token_budget=9, device="cuda", about_to_run=lambda _: None)
    assert max(most) == 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_threads_take_turns_on_a_gpu(device):
    inside, most, meet = [], [], threading.Barrier(2)

    def compute(batch):
        inside.append(batch)
        time.sleep(0.02)
        most.append(len(inside))
        inside.pop()
        return batch.tolist()

    def call():
        meet.wait()
        return run_batches(np.full(4, 9), compute, token_budget=9, device=device).found_P

    with ThreadPoolExecutor(2) as threads:
        found = [each.result() for each in [threads.submit(call), threads.submit(call)]]
    assert found == [[0, 1, 2, 3]] * 2
    assert max(most) == (1 if device == "cuda" else 2)


def test_groups_that_are_cut_once_more_are_filled_however_much_their_lengths_differ():
    lengths_P = np.array([5 * 2**power for power in range(6)] * 4)

    def together(passes):
        groups: list[int] = []

        def compute(batch):
            groups.append(len(batch))
            return [0] * len(batch)

        run_batches(lengths_P, compute, token_budget=5_000, passes=passes, device="cpu")
        return groups

    assert len(together(1)) > 1  # padding costs more than a micro-batch of their own
    assert together(8) == [24]
