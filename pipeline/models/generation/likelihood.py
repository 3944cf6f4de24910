"""How likely a model finds each of several continuations of a prompt: labels from a model that can say nothing else.

    likelihoods(module, [prompt], [[[262], [1282, 318]]], …) ->
        Likelihoods(sums_P=[array([-2.1, -7.9])], tokens_P=[array([1, 2])], failures={}, …)

The prompt goes through the model once; its continuations share its cache. B rows, L tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.batching import TokenBudget, in_force
from pipeline.models.engine import AboutToRun, not_finite, run_batches
from pipeline.models.generation.decoding import Decoding, Rules
from pipeline.models.generation.live import CausalBatch, Model, Row, Seq2SeqBatch
from pipeline.quarantine import Failure
from pipeline.text.tokens import Ids
from pipeline.workers import Device

# Prompts that wait with their caches, and caches that are laid out for continuations: so many times the token budget.
_CACHED_PASSES = 4


@dataclass(slots=True)
class Likelihoods:
    """Natural logarithms, for P prompts; a failed one holds None."""

    sums_P: list[npt.NDArray[np.float64] | None]  # of each continuation, over its tokens
    tokens_P: list[npt.NDArray[np.int64]]
    failures: dict[int, Failure]
    tokens: int  # of prompts and continuations
    padding_tokens: int  # beside prompts
    seconds: float

    @property
    def means_P(self) -> list[npt.NDArray[np.float64] | None]:  # noqa: N802 - carries its shape
        """Of each continuation, per token: long ones are not punished for their length."""
        pairs = zip(self.sums_P, self.tokens_P, strict=True)
        return [None if sums is None else sums / tokens for sums, tokens in pairs]


def likelihoods(
    module: Any,
    prompts_P: Sequence[Ids],
    continuations_P: Sequence[Sequence[Ids]],
    *,
    token_budget: int | TokenBudget,
    device: Device,
    about_to_run: AboutToRun | None = None,
) -> Likelihoods:
    """The logarithm of the probability of each continuation after its prompt.

    Where the border between prompt and continuation lies is the caller's word: ids are taken as they are, at least one
    for a continuation. Encoder-decoders read the prompt in the encoder and continue the decoder's first token. Faults
    as `run_batches` treats them.
    """
    assert all(len(ids) > 0 for continuations in continuations_P for ids in continuations)
    model = Model(
        module, Rules(module, Decoding(num_beams=1, do_sample=False, max_new_tokens=1)), in_force(token_budget)
    )

    def compute(batch: npt.NDArray[np.intp]) -> list[npt.NDArray[np.float64] | Failure]:
        return _sums(model, [prompts_P[piece] for piece in batch], [continuations_P[piece] for piece in batch])

    lengths_P = np.array([len(ids) for ids in prompts_P], np.int64)
    ran = run_batches(
        lengths_P,
        compute,
        token_budget=token_budget,
        passes=_CACHED_PASSES if model.rules.is_seq2seq else 1,
        device=device,
        about_to_run=about_to_run,
    )
    failures = dict(ran.failures)
    failures |= {piece: found for piece, found in enumerate(ran.found_P) if isinstance(found, Failure)}
    tokens_P = [np.array([len(ids) for ids in some], np.int64) for some in continuations_P]
    return Likelihoods(
        [None if isinstance(found, Failure) else found for found in ran.found_P],
        tokens_P,
        failures,
        tokens=int(lengths_P.sum()) + sum(int(tokens.sum()) for tokens in tokens_P),
        padding_tokens=model.padding_tokens,
        seconds=ran.seconds,
    )


def _sums(
    model: Model, prompts: Sequence[Ids], continuations: Sequence[Sequence[Ids]]
) -> list[npt.NDArray[np.float64] | Failure]:
    """One array for each prompt."""
    rows = [Row(ids, 1, None) for ids in prompts]
    if model.rules.is_seq2seq:
        batches: list[Seq2SeqBatch | CausalBatch] = [Seq2SeqBatch(model, rows)]
    else:
        batches = [CausalBatch(model, some) for some in model.micro_batches(rows)]
    place = {id(row): number for number, row in enumerate(rows)}
    found = [np.zeros(len(some)) for some in continuations]
    for batch in batches:
        first_BV = batch.scores_BV.log_softmax(1)
        # A pair is a row of the batch and one of its continuations; the longest first.
        pairs = [
            (at, choice, ids)
            for at, row in enumerate(batch.rows)
            for choice, ids in enumerate(continuations[place[id(row)]])
        ]
        pairs.sort(key=lambda pair: -len(pair[2]))
        numbers = [place[id(row)] for row in batch.rows]
        for at, choice, ids in pairs:
            found[numbers[at]][choice] = float(first_BV[at, int(ids[0])])
        longer = [pair for pair in pairs if len(pair[2]) > 1]
        while longer:
            some = longer[: max(1, model.token_budget * _CACHED_PASSES // (batch.width + len(longer[0][2])))]
            some = some[: max(1, model.token_budget // (4 * len(some[0][2])))]  # logits are V for each token
            longer = longer[len(some) :]
            rest = _rest(model, batch, [at for at, _, _ in some], [ids for _, _, ids in some])
            for (at, choice, _), more in zip(some, rest, strict=True):
                found[numbers[at]][choice] += more
    return [not_finite(sums.astype(np.float32)) if not np.isfinite(sums).all() else sums for sums in found]


def _rest(model: Model, batch: "Seq2SeqBatch | CausalBatch", index: Sequence[int], ids: Sequence[Ids]) -> list[float]:
    """The logarithm of the probability of each continuation after its first token."""
    fed, asked = [each[:-1] for each in ids], [each[1:] for each in ids]
    longest = len(fed[0])
    fed_BL = np.full((len(ids), longest), model.rules.pad_id, np.int64)
    asked_BL, counts_BL = np.zeros((len(ids), longest), np.int64), np.zeros((len(ids), longest), bool)
    for row in range(len(ids)):
        fed_BL[row, : len(fed[row])], asked_BL[row, : len(fed[row])] = fed[row], asked[row]
        counts_BL[row, : len(fed[row])] = True
    logits_BLV = batch.fork(index).feed(torch.from_numpy(fed_BL).to(model.device))
    logs_BL = -torch.nn.functional.cross_entropy(
        logits_BLV.transpose(1, 2).float(), torch.from_numpy(asked_BL).to(model.device), reduction="none"
    )
    sums: list[float] = torch.where(torch.from_numpy(counts_BL).to(model.device), logs_BL, 0).double().sum(1).tolist()
    return sums
