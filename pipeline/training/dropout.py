"""Dropout on a CPU, without the wait: torch draws its masks there number by number, on one core.

    use_byte_dropout(model)       # every nn.Dropout becomes a ByteDropout; on a GPU torch's own is fast

A mask is one random byte an element, compared with a bound, so a share is a multiple of 1/256; what is kept is scaled
by the share that is truly kept, so the expectation is exact. The bytes come from NumPy's SFC64, seeded by torch's
generator: whoever seeds torch before a step gets the same masks.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

_STEPS = 256


class ByteDropout(nn.Module):
    """Zeroes each element with a probability, and scales the others (Srivastava et al. 2014)."""

    def __init__(self, share: float) -> None:
        """`share`: of the elements that are zeroed."""
        super().__init__()
        self.p = share
        self.bound = round(share * _STEPS)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The values as they are outside of training."""
        if not self.training or self.bound == 0:
            return values
        if self.bound >= _STEPS:
            return values * 0
        seed = int(torch.randint(2**62, ()).item())
        drawn = np.random.SFC64(seed).random_raw(-(-values.numel() // 8)).view(np.uint8)[: values.numel()]
        kept = torch.from_numpy(drawn).ge(self.bound).view(values.shape)
        dropped: torch.Tensor = _Masked.apply(values, kept, _STEPS / (_STEPS - self.bound))  # type: ignore[no-untyped-call]
        return dropped


class _Masked(torch.autograd.Function):
    """values * kept * scale, with one byte an element kept for the way back."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        context.save_for_backward(kept)
        context.scale = scale
        return values * kept.to(values.dtype).mul_(scale)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        (kept,) = context.saved_tensors
        return gradient * kept.to(gradient.dtype).mul_(context.scale), None, None


def use_byte_dropout(model: nn.Module) -> None:
    """Replace every nn.Dropout, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, ByteDropout(child.p))


def set_attention_dropout(model: nn.Module, share: float) -> None:
    """Dropout of attention, in place: a mask for each pair of tokens costs more than the attention itself."""
    for module in model.modules():
        if "Attention" not in type(module).__name__:
            continue
        for name in ("dropout", "dropout_p", "attention_dropout", "dropout_prob", "attn_dropout"):
            held = getattr(module, name, None)
            if isinstance(held, float):
                setattr(module, name, share)
            elif isinstance(held, nn.Dropout):
                setattr(module, name, nn.Dropout(share))
