"""Which window judges which token of a text, and what the losses of its tokens come to: pure, without torch.

    windows [0, 4) [3, 7) [6, 10) of a text of 10 tokens
    own_spans(…, both_sides=False) -> [0, 4) [4, 7) [7, 10)    # what stands before a token in its window is its context
    own_spans(…, both_sides=True)  -> [0, 3) [3, 6) [6, 10)    # each token where it stands farther from an edge
    perplexities([[2.3, 0.1], [1.2], …], windows_R=[2, …]) -> losses_R [1.2, …], perplexities_R [3.32, …]

P windows, those of one text one after another; R texts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def own_spans(
    spans_P2: npt.NDArray[np.integer], windows_R: npt.NDArray[np.integer], both_sides: bool
) -> npt.NDArray[np.int64]:
    """[start, stop) of the tokens that each window judges, so that every token of a text is judged once.

    `both_sides`: the model sees what follows too, so that neighbours share what they overlap; else a window judges
    what no window before it holds (the sliding window that Press et al. 2021, arXiv:2012.15832, evaluate with).
    """
    own_P2 = np.array(spans_P2, np.int64).reshape(-1, 2)
    row_P = np.repeat(np.arange(len(windows_R)), windows_R)
    follows = np.flatnonzero(row_P[1:] == row_P[:-1])  # windows with a neighbour behind them
    stops, starts = own_P2[follows, 1], own_P2[follows + 1, 0]
    borders = (starts + stops) // 2 if both_sides else stops
    own_P2[follows, 1] = borders
    own_P2[follows + 1, 0] = borders
    return own_P2


def perplexities(
    losses_P: Sequence[npt.NDArray[np.float32] | None], windows_R: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The mean loss of each text's tokens, in nats, and its exponential.

    NaN where a window of the text has no losses (None), or where no token was judged; infinity where the exponential
    is more than a float32 holds.
    """
    means_R = np.full(len(windows_R), np.nan)
    stops_R = np.cumsum(windows_R)
    for row, (stop, count) in enumerate(zip(stops_R, windows_R, strict=True)):
        of_text = losses_P[stop - count : stop]
        if any(losses is None for losses in of_text):
            continue
        tokens = sum(len(losses) for losses in of_text if losses is not None)
        if tokens:
            means_R[row] = sum(float(losses.sum(dtype=np.float64)) for losses in of_text if losses is not None) / tokens
    with np.errstate(over="ignore"):
        return means_R.astype(np.float32), np.exp(means_R).astype(np.float32)
