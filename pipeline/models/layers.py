"""An encoder's layers with few passes over the numbers between their products.

    compute_in_rows(model); prepare_linears(model)      # or quantize_linears before
    fuse_layers(model)                                  # in place; BERT and its like, DistilBERT; nothing is trained

What a product gives is added to what the layer read as it is computed. In int8 the sums stay in float32, over which
torch's passes take half as long as over bfloat16; a product takes no longer for it. And transformers' own layers
inspect a signature at each call, 0.2 ms of the 20 that one takes in int8.

T tokens of all texts, X numbers of each.
"""

from typing import Any

import torch
from torch import nn

from pipeline.errors import RunError
from pipeline.models.activations import is_gelu
from pipeline.models.attention import plain_attention
from pipeline.models.int8 import QuantizedLinear
from pipeline.models.linears import OneOfSeveral, PreparedLinear
from pipeline.models.rows import FilledRows, head_size, layers_of

Product = QuantizedLinear | PreparedLinear

_PARTS = (
    (
        "attention.self",
        "query",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "intermediate.intermediate_act_fn",
        "output.dense",
        "output.LayerNorm",
    ),
    (
        "attention",
        "q_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.activation",
        "ffn.lin2",
        "output_layer_norm",
    ),
)
"""What the families of `can_compute_in_rows` call the attention, its query, and what follows in its order."""


class FusedLayer(nn.Module):
    """Attention, then feed-forward, each added to what it read and normalised.

    An input in float32 is overwritten; only such a layer gives one. So whoever asks for hidden states is refused.
    """

    def __init__(
        self,
        reads: Product,
        writes: Product,
        first_norm: nn.LayerNorm,
        first: Product,
        activation: nn.Module,
        second: Product,
        second_norm: nn.LayerNorm,
        head_size: int,
    ) -> None:
        """`reads` gives query, key and value side by side."""
        super().__init__()
        self._sums = torch.float32 if isinstance(reads, QuantizedLinear) else torch.bfloat16
        self.reads, self.writes, self.first, self.second = reads, writes, first, second
        self.first_norm, self.second_norm = first_norm.to(self._sums), second_norm.to(self._sums)
        self.activation, self._head_size = activation, head_size
        self._gives = torch.bfloat16

    def precede(self, other: "FusedLayer") -> None:
        """Tell it that the other one takes what it gives."""
        self._gives = other._sums

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *others: Any,  # noqa: ARG002 - a decoder's
        rows: FilledRows | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """values_1TX of values_1TX; without rows, values_BLX of texts side by side.

        Raises RunError: transformers' `output_hidden_states`, which finds none of its own layers to look at.
        """
        if options.get("output_hidden_states"):
            raise RunError(
                "output_hidden_states: True, and on a CPU an encoder in bfloat16 or int8 overwrites what its layers "
                "give: set `dtype: float32`, or read last_hidden_state"
            )
        sums: torch.Tensor = hidden_states.to(self._sums)
        heads = self.reads(sums).view(*sums.shape[:2], 3, -1, self._head_size)
        query, key, value = (each.transpose(1, 2) for each in heads.unbind(2))
        found, _ = plain_attention(self, query, key, value, attention_mask, rows=rows)
        sums = self.first_norm(self.writes.added_to(sums, found.flatten(2)))
        sums = self.second_norm(self.second.added_to(sums, self._expanded(sums)))
        return sums.to(self._gives)

    def _expanded(self, sums: torch.Tensor) -> torch.Tensor:
        if isinstance(self.first, PreparedLinear) and is_gelu(self.activation):
            return self.first.activated(sums, "gelu", "none")
        expanded: torch.Tensor = self.activation(self.first(sums))
        return expanded


def fuse_layers(model: nn.Module) -> int:
    """Fuse the layers whose products are all prepared, or all quantised, in place; how many they are.

    The model computes in rows. A layer that computes its attention in a way of its own stays.
    """
    layers = layers_of(model)
    for place, layer in enumerate(layers):
        fused = _fused(layer, head_size(model))
        if fused is None:
            continue
        layers[place] = fused
        if place and isinstance(before := layers[place - 1], FusedLayer):
            before.precede(fused)
    return sum(isinstance(layer, FusedLayer) for layer in layers)


def _fused(layer: nn.Module, size: int) -> FusedLayer | None:
    inside: dict[str, Any] = dict(layer.named_modules())
    for attention, query, *names in _PARTS:
        if not all(name in inside for name in (f"{attention}.{query}", *names)):
            continue
        together = inside[f"{attention}.{query}"]
        if "forward" in vars(inside[attention]) or not isinstance(together, OneOfSeveral):
            return None
        writes, first_norm, first, activation, second, second_norm = (inside[name] for name in names)
        reads: Any = together.product
        kinds = {type(each) for each in (reads, writes, first, second)}
        plain = type(first_norm) is type(second_norm) is nn.LayerNorm
        if kinds not in ({QuantizedLinear}, {PreparedLinear}) or reads.out_features != 3 * reads.in_features:
            return None
        return FusedLayer(reads, writes, first_norm, first, activation, second, second_norm, size) if plain else None
    return None
