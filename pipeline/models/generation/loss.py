"""How surprising a model finds a text: perplexity, for filters on quality.

    losses(module, [[464, 3290, 318]], …)                -> Losses(sums_P=array([11.2]), counted_P=array([2]), …)
    pseudo_losses(module, [[101, 7592, 102]], mask_id=103, special_ids={101, 102}, …) -> Losses(counted_P=array([1]), …)

Sums are of negative natural logarithms; perplexity is exp(sum / counted). B rows, L tokens, D hidden, V vocabulary.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.models.engine import AboutToRun, Padded, Ran, not_finite, pad, run_batches, run_pieces
from pipeline.quarantine import Failure
from pipeline.tokens import Ids
from pipeline.workers import Device

_POSITIONS = 256  # whose V logits are in memory at one time


@dataclass(slots=True)
class Losses:
    """Of P pieces; a failed one holds NaN."""

    sums_P: npt.NDArray[np.float64]
    counted_P: npt.NDArray[np.int64]  # tokens that the sum is over
    failures: dict[int, Failure]
    tokens: int
    padding_tokens: int
    seconds: float


def losses(
    module: Any,
    ids_P: Sequence[Ids],
    *,
    token_budget: int,
    pad_id: int,
    device: Device,
    about_to_run: AboutToRun | None = None,
) -> Losses:
    """Each token's loss given those before it, under a causal model; the first token of a piece is not counted.

    A piece of one token counts 0 tokens. Faults as `run_batches` treats them.
    """

    def compute(padded: Padded) -> list[float]:
        targets_BL = padded.input_ids_BL[:, 1:]
        counts_BL = padded.attention_mask_BL[:, 1:].bool()
        return _summed(module, padded, targets_BL, counts_BL)

    ran = run_pieces(ids_P, compute, token_budget=token_budget, pad_id=pad_id, device=device, about_to_run=about_to_run)
    return _told(ran, np.array([len(ids) - 1 for ids in ids_P], np.int64))


def pseudo_losses(
    module: Any,
    ids_P: Sequence[Ids],
    *,
    mask_id: int,
    special_ids: Collection[int],
    token_budget: int,
    pad_id: int,
    device: Device,
    stride: int | None = None,
    about_to_run: AboutToRun | None = None,
) -> Losses:
    """Each token's loss where it alone is masked (Salazar et al. 2020, "Masked Language Model Scoring").

    A piece of n tokens costs n passes. With a `stride` every stride-th token is masked at once, and a piece costs that
    many passes; the loss is then somewhat higher, as fewer neighbours are seen. Special tokens are neither masked nor
    counted. Faults as `run_batches` treats them.
    """
    special = np.array(sorted(special_ids), np.int64)
    places_P = [np.flatnonzero(~np.isin(ids, special)) for ids in ids_P]

    def compute(batch: npt.NDArray[np.intp]) -> list[float]:
        masked, owner, hidden = [], [], []
        for number, piece in enumerate(batch):
            places = places_P[piece]
            passes = min(stride or len(places), len(places))
            for first in range(passes):
                copied = ids_P[piece].copy()
                copied[places[first::passes]] = mask_id
                masked.append(copied)
                owner.append(number)
                hidden.append(places[first::passes])
        sums = [0.0] * len(batch)
        longest = max((len(ids) for ids in masked), default=1)
        at_once = max(1, token_budget // longest)
        for start in range(0, len(masked), at_once):
            some = np.arange(start, min(start + at_once, len(masked)))
            padded = pad(masked, some, pad_id, device)
            targets_BL, counts_BL = padded.input_ids_BL.clone(), torch.zeros_like(padded.input_ids_BL, dtype=torch.bool)
            for row, copied_number in enumerate(some):
                places = torch.from_numpy(hidden[copied_number])
                whole = ids_P[batch[owner[copied_number]]].astype(np.int64)
                targets_BL[row, places] = torch.from_numpy(whole)[places].to(targets_BL.device)
                counts_BL[row, places] = True
            for copied_number, value in zip(some, _summed(module, padded, targets_BL, counts_BL), strict=True):
                sums[owner[copied_number]] += value
        return sums

    lengths_P = np.array([len(ids) for ids in ids_P], np.int64)
    ran = run_batches(lengths_P, compute, token_budget=token_budget, device=device, about_to_run=about_to_run)
    return _told(ran, np.array([len(places) for places in places_P], np.int64))


def _summed(module: Any, padded: Padded, targets_BL: torch.Tensor, counts_BL: torch.Tensor) -> list[float]:
    """The loss of each row over the positions that count; position l predicts targets_BL[:, l]."""
    rows_N, places_N = counts_BL.nonzero(as_tuple=True)
    sums_B = torch.zeros(len(counts_BL), dtype=torch.float64, device=counts_BL.device)
    start = 0
    for logits_NV in _logits(module, padded.inputs, rows_N, places_N):
        some = slice(start, start + len(logits_NV))
        targets_N = targets_BL[rows_N[some], places_N[some]]
        losses_N = torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
        sums_B.index_add_(0, rows_N[some], losses_N.double())
        start += len(logits_NV)
    values: list[float] = sums_B.tolist()
    return values


def _logits(
    module: Any, inputs: Mapping[str, torch.Tensor], rows_N: torch.Tensor, places_N: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Logits of these positions, some at a time: most of a model's memory would be its B x L x V of them.

    The hidden states that reach the vocabulary's projection are caught there, and only the first few go through. Where
    these come out of the model as the projection made them, it does the rest alone; else (a scale or a cap after it)
    the model runs again for each few.
    """
    head = module.get_output_embeddings()
    chunks = [
        (rows_N[at : at + _POSITIONS], places_N[at : at + _POSITIONS]) for at in range(0, len(rows_N), _POSITIONS)
    ]
    if not chunks:
        return
    caught: list[torch.Tensor] = []
    logits_NV = _through(module, head, inputs, *chunks[0], caught)
    yield logits_NV
    if len(chunks) == 1:
        return
    if not caught:  # a projection without a module of its own
        logits_BLV = module(**inputs).logits
        yield from (logits_BLV[chunk] for chunk in chunks[1:])
        return
    is_plain = torch.equal(head(caught[0][chunks[0]]), logits_NV)
    for chunk in chunks[1:]:
        yield head(caught[0][chunk]) if is_plain else _through(module, head, inputs, *chunk, [])


def _through(
    module: Any,
    head: Any,
    inputs: Mapping[str, torch.Tensor],
    rows_N: torch.Tensor,
    places_N: torch.Tensor,
    caught: list[torch.Tensor],
) -> torch.Tensor:
    """logits_NV by a whole pass in which only these positions reach the projection."""

    def pick(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        caught.append(given[0])
        return (given[0][rows_N, places_N][None], *given[1:])

    hook = None if head is None else head.register_forward_pre_hook(pick)
    try:
        logits_BLV: torch.Tensor = module(**inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits_BLV[0] if caught else logits_BLV[rows_N, places_N]


def _told(ran: Ran[float], counted_P: npt.NDArray[np.int64]) -> Losses:
    sums_P = np.array([np.nan if found is None else found for found in ran.found_P], np.float64)
    failures = dict(ran.failures)
    for piece in np.flatnonzero(~np.isfinite(sums_P)):
        failures.setdefault(int(piece), not_finite(sums_P[piece : piece + 1].astype(np.float32)))
    sums_P[list(failures)] = np.nan
    return Losses(sums_P, counted_P, failures, ran.tokens, ran.padding_tokens, ran.seconds)
