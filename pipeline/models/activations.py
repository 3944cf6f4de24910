"""Activations in one pass over the numbers, where a family writes them as a formula.

    use_fused_activations(model)        # in place; for numbers of few bits, whose rounding at each step it spares

GELU's approximation by tanh (Hendrycks and Gimpel 2016), as GPT-2 and T5 v1.1 have it, is eight passes in transformers:
as long as a product of the layer around it takes on a CPU.
"""

from torch import nn
from transformers.activations import NewGELUActivation


def use_fused_activations(model: nn.Module) -> None:
    """Replace what torch has a kernel for."""
    for holder in model.modules():
        for name, part in holder.named_children():
            if type(part) is NewGELUActivation:
                setattr(holder, name, nn.GELU(approximate="tanh"))
