"""How unlikely a model finds each token, in nats: -log p of the token, given what the model sees of the others.

    causal_losses(gpt2, padded)                       -> [array([4.1, 0.3, 7.9])]     # of a piece's 2nd, 3rd … token
    masked_losses(bert, [[101, 7592, 102]], [[1, 2]]) -> Ran(found_P=[array([5.0])])  # each masked in its turn

B pieces in a micro-batch, L tokens of the longest, V the vocabulary; C copies of P pieces, each with one token masked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pipeline.batching import TokenBudget
from pipeline.models.engine import Padded, Ran, as_numpy, not_finite, pad, run_batches
from pipeline.text.tokens import Ids
from pipeline.workers import Device

Losses = npt.NDArray[np.float32]

_LOGITS = 2**28  # of one pass: 1 GiB in float32
_CHUNK_LOGITS = 2**25  # in float32 at once


def tokens_at_once(module: Any, budget: TokenBudget) -> TokenBudget:
    """The budget, or as much of it as has logits that a machine should hold."""
    return budget.within(max(1, _LOGITS // max(1, _vocabulary(module))))


def causal_losses(module: Any, padded: Padded) -> list[Losses]:
    """For each of B pieces the losses of its tokens from the second on, given all before them."""
    logits_BLV = module(**padded.inputs, use_cache=False).logits[:, :-1]
    targets_BL = padded.input_ids_BL[:, 1:]
    step = max(1, _CHUNK_LOGITS // max(1, len(logits_BLV) * logits_BLV.shape[-1]))
    parts = [
        functional.cross_entropy(
            logits_BLV[:, start : start + step].float().transpose(1, 2),
            targets_BL[:, start : start + step],
            reduction="none",
        )
        for start in range(0, targets_BL.shape[1], step)
    ]
    losses_BL = as_numpy(torch.cat(parts, 1)) if parts else np.zeros((len(logits_BLV), 0), np.float32)
    return [losses_L[: length - 1] for losses_L, length in zip(losses_BL, padded.lengths_B, strict=True)]


def masked_losses(
    module: Any,
    ids_P: Sequence[Ids],
    places_P2: npt.NDArray[np.integer],
    *,
    mask_id: int,
    token_budget: int | TokenBudget,
    pad_id: int,
    device: Device,
    types_P: Sequence[Ids] | None = None,
    about_to_run: Callable[[Sequence[int]], None] | None = None,
) -> Ran[Losses]:
    """For each of P pieces the losses of its tokens at places [start, stop), each masked alone.

    Their negative sum is the pseudo-log-likelihood of Salazar et al. 2020 (arXiv:1910.14659). A piece with a loss that
    is not finite has failed, as one of which a copy fails; `about_to_run` is told pieces.
    """
    counts_P = places_P2[:, 1] - places_P2[:, 0]
    piece_C = np.repeat(np.arange(len(ids_P)), counts_P)
    place_C = np.concatenate([np.arange(start, stop) for start, stop in places_P2] or [np.zeros(0, np.int64)])
    lengths_P = np.array([len(ids) for ids in ids_P], np.int64)

    def compute(copies: npt.NDArray[np.intp]) -> list[Losses]:
        padded = pad(ids_P, piece_C[copies], pad_id, device, types_P)
        rows_B = torch.arange(len(copies), device=padded.input_ids_BL.device)
        places_B = torch.from_numpy(place_C[copies]).to(padded.input_ids_BL.device)
        targets_B = padded.input_ids_BL[rows_B, places_B]
        padded.input_ids_BL[rows_B, places_B] = mask_id
        logits_BV = _logits_at(module, padded, rows_B, places_B)
        return list(as_numpy(functional.cross_entropy(logits_BV.float(), targets_B, reduction="none")))

    ran = run_batches(
        lengths_P[piece_C],
        compute,
        token_budget=token_budget,
        device=device,
        about_to_run=None if about_to_run is None else lambda copies: about_to_run(_pieces(piece_C, copies)),
    )
    failures = {int(piece_C[copy]): failure for copy, failure in sorted(ran.failures.items(), reverse=True)}
    stops_P = np.cumsum(counts_P)
    found_P: list[Losses | None] = []
    for piece, (stop, count) in enumerate(zip(stops_P, counts_P, strict=True)):
        losses = None if piece in failures else np.array(ran.found_P[stop - count : stop], np.float32)
        if losses is not None and not np.isfinite(losses).all():
            failures[piece] = not_finite(losses)
            losses = None
        found_P.append(losses)
    return Ran(found_P, failures, ran.tokens, ran.padding_tokens, ran.seconds)


def _logits_at(module: Any, padded: Padded, rows_B: torch.Tensor, places_B: torch.Tensor) -> torch.Tensor:
    """logits_BV at one place of each row.

    The projection to the vocabulary is often more work than the rest of the model: only these places go through it.
    """
    head = module.get_output_embeddings()
    picked = False

    def pick(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal picked
        if given[0].dim() != 3 or given[0].shape[:2] != padded.input_ids_BL.shape:
            return given
        picked = True
        return (given[0][rows_B, places_B][None], *given[1:])

    hook = None if head is None else head.register_forward_pre_hook(pick)
    try:
        found: torch.Tensor = module(**padded.inputs).logits
    finally:
        if hook is not None:
            hook.remove()
    return found[0] if picked else found[rows_B, places_B]


def _pieces(piece_C: npt.NDArray[np.intp], copies: Sequence[int]) -> list[int]:
    pieces: list[int] = np.unique(piece_C[list(copies)]).tolist()
    return pieces


def _vocabulary(module: Any) -> int:
    return int(module.config.get_text_config().vocab_size)
