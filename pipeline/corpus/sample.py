"""Which rows of a corpus a sample takes: pure, decided before anything is read.

    choose([4096, 17, 80_000], count=3, seed=0)          # {0: [2290], 2: [51_207, 66_114]}

Positions are those in the file, counted from 0 before any filter; fragments of which nothing is taken are left out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt


def choose(rows_per_fragment: Sequence[int], count: int, seed: int) -> dict[int, list[int]]:
    """`count` rows drawn uniformly without replacement over F fragments; all rows where there are no more.

    Memory and time grow with the sample (and F), not with the corpus. The result is sorted: fragments by index,
    positions within each.
    """
    ends_F = np.cumsum(np.asarray(rows_per_fragment, dtype=np.int64))
    chosen = _draw(int(ends_F[-1]) if len(ends_F) else 0, count, seed)
    sample: dict[int, list[int]] = {}
    for fragment, first, ranks in _by_fragment(ends_F, chosen):
        sample[fragment] = (ranks - first).tolist()
    return sample


def choose_from(
    positions_per_fragment: Mapping[int, npt.NDArray[np.int64]], count: int, seed: int
) -> dict[int, list[int]]:
    """As `choose`, among the rows that a filter left: sorted file positions by fragment index."""
    fragments = sorted(positions_per_fragment)
    ends_F = np.cumsum(np.asarray([len(positions_per_fragment[fragment]) for fragment in fragments], dtype=np.int64))
    chosen = _draw(int(ends_F[-1]) if len(ends_F) else 0, count, seed)
    sample: dict[int, list[int]] = {}
    for index, first, ranks in _by_fragment(ends_F, chosen):
        fragment = fragments[index]
        sample[fragment] = positions_per_fragment[fragment][ranks - first].tolist()
    return sample


def _draw(total: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` of the ranks 0 … total - 1, sorted."""
    if count >= total:
        return np.arange(total, dtype=np.int64)
    # without shuffle numpy draws by Floyd's method, or by a pool that is at most 20 times the sample
    drawn = np.random.default_rng(seed).choice(total, size=count, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.int64)


def _by_fragment(
    ends_F: npt.NDArray[np.int64], ranks: npt.NDArray[np.int64]
) -> list[tuple[int, int, npt.NDArray[np.int64]]]:
    """(index, first rank, chosen ranks) of each of the F fragments that has some; `ends_F` are cumulated rows."""
    fragment_of = np.searchsorted(ends_F, ranks, side="right")
    touched, begins = np.unique(fragment_of, return_index=True)
    parts = np.split(ranks, begins[1:])
    return [
        (int(index), int(ends_F[index - 1]) if index else 0, part) for index, part in zip(touched, parts, strict=False)
    ]
