"""Which sentences of a text stand for it: pure, from their vectors and their order alone.

    vectors_SD = [[1, 0], [.8, .6], [.8, .6], [0, 1]]      # four sentences; the second and the third say the same
    central(vectors_SD)             -> [.53, .45, .02, -.12]
    central(vectors_SD, before=1)   -> [.53, .80, .80, .40]     # wherever they stand: the mean cosine to the others
    chosen(vectors_SD, most=3)      -> [0, 1, 3]

S sentences, D dimensions. Centrality is degree centrality in the graph of cosines (Erkan & Radev 2004, "LexRank", where
it does as well as the power iteration), directed as in PacSum (Zheng & Lapata 2019, "Sentence Centrality Revisited for
Unsupervised Summarization"): being near to what comes after makes a sentence central, being near to what came before
makes it a repetition. Without a threshold on the edges it is two running sums of vectors and needs no S x S matrix.
Redundancy is the cosine to the nearest sentence taken, weighed as in maximal marginal relevance (Carbonell & Goldstein
1998, "The use of MMR, diversity-based reranking for reordering documents and producing summaries").
"""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]

# Where a sentence stands twice, its vectors differ by rounding: by which texts shared its micro-batch.
_SAME_COSINE = 0.9995
# Sums of equal sentences differ in their last bits by where these stand: what ties must stay a tie.
_DECIMALS = 6


def central(vectors_SD: Vectors, before: float = -0.3) -> Scores:
    """How much each sentence stands for the others, in [-1, 1]: shape (S,).

    The mean over all other sentences of its cosine to them, times `before` for those that come before it. `before` in
    [-1, 1]: 1 for texts where the place of a sentence says nothing, less where the main thing is said early.

    A sentence without a direction (all zeros, or not finite) counts for nothing and gets 0. Time and memory O(S D).
    """
    return _central(_unit(vectors_SD), before).astype(np.float32)


def chosen(vectors_SD: Vectors, most: int, diversity: float = 0.3, before: float = -0.3) -> list[int]:
    """The sentences, `most` of them or all, that stand for the text without saying a thing twice, in the text's order.

    One after another is taken, by the highest (1 - diversity) x centrality - diversity x its greatest cosine to one
    taken already; of equals the first. `diversity` in [0, 1): 0 looks at centrality alone. Whatever it is, a sentence
    that says the same as one taken comes after all that do not, and those without a direction come last.

    Time O(most S D), memory O(S D).
    """
    assert most > 0
    assert 0 <= diversity < 1
    unit_SD = _unit(vectors_SD)
    if len(unit_SD) <= most:
        return list(range(len(unit_SD)))
    relevance_S = (1 - diversity) * _central(unit_SD, before)
    empty_S = ~unit_SD.any(1)
    nearest_S = np.full(len(unit_SD), -1.0)
    taken_S = np.zeros(len(unit_SD), np.bool_)
    for _ in range(most):
        worth_S = np.round(relevance_S - diversity * nearest_S, _DECIMALS)
        # it lies in [-1, 1], so each class stands below all of the one before
        worth_S -= 4 * (nearest_S > _SAME_COSINE) + 8 * empty_S + 16 * taken_S
        best = int(worth_S.argmax())
        taken_S[best] = True
        np.maximum(nearest_S, unit_SD @ unit_SD[best], out=nearest_S)
    return [int(sentence) for sentence in np.flatnonzero(taken_S)]


def _unit(vectors_SD: Vectors) -> npt.NDArray[np.float64]:
    """Each vector with length one; zeros where it has no direction."""
    unit_SD = np.where(np.isfinite(vectors_SD).all(1, keepdims=True), vectors_SD, 0).astype(np.float64)
    lengths_S1 = np.linalg.norm(unit_SD, axis=1, keepdims=True)
    np.divide(unit_SD, lengths_S1, out=unit_SD, where=lengths_S1 > 0)
    return unit_SD


def _central(unit_SD: npt.NDArray[np.float64], before: float) -> npt.NDArray[np.float64]:
    assert -1 <= before <= 1
    up_to_SD = unit_SD.cumsum(0)
    before_SD = up_to_SD - unit_SD
    after_SD = unit_SD.sum(0) - up_to_SD
    score_S: npt.NDArray[np.float64] = (unit_SD * (after_SD + before * before_SD)).sum(1)
    return score_S / max(1, len(unit_SD) - 1)
