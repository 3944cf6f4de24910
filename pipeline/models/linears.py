"""Linear layers on a CPU, ready for its matrix unit: weights laid out once, and layers that read the same side by side.

    prepare_linears(model)          # in place; for bfloat16, of what reads or writes: nothing can be trained afterwards

Torch lays weights out anew in each product, and makes three small products of a query, a key and a value that one
larger product gives: a quarter of the time of an encoder's linear layers (MiniLM, 2,048 tokens, AMX). What comes is the
same sum in another order.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import cast

import torch
from torch import nn

from pipeline.models.device import default_budget

_BESIDE = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"), ("q", "k", "v"))
"""What the families call the three layers of an attention."""

_LOOKS_ELSEWHERE = frozenset({"EncDecAttention", "encoder_attn", "crossattention", "cross_attention"})
"""What an attention of a decoder is called whose keys and values are an encoder's, and its query another's."""


class PreparedLinear(nn.Module):
    """Linear layers of one input, as one product."""

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        """Lay out their weights side by side."""
        super().__init__()
        weights = torch.cat([linear.weight.detach() for linear in linears])
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weights, default_budget("cpu"))
        biases = [linear.bias for linear in linears]
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.weight = weights.new_empty(0)  # some families look at its type
        self.in_features, self.out_features = weights.shape[1], weights.shape[0]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return cast("torch.Tensor", torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], ""))

    def activated(self, input: torch.Tensor, activation: str, approximation: str) -> torch.Tensor:
        """The activation of the output, by oneDNN's names, before it is rounded."""
        return cast(
            "torch.Tensor",
            torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, activation, [], approximation),
        )

    def added_to(self, sums: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """The output and numbers of its shape, before they are rounded."""
        return cast(
            "torch.Tensor", torch.ops.mkldnn._linear_pointwise.binary(input, sums, self.packed, self.bias, "add")
        )

    def times(self, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The output times numbers of its shape, before they are rounded."""
        return cast(
            "torch.Tensor", torch.ops.mkldnn._linear_pointwise.binary(input, other, self.packed, self.bias, "mul")
        )


class _Together:
    """A product of several layers, which are asked for one after the other."""

    def __init__(self, product: nn.Module, layers: int) -> None:
        self.product, self._layers = product, layers
        self._input: torch.Tensor | None = None
        self._output: torch.Tensor | None = None
        self._taken = 0

    def columns(self, input: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self._output is None or self._input is not input:
            self._input, self._output, self._taken = input, self.product(input), 0
        found = self._output[..., start:stop]
        self._taken += 1
        if self._taken == self._layers:  # a batch's numbers are not kept until the next
            self._input = self._output = None
        return found


class OneOfSeveral(nn.Module):
    """One of the layers whose product is computed together: the first that is asked computes it."""

    def __init__(self, together: _Together, linear: nn.Linear, start: int) -> None:
        """Its columns begin at `start`."""
        super().__init__()
        self._together, self._start = together, start
        self.weight = linear.weight.detach().new_empty(0)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    @property
    def product(self) -> nn.Module:
        """All of them, side by side."""
        return self._together.product

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        return self._together.columns(input, self._start, self._start + self.out_features)


def prepare_linears(model: nn.Module) -> None:
    """Prepare the linear layers of the body of a transformers model, in place; none where this torch cannot.

    Heads stay as they are: some compute with the weights themselves (MobileBERT's for words), and so may code that is
    not of transformers. T5's goes along, whose body is the whole model.
    """
    body = body_of(model)
    if body is None or not _can_prepare():
        return
    for holder, several in beside(body):
        if all(linear.weight.dtype == torch.bfloat16 for linear in several.values()):
            replace_linears(holder, several, PreparedLinear)


def body_of(model: nn.Module) -> nn.Module | None:
    """A transformers model without its head; None of code that is not of transformers."""
    body = getattr(model, "base_model", None)
    return body if isinstance(body, nn.Module) and type(body).__module__.startswith("transformers.") else None


def holders(body: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a body that may hold linear layers, with their places; none of those, that are to be replaced."""
    return [(place, part) for place, part in body.named_modules() if type(part) is not nn.Linear]


def beside(body: nn.Module) -> Iterator[tuple[nn.Module, dict[str, nn.Linear]]]:
    """The linear layers of a body, those that read the same together, by their names in the module that holds them."""
    for place, holder in holders(body):
        layers = {name: part for name, part in holder.named_children() if type(part) is nn.Linear}
        # Who computes its attention in a way of its own reads the query of fewer tokens.
        query_apart = "forward" in vars(holder) or not _LOOKS_ELSEWHERE.isdisjoint(place.split("."))
        for names in _BESIDE:
            several = {name: layers.pop(name) for name in names[query_apart:] if name in layers}
            if len({(linear.in_features, linear.bias is None) for linear in several.values()}) == 1:
                yield holder, several
            else:
                layers |= several
        for name, part in layers.items():
            yield holder, {name: part}


@cache
def _can_prepare() -> bool:
    """Whether this torch has oneDNN's products of bfloat16: its builds for other processors may not."""
    try:
        with torch.inference_mode():
            PreparedLinear([nn.Linear(32, 32, dtype=torch.bfloat16)])(torch.zeros(1, 32, dtype=torch.bfloat16))
    except (AttributeError, RuntimeError):
        return False
    return True


def replace_linears(
    holder: nn.Module, several: dict[str, nn.Linear], product: Callable[[Sequence[nn.Linear]], nn.Module]
) -> None:
    """Put a product of these layers in their place, each of which gives its columns."""
    linears = list(several.values())
    if len(linears) == 1:
        setattr(holder, next(iter(several)), product(linears))
        return
    together = _Together(product(linears), len(linears))
    start = 0
    for name, linear in several.items():
        setattr(holder, name, OneOfSeveral(together, linear, start))
        start += linear.out_features
