"""Dropout by bytes: the right share, the right expectation, the right way back, and the same masks by the same seed."""

import pytest
import torch
from torch import nn

from pipeline.training.dropout import ByteDropout, set_attention_dropout, use_byte_dropout

SHARES = [0.05, 0.1, 0.3, 0.5, 0.9]
MANY = 400_000


@pytest.mark.parametrize("share", SHARES)
def test_the_share_is_asked_for_to_a_256th_and_the_mean_is_kept(share: float) -> None:
    torch.manual_seed(3)
    dropped = ByteDropout(share).train()(torch.ones(MANY))
    zeros = float((dropped == 0).float().mean())
    assert zeros == pytest.approx(share, abs=1 / 512 + 4 * (share * (1 - share) / MANY) ** 0.5)
    spread = (share / (1 - share) / MANY) ** 0.5  # of the mean, by the variance of a kept element
    assert float(dropped.mean()) == pytest.approx(1, abs=5 * spread)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_way_back_goes_through_the_same_mask(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    values = torch.randn(7, 33).to(dtype).requires_grad_()
    dropped = ByteDropout(0.3).train()(values)
    dropped.sum().backward()
    assert values.grad is not None
    assert values.grad.dtype == dtype
    kept = dropped.detach() != 0
    assert bool((values.grad[~kept] == 0).all())
    torch.testing.assert_close(values.grad * values.detach(), dropped.detach())


def test_the_seed_decides_the_mask() -> None:
    dropout, values = ByteDropout(0.5).train(), torch.ones(1000)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append([dropout(values), dropout(values)])
    assert torch.equal(masks[0][0], masks[1][0])
    assert torch.equal(masks[0][1], masks[1][1])
    assert not torch.equal(masks[0][0], masks[0][1])
    assert not torch.equal(masks[0][0], masks[2][0])


def test_outside_of_training_nothing_is_dropped_and_no_number_drawn() -> None:
    values = torch.ones(50)
    before = torch.get_rng_state()
    assert ByteDropout(0.5).eval()(values) is values
    assert ByteDropout(0.0).train()(values) is values
    assert torch.equal(torch.get_rng_state(), before)


def test_a_share_of_one_leaves_nothing() -> None:
    values = torch.ones(50, requires_grad=True)
    assert float(ByteDropout(1.0).train()(values).detach().sum()) == 0


@pytest.mark.parametrize("shape", [(), (1,), (8,), (9,), (3, 5, 7), (0, 4)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    assert ByteDropout(0.5).train()(torch.ones(shape)).shape == shape


def test_every_dropout_of_a_model_is_replaced_wherever_it_is() -> None:
    shared = nn.Dropout(0.2)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(shared, nn.ModuleList([nn.Dropout(0.4)])), shared)
    use_byte_dropout(model)
    shares = [module.p for module in model.modules() if isinstance(module, ByteDropout)]
    assert sorted(set(shares)) == [0.2, 0.4]
    assert not any(type(module) is nn.Dropout for module in model.modules())


def test_attention_alone_gets_another_dropout() -> None:
    class TinyAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.1)
            self.attention_dropout = 0.1

    elsewhere, attention = nn.Dropout(0.1), TinyAttention()
    set_attention_dropout(nn.Sequential(elsewhere, attention), 0.0)
    assert elsewhere.p == 0.1
    assert attention.dropout.p == 0.0
    assert attention.attention_dropout == 0.0
