"""Rows whose answers grow, with the keys and values that the model keeps for them.

    batch = Seq2SeqBatch.start(model, rows)     # encoder under the token budget, the decoder's first step
    batch.scores_BV                             # the next token's logits, float32
    batch = batch.keep([0, 2])                  # finished rows leave, and their cache with them
    batch.step([17, 4])                         # tokens in, the next scores

B rows, L tokens of the longest prompt, V vocabulary, T tokens in the cache.
"""

import copy
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from transformers.cache_utils import DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pipeline.batching import micro_batches, padding
from pipeline.models.engine import FIXED_TOKENS
from pipeline.models.generation.answers import End
from pipeline.models.generation.decoding import Processors, Rules, ids_so_far
from pipeline.models.generation.drawing import RowNoise
from pipeline.quarantine import Failure
from pipeline.text.tokens import Ids


@dataclass(slots=True, eq=False)
class Row:
    """One prompt and its answer so far."""

    prompt_ids: Ids
    limit: int  # tokens that the answer may have
    processors: Processors | None
    answer: list[int] = field(default_factory=list)
    end: End | None = None  # why it ended
    failure: Failure | None = None
    noise: RowNoise | None = None  # where it samples


@dataclass(slots=True)
class Model:
    """A module with what decoding must know of it, and a count of what was computed."""

    module: Any
    rules: Rules
    token_budget: int  # padded tokens of one pass over prompts
    padding_tokens: int = 0

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.module.device
        return device

    def micro_batches(self, rows: Sequence[Row], copies: int = 1) -> list[list[Row]]:
        """Rows as they go through the model together with whole prompts, each in so many copies; longest first.

        Copies are beams, which are decoded as they stand here: the more rows, the better.
        """
        lengths_R = np.array([len(row.prompt_ids) for row in rows], np.int64)
        fixed_tokens = FIXED_TOKENS if copies == 1 and self.device.type == "cpu" else None
        batches = micro_batches(lengths_R, max(1, self.token_budget // copies), fixed_tokens=fixed_tokens)
        self.padding_tokens += padding(lengths_R, batches)
        return [[rows[row] for row in batch] for batch in batches]

    def logits_alone(self, row: Row) -> torch.Tensor:
        """scores_1V of the next token by one pass over the row by itself, without padding or cache."""
        ids_1L = ids_so_far([row.prompt_ids], [row.answer], self.rules.start_id).to(self.device)
        if self.rules.is_seq2seq:
            prompt_1L = torch.tensor(row.prompt_ids, dtype=torch.long, device=self.device)[None]
            output = self.module(input_ids=prompt_1L, decoder_input_ids=ids_1L, use_cache=False)
        else:
            output = self.module(input_ids=ids_1L, use_cache=False, **self.last_only)
        scores_1V: torch.Tensor = output.logits[:, -1].float()
        return scores_1V

    @property
    def last_only(self) -> dict[str, int]:
        """Keyword arguments that spare logits of all positions but the last, where the module knows them."""
        return {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}

    @property
    def takes_positions(self) -> bool:
        """Whether the caller may say where a token stands."""
        return "position_ids" in self._accepted

    @property
    def _accepted(self) -> Collection[str]:
        return inspect.signature(self.module.forward).parameters


class Batch(Protocol):
    """Rows at work."""

    rows: list[Row]
    scores_BV: torch.Tensor  # logits of the next token

    def keep(self, index: Sequence[int]) -> None:
        """Let all rows but these go; scores are spent."""
        ...

    def step(self, tokens: Sequence[int]) -> None:
        """Feed the last token of each row."""
        ...


class Seq2SeqBatch:
    """Encoder states, and the decoder's cache. All rows are at the same step."""

    scores_BV: torch.Tensor
    _mask_BL: torch.Tensor

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        """Run the encoder, and the decoder on its first token: each micro-batch by itself, so that no keys and values
        of padding are computed beyond its own.
        """
        self._model = model
        assert model.rules.start_id is not None
        encoder = model.module.get_encoder()
        every: list[Row] = []
        parts = []
        for batch in model.micro_batches(rows):  # longest first: the first is the widest
            ids_BL, self._mask_BL = padded_right([row.prompt_ids for row in batch], model.rules.pad_id, model.device)
            self._states_BLD = encoder(input_ids=ids_BL, attention_mask=self._mask_BL).last_hidden_state
            self._cache: Any = None
            self.step([model.rules.start_id] * len(batch))
            parts.append((self._cache, self._mask_BL, self.scores_BV))
            every += batch
        self.rows = every
        caches, masks, scores = zip(*parts, strict=True)
        self._mask_BL = torch.cat([_widen(mask, masks[0].shape[1]) for mask in masks])
        self._cache = _together(caches, self.width)
        self.scores_BV = torch.cat(scores)
        # Only their shape is still read: keys and values of the encoder's states are in the cache.
        self._states_BLD = self._states_BLD[:1, :1].expand(len(every), self.width, -1)

    def step(self, tokens: Sequence[int]) -> None:
        """Feed the last token of each row."""
        ids_B1 = torch.tensor(tokens, dtype=torch.long, device=self._model.device)[:, None]
        self.scores_BV = self.feed(ids_B1)[:, -1].float()

    def feed(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """logits_BLV after each of these tokens."""
        output = self._model.module(
            encoder_outputs=BaseModelOutput(last_hidden_state=self._states_BLD),
            attention_mask=self._mask_BL,
            decoder_input_ids=ids_BL,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        logits_BLV: torch.Tensor = output.logits
        return logits_BLV

    def fork(self, index: Sequence[int]) -> "Seq2SeqBatch":
        """A batch of these rows, any as often as it is named; this one stays as it is."""
        forked = copy.copy(self)
        index_B = torch.tensor(index, dtype=torch.long, device=self._model.device)
        forked.rows = [self.rows[row] for row in index]
        forked._cache = _picked(self._cache, index_B)
        forked._mask_BL = self._mask_BL.index_select(0, index_B)
        forked._states_BLD = self._states_BLD[:1].expand(len(index), -1, -1)
        return forked

    @property
    def width(self) -> int:
        """Tokens that the model keeps of each row, padding counted."""
        return int(self._mask_BL.shape[1])

    def keep(self, index: Sequence[int]) -> None:
        """Let all rows but these go."""
        index_B = torch.tensor(index, dtype=torch.long, device=self._model.device)
        self.rows = [self.rows[row] for row in index]
        self._cache.reorder_cache(index_B)
        self._mask_BL = self._mask_BL.index_select(0, index_B)
        self._states_BLD = self._states_BLD[: len(index)]


class CausalBatch:
    """Prompts padded on the left, and their cache; rows may be at different steps."""

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        """Run the model over the prompts of one micro-batch."""
        self._model = model
        self.rows = list(rows)
        longest = max(len(row.prompt_ids) for row in rows)
        ids_BL = np.full((len(rows), longest), model.rules.pad_id, np.int64)
        mask_BT = np.zeros((len(rows), longest), np.int64)
        for ids_L, mask_L, row in zip(ids_BL, mask_BT, rows, strict=True):
            ids_L[longest - len(row.prompt_ids) :] = row.prompt_ids
            mask_L[longest - len(row.prompt_ids) :] = 1
        self._mask_BT = torch.from_numpy(mask_BT).to(model.device)
        positions_BL = (self._mask_BT.cumsum(1) - 1).clamp(min=0)
        self._takes_positions, self._last_only = model.takes_positions, model.last_only
        self._cache: Any = None
        ids = torch.from_numpy(ids_BL).to(model.device)
        self.scores_BV = self._forward(ids, positions_BL, self._last_only)[:, -1].float()

    def step(self, tokens: Sequence[int]) -> None:
        """Feed the last token of each row."""
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        ids_B1 = torch.tensor(tokens, dtype=torch.long, device=self._model.device)[:, None]
        positions_B1 = self._mask_BT.sum(1, keepdim=True) - 1
        self.scores_BV = self._forward(ids_B1, positions_B1, self._last_only)[:, -1].float()

    def keep(self, index: Sequence[int]) -> None:
        """Let all rows but these go, and the columns that were theirs alone."""
        index_B = torch.tensor(index, dtype=torch.long, device=self._model.device)
        self.rows = [self.rows[row] for row in index]
        self._cache.reorder_cache(index_B)
        self._mask_BT = self._mask_BT.index_select(0, index_B)
        if self.can_join:
            self._crop()

    @property
    def can_join(self) -> bool:
        """Whether its cache is plain keys and values of all tokens, so that batches can be laid side by side."""
        return self._takes_positions and all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def feed(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """logits_BLV after each of these tokens; what stands last in a row may be padding."""
        begins_B1 = self._mask_BT.sum(1, keepdim=True)
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, ids_BL.shape[1]), value=1)
        return self._forward(ids_BL, begins_B1 + torch.arange(ids_BL.shape[1], device=ids_BL.device), {})

    def fork(self, index: Sequence[int]) -> "CausalBatch":
        """A batch of these rows, any as often as it is named; this one stays as it is."""
        forked = copy.copy(self)
        index_B = torch.tensor(index, dtype=torch.long, device=self._model.device)
        forked.rows = [self.rows[row] for row in index]
        forked._cache = _picked(self._cache, index_B)
        forked._mask_BT = self._mask_BT.index_select(0, index_B)
        return forked

    @property
    def width(self) -> int:
        """Tokens that the model keeps of each row, padding counted."""
        return int(self._mask_BT.shape[1])

    def join(self, other: Self) -> None:
        """Take in the rows of another batch; the narrower is padded on the left. Scores are spent."""
        width = max(self._mask_BT.shape[1], other._mask_BT.shape[1])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = torch.cat([_widen_left(mine.keys, width), _widen_left(theirs.keys, width)])
            mine.values = torch.cat([_widen_left(mine.values, width), _widen_left(theirs.values, width)])
        masks = [torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in (self._mask_BT, other._mask_BT)]
        self._mask_BT = torch.cat(masks)
        self.rows += other.rows

    def _crop(self) -> None:
        """Drop columns on the left that are padding in every row."""
        empty = int(self._mask_BT.shape[1] - self._mask_BT.sum(1).max())
        if empty > 0:
            self._mask_BT = self._mask_BT[:, empty:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, empty:], layer.values[:, :, empty:]

    def _forward(self, ids_BL: torch.Tensor, positions_BL: torch.Tensor, which: Mapping[str, int]) -> torch.Tensor:
        output = self._model.module(
            input_ids=ids_BL,
            attention_mask=self._mask_BT,
            past_key_values=self._cache,
            use_cache=True,
            **({"position_ids": positions_BL} if self._takes_positions else {}),
            **which,
        )
        self._cache = output.past_key_values
        logits_BLV: torch.Tensor = output.logits
        return logits_BLV


def padded_right(ids_B: Sequence[Ids], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids_BL and attention_mask_BL."""
    shape = (len(ids_B), max(len(ids) for ids in ids_B))
    ids_BL, mask_BL = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    for row, ids in enumerate(ids_B):
        ids_BL[row, : len(ids)] = ids
        mask_BL[row, : len(ids)] = 1
    return torch.from_numpy(ids_BL).to(device), torch.from_numpy(mask_BL).to(device)


def _picked(cache: Any, index_B: torch.Tensor) -> Any:
    """A cache of these rows; the layers replace their tensors and never write into them, so a shallow copy will do."""
    picked = copy.copy(cache)
    if isinstance(cache, EncoderDecoderCache):
        picked.self_attention_cache = _picked(cache.self_attention_cache, index_B)
        picked.cross_attention_cache = _picked(cache.cross_attention_cache, index_B)
        return picked
    picked.layers = [copy.copy(layer) for layer in cache.layers]
    picked.reorder_cache(index_B)
    return picked


def _together(caches: Sequence[Any], width: int) -> Any:
    """One cache of the rows of several, all after the same step; keys of the encoder's states are widened to `width`.

    What pads is never looked at, but must be finite: 0 x NaN is NaN.
    """
    first = caches[0]
    own, of_encoder = "self_attention_cache", "cross_attention_cache"
    for name in (own, of_encoder):
        for layers in zip(*(getattr(cache, name).layers for cache in caches), strict=True):
            for values in ("keys", "values"):
                parts_BHTD = [getattr(layer, values) for layer in layers]
                if name == of_encoder:
                    parts_BHTD = [
                        torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[2])) for part in parts_BHTD
                    ]
                # In one piece, as each step reads them.
                setattr(layers[0], values, torch.cat(parts_BHTD).contiguous())
    return first


def _widen(mask_BL: torch.Tensor, width: int) -> torch.Tensor:
    """mask_BL with zeros on the right up to `width`."""
    return torch.nn.functional.pad(mask_BL, (0, width - mask_BL.shape[1]))


def _widen_left(values_BHTD: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(values_BHTD, (0, 0, width - values_BHTD.shape[2], 0))
