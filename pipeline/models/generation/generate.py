"""Prompts become answers: token ids in, token ids out, in batches that rows leave as they finish.

    generate(module, [[21603, 10, …, 1], …], Decoding(max_new_tokens=24), token_budget=2048, device="cpu") ->
        Generated(ids_P=[array([71, 2, 1]), …], ends_P=["eos", …], failures={}, tokens=96_583, …)

The answer of a row is the one that `module.generate` gives for this row alone. Prompts are sorted by length and cut
into groups; a group is decoded together until its last row has ended.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batching import TokenBudget, in_force
from pipeline.models.engine import AboutToRun, run_batches
from pipeline.models.generation.answers import End, Generated, Stopper
from pipeline.models.generation.beams import search
from pipeline.models.generation.choosing import Chooser
from pipeline.models.generation.decoding import Decoding, Rules
from pipeline.models.generation.live import Batch, CausalBatch, Model, Row, Seq2SeqBatch
from pipeline.models.generation.t5_batch import T5Batch
from pipeline.models.t5 import layers_of
from pipeline.quarantine import Failure
from pipeline.text.tokens import Ids
from pipeline.workers import Device

# A group of rows is decoded together; it may hold this many times the tokens of one pass over prompts.
_GROUP_PASSES = 8
# A row counts as this many tokens at least, so that short prompts do not make a batch whose scores fill the memory.
_LEAST_TOKENS = 64


def generate(
    module: Any,
    prompts_P: Sequence[Ids],
    decoding: Decoding,
    *,
    token_budget: int | TokenBudget,
    device: Device,
    tokenizer: Any = None,
    about_to_run: AboutToRun | None = None,
) -> Generated:
    """Answer P prompts (special tokens included); faults as `run_batches` treats them.

    The tokenizer is needed for stop strings alone. Raises JobError, ModelError: see `Rules`.
    """
    rules = Rules(module, decoding)
    stopper = Stopper(tokenizer, decoding.stop)
    decode = search if rules.num_beams > 1 else _decode
    model = Model(module, rules, in_force(token_budget))
    lengths_P = np.array([len(ids) for ids in prompts_P], np.int64)

    def compute(batch: npt.NDArray[np.intp]) -> list[Row]:
        rows = [_row(prompts_P[piece], rules) for piece in batch]
        decode(model, rows, stopper)
        return rows

    ran = run_batches(
        np.maximum(lengths_P, _LEAST_TOKENS),
        compute,
        token_budget=token_budget,
        passes=_GROUP_PASSES,
        packed=decode is _decode and layers_of(module) is not None,  # it holds hardly any padding
        device=device,
        about_to_run=about_to_run,
    )
    failures = dict(ran.failures)
    for piece, row in enumerate(ran.found_P):
        if row is not None and row.failure is not None:
            failures[piece] = row.failure
    good_P = [row if row is not None and row.failure is None else None for row in ran.found_P]
    return Generated(
        [None if row is None else np.array(row.answer, np.int32) for row in good_P],
        [None if row is None else row.end for row in good_P],
        failures,
        tokens=int(lengths_P.sum()),
        generated_tokens=sum(len(row.answer) for row in good_P if row is not None),
        padding_tokens=model.padding_tokens,
        seconds=ran.seconds,
    )


def _row(prompt_ids: Ids, rules: Rules) -> Row:
    prompt_tokens = 1 if rules.is_seq2seq else len(prompt_ids)
    return Row(prompt_ids, rules.limit(prompt_tokens) - prompt_tokens, rules.processors(prompt_ids))


def _decode(model: Model, rows: Sequence[Row], stopper: Stopper) -> None:
    """Bring every row to its end."""
    chooser = Chooser(model)
    if model.rules.is_seq2seq:
        layers = layers_of(model.module)
        batch: Batch = Seq2SeqBatch(model, rows) if layers is None else T5Batch(model, layers, rows)
        while _advance(batch, chooser, stopper):
            batch.step([row.answer[-1] for row in batch.rows])
        return
    waiting = model.micro_batches(rows)[::-1]
    live: CausalBatch | None = None
    while waiting or live is not None:
        while waiting and (live is None or live.can_join):
            started = CausalBatch(model, waiting.pop())
            if not _advance(started, chooser, stopper):
                continue
            if live is None:
                live = started
            else:
                live.join(started)
        if live is not None:
            live.step([row.answer[-1] for row in live.rows])
            if not _advance(live, chooser, stopper):
                live = None


def _advance(batch: Batch, chooser: Chooser, stopper: Stopper) -> bool:
    """Give every row its next token and let finished rows go; whether any goes on."""
    for row, token in zip(batch.rows, chooser.next_tokens(batch), strict=True):
        if isinstance(token, Failure):
            row.failure = token
            continue
        row.answer.append(token)
        if token in chooser.rules.eos_ids and not (chooser.rules.forces_eos and len(row.answer) == row.limit):
            row.end = End.EOS
        elif stopper.ends(row.answer):
            row.end = End.STOP
        elif len(row.answer) >= row.limit:
            row.end = End.LENGTH
    going = [number for number, row in enumerate(batch.rows) if row.end is None and row.failure is None]
    if going and len(going) < len(batch.rows):
        batch.keep(going)
    return bool(going)
