"""T5 on a CPU, for those who write: its layers called straight, over real tokens, without a module between.

    use_t5_layers(model)        # T5 and mT5; other families stay as they are
    layers_of(model) -> T5Layers | None

    layers.encoded([[21603, 10, …, 1], …]) -> Encoded(states_TD, starts=[0, 104, …])
    layers.decoder[0].keys_values(states_TD) -> keys_TI, values_TI

What comes is what transformers' own modules give, which stay, for beams and for all else. It is rounded at fewer
places: what the layers add up is kept in float32, which costs nothing and brings all nearer to a model in float32. The
encoder's products take the texts' tokens one after another, each text filled up to a multiple of 8, and its attention
takes text by text: no scores of padding, and those of a text stay in the cache. The decoder's steps stand in
`pipeline.models.generation.t5_batch`.

B texts, T tokens of all, D numbers of a token, H heads, Q queries, S keys, W numbers of a head, I = H x W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from pipeline.models.linears import OneOfSeveral, PreparedLinear
from pipeline.text.tokens import Ids

_FAMILIES = frozenset({"T5ForConditionalGeneration", "MT5ForConditionalGeneration"})

GRAIN = 8
"""A text's tokens are filled up to a multiple of it: oneDNN makes a product anew for each number that it meets."""

_TOKENS_GRAIN = 64
"""The same of all texts' tokens together."""

_QUERIES_AT_ONCE = 1024
"""Of a text: the scores that are held are at most so many times its tokens, for each head."""

Several = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
"""Linear layers of the same input; each gives its output."""


def filled(count: int, grain: int = GRAIN) -> int:
    """The next multiple."""
    return -(-count // grain) * grain


@dataclass(frozen=True, slots=True)
class Encoded:
    """The encoder's states of some texts, one after another."""

    states_TD: torch.Tensor
    starts: list[int]  # where each text begins
    lengths: list[int]  # its real tokens
    padding_tokens: int


class Norm:
    """The root of the mean square: no mean is taken off, and there is no bias (Zhang and Sennrich 2019)."""

    def __init__(self, norm: Any) -> None:
        """As the module has it."""
        self._weight_D: torch.Tensor = norm.weight
        self._least = float(norm.variance_epsilon)

    def __call__(self, values_ND: torch.Tensor) -> torch.Tensor:
        """Of float32, in the weight's format: rounded before the weight, as in T5."""
        lengths_N1: torch.Tensor = torch.linalg.vector_norm(values_ND, dim=-1, keepdim=True)
        means_N1 = lengths_N1.square_().mul_(1 / values_ND.shape[-1])
        normed_ND: torch.Tensor = values_ND * means_N1.add_(self._least).rsqrt_()
        return normed_ND.to(self._weight_D.dtype).mul_(self._weight_D)


class FeedForward:
    """The layer after an attention, with what it adds to."""

    def __init__(self, layer: Any) -> None:
        """As the module has it."""
        inner = layer.DenseReluDense
        self._norm = Norm(layer.layer_norm)
        self._is_gated = hasattr(inner, "wi_0")
        self._first = inner.wi_0 if self._is_gated else inner.wi
        self._gate = inner.wi_1 if self._is_gated else None
        self._last, self._activation = inner.wo, inner.act

    def __call__(self, values_ND: torch.Tensor) -> None:
        """Add to values_ND, in place, what the layer says."""
        normed_ND = self._norm(values_ND)
        inner_NF = _activated(self._first, self._activation, normed_ND)
        if self._gate is not None:
            inner_NF = _times(self._gate, normed_ND, inner_NF)
        values_ND += self._last(inner_NF)


class PositionBias:
    """What is added to a score for how far a key lies from its query."""

    def __init__(self, attention: Any) -> None:
        """By the attention that has the weights: the first of a stack."""
        self._attention = attention
        self._reach = 0
        self._by_distance_HX = torch.empty(0)  # of keys _reach - 1 before a query to _reach - 1 after it

    def square(self, size: int, start: int, stop: int) -> torch.Tensor:
        """bias_HQS of the queries from `start` to `stop` among `size` keys."""
        first = self._known(size) - stop  # of the last query's distances; those of the one before begin one later
        windows_HQS = self._by_distance_HX[:, first : first + size + stop - start - 1].unfold(1, size, 1)
        return windows_HQS.flip(1)

    def last(self, size: int) -> torch.Tensor:
        """bias_HS of the last of `size` keys as a query."""
        first = self._known(size) - size
        return self._by_distance_HX[:, first : first + size]

    def _known(self, size: int) -> int:
        if size > self._reach:
            self._reach = max(2 * self._reach, filled(size, _TOKENS_GRAIN))
            told_1H1X = self._attention.compute_bias(1, 2 * self._reach - 1, past_seen_tokens=self._reach - 1)
            self._by_distance_HX = told_1H1X[0, :, 0].contiguous()
        return self._reach


class _EncoderLayer:
    def __init__(self, block: Any) -> None:
        attention = block.layer[0].SelfAttention
        self._norm = Norm(block.layer[0].layer_norm)
        self._together = together(attention.q, attention.k, attention.v)
        self._out = attention.o
        self._heads = attention.n_heads
        self._feed = FeedForward(block.layer[1])

    def __call__(self, values_TD: torch.Tensor, texts: "_Texts") -> None:
        query_HTW, key_HTW, value_HTW = (
            each_TI.view(len(each_TI), self._heads, -1).transpose(0, 1)
            for each_TI in self._together(self._norm(values_TD))
        )
        found_THW = query_HTW.new_empty(query_HTW.shape[1], self._heads, query_HTW.shape[2])
        found_THW[texts.tokens :] = 0
        found_HTW = found_THW.transpose(0, 1)
        for start, stop, biases in texts.each():
            key_HWS = key_HTW[:, start:stop].transpose(1, 2)
            value_HSW = value_HTW[:, start:stop]
            for first, last, bias_HQS in biases:
                queries = slice(start + first, start + last)
                shares_HQS = torch.softmax(torch.baddbmm(bias_HQS, query_HTW[:, queries], key_HWS), -1)
                torch.bmm(shares_HQS, value_HSW, out=found_HTW[:, queries])
        values_TD += self._out(found_THW.flatten(1))
        self._feed(values_TD)


class _Texts:
    """Where texts lie among the tokens, and what is added to their scores."""

    def __init__(self, lengths: Sequence[int], bias: PositionBias) -> None:
        self.lengths = list(lengths)
        self._sizes = [filled(length) for length in lengths]
        self.starts = [0, *np.cumsum(self._sizes).tolist()]
        self.tokens = self.starts.pop()  # the rest is of no text
        self._bias = bias
        self._kept: dict[int, list[tuple[int, int, torch.Tensor]]] = {}

    @property
    def count(self) -> int:
        """T."""
        return filled(self.tokens, _TOKENS_GRAIN)

    def each(self) -> Any:
        """start, stop, and the biases of its queries: first, last, bias_HQS."""
        for start, size, length in zip(self.starts, self._sizes, self.lengths, strict=True):
            yield start, start + size, self._biases(size, length)

    def _biases(self, size: int, length: int) -> Any:
        if size > _QUERIES_AT_ONCE:  # made again in each layer
            firsts = range(0, size, _QUERIES_AT_ONCE)
            return (self._some(size, length, first, min(size, first + _QUERIES_AT_ONCE)) for first in firsts)
        if length not in self._kept:
            self._kept[length] = [self._some(size, length, 0, size)]
        return self._kept[length]

    def _some(self, size: int, length: int, first: int, last: int) -> tuple[int, int, torch.Tensor]:
        bias_HQS = self._bias.square(size, first, last)
        bias_HQS[:, :, length:] = torch.finfo(bias_HQS.dtype).min
        return first, last, bias_HQS


class DecoderLayer:
    """What a step of the decoder calls."""

    def __init__(self, block: Any) -> None:
        """As the module has it."""
        own, across = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
        self.own_norm, self.across_norm = Norm(block.layer[0].layer_norm), Norm(block.layer[1].layer_norm)
        self.own = together(own.q, own.k, own.v)
        self.own_out: nn.Module = own.o
        self.query: nn.Module = across.q
        self.keys_values = together(across.k, across.v)
        self.across_out: nn.Module = across.o
        self.feed = FeedForward(block.layer[2])


class T5Layers:
    """A model's layers."""

    def __init__(self, model: Any) -> None:
        """Those of the module, which is not kept."""
        encoder, decoder = model.encoder, model.decoder
        first = decoder.block[0].layer[0].SelfAttention
        self.heads, self.head_size = int(first.n_heads), int(first.key_value_proj_dim)
        self.dtype: torch.dtype = model.dtype
        self._words = encoder.embed_tokens
        self._encoder = [_EncoderLayer(block) for block in encoder.block]
        self._encoder_bias = PositionBias(encoder.block[0].layer[0].SelfAttention)
        self._encoder_norm = Norm(encoder.final_layer_norm)
        self.decoder_words = decoder.embed_tokens
        self.decoder = [DecoderLayer(block) for block in decoder.block]
        self.decoder_bias = PositionBias(first)
        self.decoder_norm = Norm(decoder.final_layer_norm)
        self.head = model.lm_head
        scales = getattr(model.config, "scale_decoder_outputs", False)  # mT5's never does
        self.scale = float(model.model_dim) ** -0.5 if scales else 1.0

    def encoded(self, ids_B: Sequence[Ids]) -> Encoded:
        """The encoder over these texts."""
        texts = _Texts([len(ids) for ids in ids_B], self._encoder_bias)
        ids_T = np.zeros(texts.count, np.int64)  # padding may be any token
        for start, ids in zip(texts.starts, ids_B, strict=True):
            ids_T[start : start + len(ids)] = ids
        values_TD = self._words(torch.from_numpy(ids_T)).float()
        for layer in self._encoder:
            layer(values_TD, texts)
        states_TD = self._encoder_norm(values_TD)
        return Encoded(states_TD, texts.starts, texts.lengths, texts.count - sum(texts.lengths))


_KNOWN: WeakKeyDictionary[nn.Module, T5Layers] = WeakKeyDictionary()


def use_t5_layers(model: nn.Module) -> None:
    """Write with them from now on, where the model is of the family and on a CPU; its weights are as they will stay."""
    if type(model).__name__ in _FAMILIES and type(model).__module__.startswith("transformers."):
        _KNOWN[model] = T5Layers(model)


def layers_of(model: nn.Module) -> T5Layers | None:
    """Those of a model that is to write with them."""
    return _KNOWN.get(model)


# ---------------------------------------------------------------------------------------------------------- products


def together(*layers: nn.Module) -> Several:
    """Linear layers that read the same."""
    first = layers[0]
    if not isinstance(first, OneOfSeveral):
        return lambda values: tuple(layer(values) for layer in layers)
    product, sizes = first.product, [int(layer.out_features) for layer in layers]  # type: ignore[arg-type]
    return lambda values: product(values).split(sizes, -1)


def _times(layer: nn.Module, values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = layer.times(values, other) if isinstance(layer, PreparedLinear) else layer(values) * other
    return found


def _activated(layer: nn.Module, activation: nn.Module, values: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, PreparedLinear) and (way := _WAYS.get(str(activation))) is not None:
        return layer.activated(values, *way)
    found: torch.Tensor = activation(layer(values))
    return found


_WAYS = {"GELU(approximate='tanh')": ("gelu", "tanh"), "ReLU()": ("relu", "")}
"""Activations that oneDNN computes with the product: what it calls them."""
