"""What a computation is worth, from the lengths of its texts alone: arithmetic and padding. Pure.

encoder_flop({"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536}, lengths_R) -> 8.9e11
padded_in_order([5, 90, 7, 88], batch=2) -> 356
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batching import padding

_KEYS = (
    ("num_hidden_layers", "n_layers", "n_layer", "num_layers"),
    ("hidden_size", "dim", "d_model", "n_embd"),
    ("intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim"),
)


def encoder_flop(config: Mapping[str, Any], lengths_R: npt.NDArray[np.int64]) -> float | None:
    """Multiplications and additions of the layers for texts of these tokens, without padding; None for unknown sizes.

    A layer has four products of H x H and two of H x I for each token, and two of L x H for each token's attention
    (as Narayanan et al. 2021, arXiv:2104.04473, count a forward pass; embeddings and heads are left out).
    """
    sizes = [next((config[key] for key in keys if isinstance(config.get(key), int)), None) for keys in _KEYS]
    if None in sizes:
        return None
    layers, hidden, inner = (int(size) for size in sizes if size is not None)
    tokens, squares = float(lengths_R.sum()), float((lengths_R.astype(np.float64) ** 2).sum())
    return layers * (2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * hidden * squares)


def padded(lengths_R: npt.NDArray[np.int64], batches: Sequence[npt.NDArray[np.intp]]) -> int:
    """Tokens of these batches of texts, each as long as the longest of its batch."""
    return int(lengths_R.sum()) + padding(lengths_R, batches)


def padded_in_order(lengths_R: npt.NDArray[np.int64], batch: int) -> int:
    """The same of batches of so many texts in their order."""
    return padded(lengths_R, np.split(np.arange(len(lengths_R)), range(batch, len(lengths_R), batch)))
