"""The float32 masters of bfloat16 weights are torch's own AdamW."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training import masters
from pipeline.training.masters import MasterAdamW

LR, DECAY = 3e-3, 0.1


def _gradients(steps: int, rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, 7, generator=generator).bfloat16() for _ in range(steps)]


def _trained(optimizer: torch.optim.Optimizer, weights: torch.Tensor, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        weights.grad = gradient.to(weights.dtype)
        optimizer.step()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20))
def test_masters_are_what_torch_keeps_of_a_float32_model(steps: int, rows: int) -> None:
    begun = torch.randn(rows, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    low, high = torch.nn.Parameter(begun.clone()), torch.nn.Parameter(begun.float())
    ours = MasterAdamW([low], lr=LR, weight_decay=DECAY)
    torchs = torch.optim.AdamW([high], lr=LR, weight_decay=DECAY, fused=True)
    gradients = _gradients(steps, rows)
    _trained(ours, low, gradients)
    _trained(torchs, high, gradients)
    torch.testing.assert_close(ours.state[low]["master"], high.detach(), rtol=0, atol=0)
    torch.testing.assert_close(low.detach(), high.detach().bfloat16(), rtol=0, atol=0)


def test_updates_too_small_for_bfloat16_add_up() -> None:
    weights = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weights], lr=1e-4)
    _trained(optimizer, weights, [torch.ones(4)] * 100)
    torch.testing.assert_close(weights.detach().float(), torch.full((4,), 0.99), rtol=0, atol=4e-3)


def test_groups_have_a_decay_and_a_rate_of_their_own() -> None:
    first, second = (torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = MasterAdamW([{"params": [first], "weight_decay": 0.5}, {"params": [second]}], lr=0.1)
    for each in (first, second):
        each.grad = torch.zeros(3, dtype=torch.bfloat16)
    optimizer.step()
    assert optimizer.state[first]["master"].tolist() == pytest.approx([0.95] * 3)
    assert optimizer.state[second]["master"].tolist() == [1.0] * 3


def test_a_parameter_without_gradient_stays() -> None:
    weights = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weights])
    optimizer.step()
    assert weights.tolist() == [1.0] * 3
    assert not optimizer.state


@pytest.mark.parametrize("before", [1, 5])
def test_a_saved_state_goes_on_bit_by_bit(before: int) -> None:
    gradients = _gradients(9, 5)
    whole = torch.nn.Parameter(torch.ones(5, 7, dtype=torch.bfloat16))
    _trained(MasterAdamW([whole], lr=LR, weight_decay=DECAY), whole, gradients)

    first = torch.nn.Parameter(torch.ones(5, 7, dtype=torch.bfloat16))
    optimizer = MasterAdamW([first], lr=LR, weight_decay=DECAY)
    _trained(optimizer, first, gradients[:before])
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)

    second = torch.nn.Parameter(first.detach().clone())
    resumed = MasterAdamW([second], lr=1.0, weight_decay=0.0)
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    assert all(each.dtype == torch.float32 for each in resumed.state[second].values())
    _trained(resumed, second, gradients[before:])
    torch.testing.assert_close(second.detach(), whole.detach(), rtol=0, atol=0)


def test_many_parameters_step_as_each_alone_would() -> None:
    sizes = [3, 5, 0, 70, 9, 2]
    apart = [torch.nn.Parameter(torch.randn(size).bfloat16()) for size in sizes]
    together = [torch.nn.Parameter(each.detach().clone()) for each in apart]
    optimizers = [*(MasterAdamW([each], lr=LR, weight_decay=DECAY) for each in apart)]
    several = MasterAdamW(together, lr=LR, weight_decay=DECAY)
    for _ in range(3):
        for one, other in zip(apart, together, strict=True):
            one.grad = torch.randn(one.shape).bfloat16()
            other.grad = one.grad.clone()
        together[1].grad = apart[1].grad = None
        for optimizer in [*optimizers, several]:
            optimizer.step()
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one, other)


def test_gradients_are_cast_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masters, "AT_ONCE", 10)
    parameters = [torch.zeros(size) for size in (4, 6, 1, 30, 2, 8, 0, 1)]
    assert [[len(each) for each in group] for group in masters._together(parameters)] == [
        [4, 6],
        [1],
        [30],
        [2, 8, 0],
        [1],
    ]
