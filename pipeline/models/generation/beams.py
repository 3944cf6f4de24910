"""Beam search by transformers' own `generate`, on rows that cannot disturb each other.

    search(model, rows, stopper) -> the rows' answers and ends

Rows of a micro-batch are of one kind of length where padding would change the answer: for causal models all prompts are
equally long; encoders have a mask, and their rows are padded.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from pipeline.models.generation.answers import End, Stopper
from pipeline.models.generation.decoding import Rules
from pipeline.models.generation.live import Model, Row, padded_right
from pipeline.quarantine import Failure, Reason


class _Watch:
    """A logits processor that changes nothing and remembers rows whose scores are not finite."""

    def __init__(self, beams: int) -> None:
        self._beams = beams
        self.broken_B: torch.Tensor | None = None

    def __call__(self, _: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        broken_B = ~torch.isfinite(scores_BV.amax(1)).view(-1, self._beams).all(1)
        self.broken_B = broken_B if self.broken_B is None else self.broken_B | broken_B
        return scores_BV


class _Stop:
    """A stopping criterion: the answer alone decides. The library's own would look for a stop string in the prompt."""

    def __init__(self, stopper: Stopper, begin: int) -> None:
        self._stopper = stopper
        self._begin = begin

    def __call__(self, ids_BL: torch.Tensor, _: torch.Tensor, **__: Any) -> torch.Tensor:
        ends_B = [self._stopper.ends(answer) for answer in ids_BL[:, self._begin :].tolist()]
        return torch.tensor(ends_B, device=ids_BL.device)


def search(model: Model, rows: Sequence[Row], stopper: Stopper) -> None:
    """Bring every row to its end; each beam counts as a row under the token budget."""
    for batch in model.micro_batches(rows, copies=model.rules.num_beams):
        if model.rules.pads_beams:
            _search(model, batch, stopper)
            continue
        for _, alike in groupby(batch, key=lambda row: len(row.prompt_ids)):
            _search(model, list(alike), stopper)


def _search(model: Model, rows: Sequence[Row], stopper: Stopper) -> None:
    rules = model.rules
    ids_BL, mask_BL = padded_right([row.prompt_ids for row in rows], rules.pad_id, model.device)
    watch = _Watch(rules.num_beams)
    begin = 1 if rules.is_seq2seq else ids_BL.shape[1]
    told: Any = model.module.generate(
        input_ids=ids_BL,
        attention_mask=mask_BL,
        logits_processor=LogitsProcessorList([watch]),
        stopping_criteria=StoppingCriteriaList([_Stop(stopper, begin)] if rules.decoding.stop else []),
        num_return_sequences=1,
        return_dict_in_generate=False,
        **rules.decoding.options(),
        **({} if rules.decoding.max_new_tokens is None else {"max_length": None}),  # what counts is told otherwise
    )
    assert watch.broken_B is not None
    for row, ids, broken in zip(rows, told[:, begin:].tolist(), watch.broken_B.tolist(), strict=True):
        if broken:
            row.failure = Failure(Reason.NON_FINITE_OUTPUT, "the scores of a beam are not finite")
            continue
        row.answer, row.end = _ended(ids, row.limit, rules, stopper)


def _ended(ids: list[int], limit: int, rules: Rules, stopper: Stopper) -> tuple[list[int], End]:
    """The answer without what fills it up to the longest of its batch, which may be any token, its last one too."""
    for length, token in enumerate(ids, start=1):
        if token in rules.eos_ids:
            forced = rules.forces_eos and length == limit
            return ids[:length], End.LENGTH if forced else End.EOS
        if stopper.ends(ids[:length]):
            return ids[:length], End.STOP
    return ids, End.LENGTH
