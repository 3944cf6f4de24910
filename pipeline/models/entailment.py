"""Which of some statements follow from a text, by a model of natural language inference (Yin et al. 2019,
arXiv:1909.00161).

    judge(bart_mnli, maker, [tokens of "A chess program", …], [tokens of "This example is games.", …], …)
        -> Judged(logits_RLK=[[[-2.1, 0.3, 1.9], …], …], …)
    label_scores(logits_RLK, InferenceHead(entailment=2, contradiction=0), multi_label=False)
        -> [[0.94, 0.06], …]

R texts, L statements, K classes of the head; C pairs of a text that has tokens and a statement. Each text and each
statement is tokenised once; pairs of like lengths share a micro-batch, whichever texts they are of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batching import TokenBudget
from pipeline.models.classes import InferenceHead
from pipeline.models.engine import as_numpy, not_finite, pad, run_batches
from pipeline.models.heads import logits
from pipeline.quarantine import Failure, Reason
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Tokens
from pipeline.workers import Device


@dataclass(frozen=True, slots=True)
class Judged:
    """What the model says of R texts and L statements."""

    logits_RLK: npt.NDArray[np.float32]  # NaN where a text failed
    tokens_R: npt.NDArray[np.int32]  # of all pairs of a text
    truncated_R: npt.NDArray[np.bool_]  # in any of its pairs
    failures: dict[int, Failure]  # by text
    tokens: int
    padding_tokens: int
    seconds: float


def judge(
    module: Any,
    maker: PieceMaker,
    texts_R: Sequence[Tokens | Failure],
    statements_L: Sequence[Tokens],
    *,
    classes: int,
    token_budget: int | TokenBudget,
    pad_id: int,
    device: Device,
    about_to_run: Callable[[Sequence[int]], None] | None = None,
) -> Judged:
    """Every text with every statement; of a pair that is too long the text gives way. `about_to_run` is told texts."""
    failures = {row: failure for row, found in enumerate(texts_R) if (failure := _no_text(found)) is not None}
    row_C = np.repeat([row for row in range(len(texts_R)) if row not in failures], len(statements_L)).astype(np.int64)
    label_C = np.tile(np.arange(len(statements_L)), len(texts_R) - len(failures))
    text_tokens_R = np.array([0 if isinstance(found, Failure) else len(found.ids_T) for found in texts_R], np.int64)
    label_tokens_L = np.array([len(statement.ids_T) for statement in statements_L], np.int64)
    kept_C = np.minimum(text_tokens_R[row_C], maker.room - label_tokens_L[label_C])
    lengths_C = kept_C + label_tokens_L[label_C] + maker.frame.special

    def compute(pairs: npt.NDArray[np.intp]) -> list[npt.NDArray[np.float32]]:
        none = [""] * len(pairs)  # texts are only for a message of one without tokens
        pieces = maker.pair(
            [texts_R[row] for row in row_C[pairs]],
            [statements_L[label] for label in label_C[pairs]],
            none,
            none,
            "first",
        )
        padded = pad(pieces.ids_P, np.arange(len(pairs)), pad_id, device, pieces.types_P)
        return list(as_numpy(logits(module, padded)))

    ran = run_batches(
        lengths_C,
        compute,
        token_budget=token_budget,
        device=device,
        about_to_run=None if about_to_run is None else lambda pairs: about_to_run(_rows(row_C, pairs)),
    )
    logits_RLK = np.full((len(texts_R), len(statements_L), classes), np.nan, np.float32)
    for pair, found_K in enumerate(ran.found_P):
        if found_K is not None:
            logits_RLK[row_C[pair], label_C[pair]] = found_K
    for pair, failure in sorted(ran.failures.items()):
        failures.setdefault(int(row_C[pair]), failure)
    for row in np.flatnonzero(~np.isfinite(logits_RLK).all(axis=(1, 2))).tolist():
        failures.setdefault(row, not_finite(logits_RLK[row]))
    logits_RLK[list(failures)] = np.nan
    tokens_R = np.bincount(row_C, lengths_C, len(texts_R)).astype(np.int32)
    longest = int(label_tokens_L.max())
    return Judged(
        logits_RLK,
        tokens_R,
        text_tokens_R > maker.room - longest,
        failures,
        ran.tokens,
        ran.padding_tokens,
        ran.seconds,
    )


def label_scores(
    logits_RLK: npt.NDArray[np.float32], head: InferenceHead, multi_label: bool
) -> npt.NDArray[np.float32]:
    """scores_RL, 0 to 1, as ZeroShotClassificationPipeline computes them.

    One label is true: the entailment of each against that of the others. Any number: of each the entailment against
    its contradiction.
    """
    entailment_RL = logits_RLK[..., head.entailment]
    if multi_label:
        assert head.contradiction is not None
        with np.errstate(over="ignore"):  # exp beyond float32: the score is 0
            scores_RL: npt.NDArray[np.float32] = 1 / (1 + np.exp(logits_RLK[..., head.contradiction] - entailment_RL))
        return scores_RL
    powers_RL = np.exp(entailment_RL - entailment_RL.max(axis=1, keepdims=True))
    shares_RL: npt.NDArray[np.float32] = powers_RL / powers_RL.sum(axis=1, keepdims=True)
    return shares_RL


def _no_text(found: Tokens | Failure) -> Failure | None:
    if isinstance(found, Failure):
        return found
    return None if len(found.ids_T) else Failure(Reason.NO_TOKENS, "the tokenizer finds no token in the text")


def _rows(row_C: npt.NDArray[np.int64], pairs: Sequence[int]) -> list[int]:
    rows: list[int] = np.unique(row_C[list(pairs)]).tolist()
    return rows
