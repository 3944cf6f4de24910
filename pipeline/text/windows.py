"""Long texts become windows, and what the windows gave becomes one row again: pure, without torch.

    spans(tokens=10, size=4, stride=1) -> [(0, 4), (3, 7), (6, 10)]
    pool(values_PD=[[1.], [3.], [5.]], windows_R=[2, 0, 1], how="mean") -> [[2.], [nan], [5.]]

`stride` is what the tokenizers library calls so: the tokens that neighbouring windows share.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

WindowPooling = Literal["mean", "max"]


def spans(tokens: int, size: int, stride: int) -> list[tuple[int, int]]:
    """[start, stop) of each window of at most `size` tokens, each sharing `stride` tokens with the one before.

    Every token stands in a window, and the last window brings at least one token that none before it had.
    """
    assert 0 <= stride < size
    starts = range(0, max(1, tokens - stride), size - stride)
    return [(start, min(start + size, tokens)) for start in starts]


def pool(
    values_PD: npt.NDArray[np.float32], windows_R: npt.NDArray[np.integer], how: WindowPooling
) -> npt.NDArray[np.float32]:
    """One row for each text from its windows, which stand one after another in `values_PD`.

    `windows_R` counts the windows of each text; a text without any becomes a row of NaN. Every window of a text weighs
    the same. A text of one window keeps its values to the bit.
    """
    assert len(values_PD) == windows_R.sum()
    if (windows_R == 1).all():
        return values_PD
    pooled_RD = np.full((len(windows_R), values_PD.shape[1]), np.nan, np.float32)
    with_R = windows_R > 0
    if not with_R.any():
        return pooled_RD
    if windows_R.max() == 1:
        pooled_RD[with_R] = values_PD
        return pooled_RD
    firsts = (np.cumsum(windows_R) - windows_R)[with_R]
    if how == "max":
        pooled_RD[with_R] = np.maximum.reduceat(values_PD, firsts)
    else:
        pooled_RD[with_R] = np.add.reduceat(values_PD, firsts) / windows_R[with_R, None].astype(np.float32)
    return pooled_RD
