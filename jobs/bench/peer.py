"""The seam of peers: other ways to do a workload. A new one is a file in `peers`, and its name in the workload."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from jobs.bench.workload import Measured, TextWorkload, Workload

BATCH = 32
"""Texts of a batch, where a peer's documentation names no other number."""

Does = TypeVar("Does", bound=Workload)
Reads = TypeVar("Reads", bound=TextWorkload)


class Peer(ABC, Generic[Does]):
    """Another way to do a workload, as its documentation shows it."""

    packages: ClassVar[tuple[str, ...]] = ()
    """What has to be installed, by the name that is imported."""

    one_in: ClassVar[int] = 1
    """It does one row in so many: rates of slow ones need no more."""

    def __init__(self, setting: Does) -> None:
        """Keep what is to be done; nothing is imported or loaded yet."""
        self.setting = setting

    @classmethod
    def obstacle(cls) -> str | None:
        """Why it cannot take part here; None: it can."""
        absent = [package for package in cls.packages if find_spec(package) is None]
        return f"pip install {' '.join(absent)}" if absent else None

    @abstractmethod
    def measure(self, began: float) -> tuple[Measured, Sequence[Any] | None]:
        """Do it, in a process that began at this time (seconds since 1970); an output for each row, if it has any."""


class TextPeer(Peer[Reads]):
    """A peer that reads texts."""

    seconds: float | None = None
    """What all texts took, where the peer itself knows better than the clock around it."""

    @abstractmethod
    def load(self) -> None:
        """Bring the model to memory."""

    @abstractmethod
    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """An output for each text, as the workload has it."""

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int | None:  # noqa: ARG002
        """Tokens that it computes for texts of these lengths, padding counted; None where it is not known."""
        return None

    def measure(self, began: float) -> tuple[Measured, Sequence[Any] | None]:
        """Load, a first batch, then all texts."""
        texts = self.setting.some(self.one_in)
        self.load()
        self.outputs(texts[:BATCH])
        first_row_seconds = time.time() - began
        start = time.perf_counter()
        found = self.outputs(texts)
        seconds = self.seconds or time.perf_counter() - start
        lengths_R = token_counts(self.setting, texts)
        measured = Measured(
            rows=len(texts),
            tokens=int(lengths_R.sum()),
            padded_tokens=self.padded_tokens(texts, lengths_R),
            seconds=seconds,
            first_row_seconds=first_row_seconds,
            flop=self.setting.flop(lengths_R),
            one_in=self.one_in,
        )
        return measured, found


def token_counts(setting: TextWorkload, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Tokens of each text within the window, special ones included."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    encoded = tokenizer(list(texts), truncation=True, max_length=setting.max_tokens)
    return np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
