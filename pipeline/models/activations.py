"""Activations in one pass over the numbers, where a family writes them as a formula.

    use_fused_activations(model)        # in place; for numbers of few bits, whose rounding at each step it spares

GELU's approximation by tanh (Hendrycks and Gimpel 2016), as GPT-2 and T5 v1.1 have it, is eight passes in transformers:
as long as a product of the layer around it takes on a CPU.

    activate_in_place(model)            # in place; where nothing is trained, of what computes in rows

The product before it is read by nothing else, and is the largest numbers of a layer but for its scores.
"""

from typing import cast

import torch
from torch import nn
from transformers.activations import GELUActivation, NewGELUActivation


def use_fused_activations(model: nn.Module) -> None:
    """Replace what torch has a kernel for."""
    for holder in model.modules():
        for name, part in holder.named_children():
            if type(part) is NewGELUActivation:
                setattr(holder, name, nn.GELU(approximate="tanh"))


def is_gelu(part: nn.Module | None) -> bool:
    """Whether it is the exact one, which is what oneDNN computes."""
    exact = isinstance(part, nn.GELU) and part.approximate == "none"
    return exact or isinstance(part, GELUActivation | _GeluInPlace)


class _GeluInPlace(nn.Module):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", torch.ops.aten.gelu_(input))


def activate_in_place(model: nn.Module) -> None:
    """GELU's numbers take the place of what they are of, bit for bit what they were."""
    for holder in model.modules():
        for name, part in holder.named_children():
            if type(part) is GELUActivation:
                setattr(holder, name, _GeluInPlace())
