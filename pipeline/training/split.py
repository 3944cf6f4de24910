"""Which rows train, which choose the best model, and which are never seen before the end: pure.

    subset_of("dpkg", Shares(validation=0.1, test=0.1, seed=0))  ->  "train"

A row's subset hangs on its group and the seed alone: not on the order of the corpus, nor on what other rows there are.
Rows of one group never stand on two sides.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

Subset = Literal["train", "validation", "test"]

SUBSETS: tuple[Subset, ...] = ("train", "validation", "test")

_NAMES: dict[str, Subset] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of the groups goes where; the rest trains."""

    validation: float
    test: float
    seed: int


def subset_of(group: str, shares: Shares) -> Subset:
    """The subset of a group: by the SHA-256 of seed and group, as a number in [0, 1)."""
    digest = hashlib.sha256(f"{shares.seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    if place < shares.test:
        return "test"
    return "validation" if place < shares.test + shares.validation else "train"


def subset_named(word: str) -> Subset | None:
    """What a column's word for a subset means (train, training, validation, valid, val, dev, test); None: nothing."""
    return _NAMES.get(word.strip().lower())
