"""The seam of peers: other ways to the same vectors. A new one is one more file in `peers`, and its name there."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from jobs.bench.setting import Setting

Vectors = npt.NDArray[np.float32]

BATCH = 32
"""Texts of a batch, where a peer's documentation names no other number."""


class Peer(ABC):
    """Another way to the vectors, as its documentation shows it."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What has to be installed, by the name that is imported."""

    one_in: ClassVar[int] = 1
    """It computes one text in so many: rates of slow ones need no more."""

    def __init__(self, setting: Setting) -> None:
        """Keep what is to be computed; nothing is imported or loaded yet."""
        self.setting = setting

    @abstractmethod
    def load(self) -> None:
        """Bring the model to memory."""

    @abstractmethod
    def vectors(self, texts: Sequence[str]) -> Vectors:
        """A vector for each text, pooled and normalised as the setting says: vectors_RD."""

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int | None:  # noqa: ARG002
        """Tokens that it computes for texts of these lengths, padding counted; None where it is not known."""
        return None


def pooled(hidden_BLD: Vectors, mask_BL: npt.NDArray[np.int64], setting: Setting) -> Vectors:
    """Vectors_BD of hidden states: for peers that give no more."""
    import torch

    from pipeline.models.pooling import pool
    from pipeline.tasks.encoder import normalized

    vectors_BD = pool(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL), setting.pooling).numpy()
    return normalized(vectors_BD) if setting.normalize else vectors_BD
