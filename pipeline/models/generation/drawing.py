"""Scores become one token, the same one however rounding fell: pure, without torch.

    filters = Filters(temperature=0.7, top_k=50, top_p=0.9)
    RowNoise(seed=0, prompt_ids=[101, 7592]).at(step=3, size=50257)  -> noise_V, the same in any batch
    draw(scores_V, noise_V, filters, slack=1e-3)  -> 1045, or None: too near a tie to tell

A token is drawn by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, "A* sampling"): the greatest of score plus
noise is a draw from the softmax of the scores. A token that scores off by less than `slack` would not draw is told as
None: the caller must ask for scores that do not depend on the batch. V is the vocabulary.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Noise = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Filters:
    """Which tokens may be drawn; None leaves a filter out. Applied in this order, as transformers does."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


class RowNoise:
    """Random numbers of one row: they depend on the seed and the prompt alone."""

    def __init__(self, seed: int, prompt_ids: Sequence[int] | npt.NDArray[np.integer]) -> None:
        """Derive the row's key."""
        told = seed.to_bytes(16, "little", signed=True) + np.asarray(prompt_ids, np.dtype("<i8")).tobytes()
        self._key = int.from_bytes(hashlib.blake2b(told, digest_size=16).digest(), "little")

    def at(self, step: int, size: int) -> Noise:
        """`size` uniform numbers in (0, 1), one for each token of the vocabulary."""
        # Philox counts up from `counter`: the high half is the step, so that steps never meet.
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=step << 128))
        return np.maximum(generator.random(size), np.finfo(np.float64).tiny)


def draw(scores_V: Scores, uniform_V: Noise, filters: Filters, slack: float) -> int | None:
    """The token drawn; None where scores that are off by `slack` could draw another.

    With a slack of 0 there is always one.
    """
    slack /= filters.temperature
    scaled_V = scores_V.astype(np.float64) / filters.temperature
    maybe_N = np.flatnonzero(kept(scaled_V, filters, slack))
    perturbed_N = scaled_V[maybe_N] - np.log(-np.log(uniform_V[maybe_N]))
    best = int(perturbed_N.argmax())
    token = int(maybe_N[best])
    if slack == 0:
        return token
    others_N = np.delete(perturbed_N, best)
    if len(others_N) and perturbed_N[best] - others_N.max() <= 2 * slack:
        return None
    return token if kept(scaled_V, filters, -slack)[token] else None


def kept(scaled_V: npt.NDArray[np.float64], filters: Filters, slack: float = 0.0) -> npt.NDArray[np.bool_]:
    """Which tokens the filters leave, scores over temperature given.

    `slack` above 0: those that some scores off by so much would leave; below 0: those that all of them would.
    """
    kept_V = np.isfinite(scaled_V)
    if not (filters.top_k or filters.min_p or (filters.top_p or 1) < 1):
        return kept_V
    index_N = np.flatnonzero(kept_V)
    if filters.top_k and filters.top_k < len(index_N):  # only these can be left or stand before one that is
        last = np.partition(scaled_V[index_N], -filters.top_k)[-filters.top_k]
        index_N = index_N[scaled_V[index_N] >= last - 2 * abs(slack)]
    order_N = index_N[np.argsort(-scaled_V[index_N], kind="stable")]
    score_N = scaled_V[order_N]  # falling
    mass_N = np.exp(score_N - score_N[0])
    likelier_N = _likelier(score_N, slack)
    above_N = np.concatenate([[0.0], np.cumsum(mass_N)])[likelier_N]  # the mass of likelier tokens
    if slack < 0:  # of those that may be likelier, the token itself is none
        likelier_N, above_N = likelier_N - 1, above_N - mass_N
    kept_N = np.ones(len(order_N), np.bool_)
    if filters.top_k:
        # Tokens with the score of the last place are all left, as transformers has it.
        rank_N = np.searchsorted(-score_N, -score_N, side="left") if slack == 0 else likelier_N
        kept_N &= rank_N < filters.top_k
    if filters.top_p is not None and filters.top_p < 1:
        kept_N &= above_N * np.exp(-slack) < filters.top_p * mass_N[kept_N].sum()
    if filters.min_p:
        kept_N &= score_N >= score_N[0] + np.log(filters.min_p) - slack
    kept_V[:] = False
    kept_V[order_N[kept_N]] = True
    return kept_V


def _likelier(score_N: npt.NDArray[np.float64], slack: float) -> npt.NDArray[np.intp]:
    """How many of the falling scores are above each one: in their order, for sure (slack > 0), or perhaps (< 0)."""
    if slack == 0:
        return np.arange(len(score_N))
    side: Literal["left", "right"] = "left" if slack > 0 else "right"
    return np.searchsorted(-score_N, -(score_N + slack), side=side)
