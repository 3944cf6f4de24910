"""An encoder's layers over one row of tokens: only attention looks at texts.

    compute_in_rows(model)      # BERT and its like, DistilBERT; where nothing is trained

Of B texts of at most L tokens, a layer's products take B x L rows.

On a CPU nearly every micro-batch of a unit has another number of them, and oneDNN makes a product anew for each number
that it meets: 30 ms for those of MiniLM, a fifth of the time in the first seconds of an actor. Filled up to the next
multiple of 64, the numbers come again.

On a GPU the row holds the real tokens alone, one text after another, and attention goes by where each begins: no
padding is computed (MiniLM on an H100: 9.1 million tokens/s, 6.4 with padding and a mask).

A graph of OpenVINO holds them so too, filled up, and is told where each stands (`graph_rows`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.models.attention import PACKED, PLAIN
from pipeline.models.graph_attention import GRAPH
from pipeline.workers import Device

GRAIN = 64
"""Rows are filled up to a multiple of it: 32 more on average, of 2,048."""

_LAYERS = {
    "BertModel": "encoder",
    "RobertaModel": "encoder",
    "XLMRobertaModel": "encoder",
    "ElectraModel": "encoder",
    "CamembertModel": "encoder",
    "DistilBertModel": "transformer",
}
"""Where the layers of a family lie. They pass on what they do not know to their attention."""


class Rows(ABC):
    """The tokens of B texts of at most L tokens as T rows."""

    @abstractmethod
    def joined(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """values_1TX; of one token of each text, values_B1X: values_1BX."""

    @abstractmethod
    def split(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """values_BLX; of values_1BX of one token of each text: values_B1X."""

    @abstractmethod
    def first(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """The first token of each text: values_1BX."""


@dataclass(frozen=True, slots=True)
class FilledRows(Rows):
    """B texts padded to L tokens each, the last rows of no text."""

    texts: int
    tokens: int  # of each text

    @property
    def count(self) -> int:
        """T."""
        return -(-self.texts * self.tokens // GRAIN) * GRAIN

    def joined(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """Rows of no text are 0."""
        texts, tokens, *rest = values_BLX.shape
        if tokens < self.tokens:
            return values_BLX.reshape(1, texts * tokens, *rest)
        joined_1TX = values_BLX.new_empty(1, self.count, *rest)
        joined_1TX[0, : texts * tokens].view(values_BLX.shape).copy_(values_BLX)
        joined_1TX[0, texts * tokens :] = 0
        return joined_1TX

    def split(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """A view."""
        held = values_1TX.shape[1]
        taken = held if held == self.texts else self.texts * self.tokens
        return values_1TX[0, :taken].view(self.texts, -1, *values_1TX.shape[2:])

    def first(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """As they come."""
        return self.split(values_1TX)[:, 0][None]


@dataclass(frozen=True, slots=True)
class PackedRows(Rows):
    """The real tokens of B texts, one text after another."""

    texts: int
    tokens: int  # of the longest text
    places_T: torch.Tensor  # of each real token among B x L
    starts_B1: torch.Tensor  # int32: where each text begins among T, and T

    @classmethod
    def of(cls, lengths_B: Sequence[int] | npt.NDArray[np.integer], device: Device) -> "PackedRows":
        """Those of texts of so many tokens."""
        lengths = np.asarray(lengths_B)
        real_BL = np.arange(lengths.max()) < lengths[:, None]
        starts_B1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(len(lengths), real_BL.shape[1], brought(np.flatnonzero(real_BL), device), brought(starts_B1, device))

    def joined(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """Padding is left out."""
        values_NX = values_BLX.flatten(0, 1)
        return (values_NX if values_BLX.shape[1] < self.tokens else values_NX[self.places_T])[None]

    def split(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """Padding is 0."""
        if values_1TX.shape[1] == self.texts:
            return values_1TX[0][:, None]
        values_NX = values_1TX.new_zeros(self.texts * self.tokens, *values_1TX.shape[2:])
        values_NX[self.places_T] = values_1TX[0]
        return values_NX.view(self.texts, self.tokens, *values_1TX.shape[2:])

    def first(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """Where each text begins."""
        return values_1TX[:, self.starts_B1[:-1]]


@dataclass(frozen=True, slots=True)
class LaidRows(Rows):
    """The real tokens of B texts, one text after another, and rows that fill up: what a graph is traced with.

    Shapes and places are all tensors', so that a graph made of one micro-batch takes any other.
    """

    mask_BL: torch.Tensor
    places_N: torch.Tensor  # of each of B x L places, its row
    places_T: torch.Tensor  # of each row, its place

    def joined(self, values_BLX: torch.Tensor) -> torch.Tensor:
        """Padding is left out."""
        if values_BLX.shape[1] < self.mask_BL.shape[1]:
            return values_BLX.flatten(0, 1)[None]
        return values_BLX.flatten(0, 1).index_select(0, self.places_T)[None]

    def split(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """Padding is any token's."""
        if values_1TX.shape[1] == self.mask_BL.shape[0]:
            return values_1TX[0][:, None]
        values_NX = values_1TX[0].index_select(0, self.places_N)
        return values_NX.view(*self.mask_BL.shape, *values_1TX.shape[2:])

    def first(self, values_1TX: torch.Tensor) -> torch.Tensor:
        """Where each text begins."""
        return values_1TX[0].index_select(0, self.places_N.view(self.mask_BL.shape)[:, 0])[None]


def brought(values: npt.NDArray[Any], device: Device) -> torch.Tensor:
    """The numbers on the device; a GPU takes them from pinned memory while the processor goes on."""
    tensor = torch.from_numpy(values)
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def can_compute_in_rows(model: nn.Module) -> bool:
    """Whether the model is of a family whose layers may compute so."""
    base = getattr(model, "base_model", None)
    if not isinstance(base, nn.Module) or not type(base).__module__.startswith("transformers."):
        return False
    return type(base).__name__ in _LAYERS and not getattr(base.config, "is_decoder", False)


def head_size(model: nn.Module) -> int:
    """Numbers of an attention's head, of a model of these families."""
    config: Any = model.config
    return int(config.hidden_size) // int(config.num_attention_heads)


def compute_in_rows(model: nn.Module) -> bool:
    """Compute so from now on, in place; False where the model is of another family, and stays.

    Its attention is plain, packed or a graph's already. A packed model takes `rows` beside its inputs, and computes as
    ever without; a graph's has to have them.
    """
    if not can_compute_in_rows(model):
        return False
    base: Any = model.base_model
    way = _WAYS.get(base.config._attn_implementation)
    if way is None:
        return False
    stack = _stack(base)
    stack.forward = MethodType(way, stack)
    return True


def compute_side_by_side(model: nn.Module) -> None:
    """Compute as ever again, in place, what `compute_in_rows` changed."""
    base: Any = model.base_model
    del _stack(base).forward


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a model of these families, in their order."""
    base: Any = model.base_model
    found: nn.ModuleList = _stack(base).layer
    return found


def _stack(base: nn.Module) -> Any:
    return getattr(base, _LAYERS[type(base).__name__])


def _in_filled_rows(
    layers: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **options: Any
) -> Any:
    masks_keys_alone = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
    looked_at = options.get("output_hidden_states")  # as they are
    if looked_at or not masks_keys_alone or not _may_join(hidden_states):
        return type(layers).forward(layers, hidden_states, attention_mask, **options)
    return _in(FilledRows(*hidden_states.shape[:2]), layers, hidden_states, attention_mask, **options)


def _in_packed_rows(
    layers: Any,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    rows: PackedRows | None = None,
    **options: Any,
) -> Any:
    if rows is None or not _may_join(hidden_states):
        return type(layers).forward(layers, hidden_states, attention_mask, **options)
    return _in(rows, layers, hidden_states, None, **options)


def _in_laid_rows(
    layers: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor, *, rows: LaidRows, **options: Any
) -> Any:
    return _in(rows, layers, hidden_states, attention_mask, **options)


def _may_join(hidden_BLD: torch.Tensor) -> bool:
    # Of texts of one token the first cannot be told from all of them.
    return not torch.is_grad_enabled() and hidden_BLD.shape[1] > 1


def _in(rows: Rows, layers: Any, hidden_BLD: torch.Tensor, mask: torch.Tensor | None, **options: Any) -> Any:
    found = type(layers).forward(layers, rows.joined(hidden_BLD), mask, rows=rows, **options)
    found.last_hidden_state = rows.split(found.last_hidden_state)
    return found


_WAYS: Mapping[str, Callable[..., Any]] = {PLAIN: _in_filled_rows, PACKED: _in_packed_rows, GRAPH: _in_laid_rows}
"""By what computes the attention."""
