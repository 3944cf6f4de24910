"""Rows whose answers grow, by the layers of T5 called straight: what `Seq2SeqBatch` does for any family.

    batch = T5Batch(model, layers, rows)        # encoder, and the decoder's first step
    batch.scores_BV                             # as of any batch

A decoder's step reads all keys and values of the encoder's states, which is a third of its time: rows are sorted by
length and lie in a few shelves, each as wide as its longest row. Rows that have ended stay until an eighth has, as what
goes on must be laid anew. oneDNN makes a product anew for each shape: rows, and keys of the decoder's own, are filled
up to a multiple of 8.

B rows that go on, R rows held (those that ended, and what fills up), T tokens in the cache, S keys of a shelf, V
vocabulary, D numbers of a token, H heads, W numbers of a head, I = H x W, N = R x H.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from pipeline.batching import micro_batches
from pipeline.models.generation.live import Model, Row
from pipeline.models.t5 import DecoderLayer, T5Layers, filled

_SHELF_TOKENS = 256
"""What one more shelf costs a step, in tokens of padding."""

_MOST_HELD = 1.125
"""Rows held for each that goes on."""


@dataclass(slots=True)
class _Shelf:
    """Keys and values of the encoder's states, of rows of about one length."""

    start: int  # its first row of those held
    keys: list[torch.Tensor]  # keys_NSW by layer
    values: list[torch.Tensor]  # values_NSW
    mask_N1S: torch.Tensor  # 0, or very negative where a row has no such token
    lengths: list[int]  # by row

    @property
    def stop(self) -> int:
        """After its last row."""
        return self.start + len(self.lengths)

    def kept(self, rows: Sequence[int], start: int, heads: int) -> "_Shelf":
        """These of its rows alone, as wide as they need."""
        if len(rows) == len(self.lengths):
            return _Shelf(start, self.keys, self.values, self.mask_N1S, self.lengths)
        lengths = [self.lengths[row] for row in rows]
        width = filled(max(lengths))
        index_N = (torch.tensor(rows)[:, None] * heads + torch.arange(heads)).flatten()
        keys, values = (
            [each[:, :width].index_select(0, index_N) for each in several] for several in (self.keys, self.values)
        )
        return _Shelf(start, keys, values, self.mask_N1S[:, :, :width].index_select(0, index_N), lengths)


class T5Batch:
    """Encoder states, and the decoder's cache. All rows are at the same step."""

    rows: list[Row]
    scores_BV: torch.Tensor

    def __init__(self, model: Model, layers: T5Layers, rows: Sequence[Row]) -> None:
        """Run the encoder, and the decoder on its first token."""
        assert model.rules.start_id is not None
        self._layers = layers
        self._pad_id = model.rules.pad_id
        self.rows = sorted(rows, key=lambda row: -len(row.prompt_ids))
        self._places = list(range(len(rows)))  # of the rows that go on among those held
        self._held = filled(len(rows))
        self._step = 0
        self._own_keys, self._own_values = ([torch.empty(0)] * len(layers.decoder) for _ in range(2))
        self._shelves = self._read(model)
        self.step([model.rules.start_id] * len(rows))

    def keep(self, index: Sequence[int]) -> None:
        """Let all rows but these go."""
        self.rows = [self.rows[row] for row in index]
        self._places = [self._places[row] for row in index]
        if filled(len(self.rows)) * _MOST_HELD <= self._held:
            self._close_up()

    def step(self, tokens: Sequence[int]) -> None:
        """Feed the last token of each row."""
        layers, size = self._layers, filled(self._step + 1)
        ids_R = torch.full((self._held,), self._pad_id)
        ids_R[self._places] = torch.tensor(tokens)
        bias_HT = torch.full((layers.heads, size), torch.finfo(layers.dtype).min, dtype=layers.dtype)
        bias_HT[:, : self._step + 1] = layers.decoder_bias.last(self._step + 1)
        bias_N1T = bias_HT.expand(self._held, -1, -1).reshape(-1, 1, size)
        self._make_room(size)
        values_RD = layers.decoder_words(ids_R).float()
        for number, layer in enumerate(layers.decoder):
            values_RD += self._own(number, layer, values_RD, bias_N1T)
            values_RD += self._across(number, layer, values_RD)
            layer.feed(values_RD)
        self._step += 1
        self.scores_BV = self._scores(values_RD)

    def _read(self, model: Model) -> list[_Shelf]:
        """The encoder's states as the decoder's layers read them."""
        layers, rows = self._layers, self.rows
        lengths_R = np.array([len(row.prompt_ids) for row in rows], np.int64)
        whole = int(lengths_R.sum()) + len(rows) * int(lengths_R.max())
        cut = [len(each) for each in micro_batches(lengths_R, whole, fixed_tokens=_SHELF_TOKENS)]
        shelves = [
            self._shelf(start, lengths_R[start:stop].tolist())
            for start, stop in pairwise([0, *np.cumsum(cut).tolist()])
        ]
        shelf_R = np.repeat(np.arange(len(cut)), cut)
        for batch in micro_batches(lengths_R, model.token_budget, packed=True):
            found = layers.encoded([rows[row].prompt_ids for row in batch])
            model.padding_tokens += found.padding_tokens
            for number, layer in enumerate(layers.decoder):
                keys_THW, values_THW = (
                    each_TI.view(len(each_TI), layers.heads, -1) for each_TI in layer.keys_values(found.states_TD)
                )
                for row, start, length in zip(batch, found.starts, found.lengths, strict=True):
                    shelf = shelves[shelf_R[row]]
                    first = (int(row) - shelf.start) * layers.heads
                    heads, states = slice(first, first + layers.heads), slice(start, start + length)
                    shelf.keys[number][heads, :length] = keys_THW[states].transpose(0, 1)
                    shelf.values[number][heads, :length] = values_THW[states].transpose(0, 1)
        return shelves

    def _shelf(self, start: int, lengths: Sequence[int]) -> _Shelf:
        """An empty one; what is never written must be finite: 0 x NaN is NaN."""
        layers, width, heads = self._layers, filled(max(lengths)), self._layers.heads
        shape = (len(lengths) * heads, width, layers.head_size)
        keys, values = ([torch.zeros(shape, dtype=layers.dtype) for _ in layers.decoder] for _ in range(2))
        mask_R1S = torch.zeros(len(lengths), 1, width, dtype=layers.dtype)
        for mask_S, length in zip(mask_R1S[:, 0], lengths, strict=True):
            mask_S[length:] = torch.finfo(layers.dtype).min
        return _Shelf(start, keys, values, mask_R1S.repeat_interleave(heads, 0), list(lengths))

    def _own(self, number: int, layer: DecoderLayer, values_RD: torch.Tensor, bias_N1T: torch.Tensor) -> torch.Tensor:
        """The attention to the answer so far."""
        query_RI, key_RI, value_RI = layer.own(layer.own_norm(values_RD))
        heads, size = self._layers.heads, bias_N1T.shape[2]
        keys_RHTW, values_RHTW = self._own_keys[number], self._own_values[number]
        keys_RHTW[:, :, self._step] = key_RI.view(self._held, heads, -1)
        values_RHTW[:, :, self._step] = value_RI.view(self._held, heads, -1)
        query_N1W = query_RI.reshape(self._held * heads, 1, -1)
        found_N1W = _attended(
            query_N1W, keys_RHTW.flatten(0, 1)[:, :size], values_RHTW.flatten(0, 1)[:, :size], bias_N1T
        )
        told_RD: torch.Tensor = layer.own_out(found_N1W.view(self._held, -1))
        return told_RD

    def _across(self, number: int, layer: DecoderLayer, values_RD: torch.Tensor) -> torch.Tensor:
        """The attention to the encoder's states."""
        heads = self._layers.heads
        query_N1W = layer.query(layer.across_norm(values_RD)).view(self._held * heads, 1, -1)
        parts = [
            _attended(
                query_N1W[shelf.start * heads : shelf.stop * heads],
                shelf.keys[number],
                shelf.values[number],
                shelf.mask_N1S,
            )
            for shelf in self._shelves
        ]
        parts.append(torch.zeros_like(query_N1W[self._shelves[-1].stop * heads :]))
        told_RD: torch.Tensor = layer.across_out(torch.cat(parts).view(self._held, -1))
        return told_RD

    def _scores(self, values_RD: torch.Tensor) -> torch.Tensor:
        """scores_BV of the rows that go on."""
        layers, rows = self._layers, len(self._places)
        some = torch.tensor(self._places + [0] * (filled(rows) - rows))
        normed_RD = layers.decoder_norm(values_RD[some])
        if layers.scale != 1:
            normed_RD = normed_RD * layers.scale
        scores_BV: torch.Tensor = layers.head(normed_RD)[:rows]
        return scores_BV

    def _make_room(self, size: int) -> None:
        """So many tokens in the decoder's own cache at least."""
        room = self._own_keys[0].shape[2] if self._step else 0
        if size <= room:
            return
        layers = self._layers
        shape = (self._held, layers.heads, max(size, 2 * room), layers.head_size)
        for several in (self._own_keys, self._own_values):
            for number, before in enumerate(several):
                several[number] = torch.zeros(shape, dtype=layers.dtype)
                if room:
                    several[number][:, :, :room] = before

    def _close_up(self) -> None:
        """Hold the rows that go on, and nothing else."""
        shelves, start = [], 0
        for shelf in self._shelves:
            rows = [place - shelf.start for place in self._places if shelf.start <= place < shelf.stop]
            if rows:
                shelves.append(shelf.kept(rows, start, self._layers.heads))
                start += len(rows)
        self._shelves = shelves
        self._held = filled(start)
        index_R = torch.tensor(self._places + [0] * (self._held - start))
        for several in (self._own_keys, self._own_values):
            several[:] = [each.index_select(0, index_R) for each in several]
        self._places = list(range(start))


def _attended(
    query_N1W: torch.Tensor, keys_NSW: torch.Tensor, values_NSW: torch.Tensor, bias_N1S: torch.Tensor
) -> torch.Tensor:
    """values_N1W; T5 has no scale."""
    scores_N1S = torch.baddbmm(bias_N1S, query_N1W, keys_NSW.transpose(1, 2))
    return torch.bmm(torch.softmax(scores_N1S, -1), values_NSW)
