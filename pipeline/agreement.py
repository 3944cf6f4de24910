"""How far two computations of the same rows agree: pure, from the columns that each gave.

    agreement({"embedding": [[…], …]}, {"embedding": [[…], …]}) -> Agreement("cosine", 0.9934, rows=256)
    agreement({"label": ["games", …], "score": […]}, …)         -> Agreement("same", 0.9961, rows=256)

Vectors: the cosine that 99% of the rows reach. Labels, entities, words: the share of rows that have the same ones;
scores beside them may differ. Where a task gives numbers alone there is nothing that would have to agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

REACHED = 0.99
"""The share of rows that reach the cosine of an agreement."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One figure, 1 for what is the same."""

    of: Literal["cosine", "same"]
    figure: float
    rows: int  # that were compared

    def __str__(self) -> str:
        """As people read it."""
        if self.of == "cosine":
            return f"{REACHED:.0%} of {self.rows} rows have a cosine of at least {self.figure:.4f}"
        return f"{self.figure:.2%} of {self.rows} rows are the same"


def agreement(exact: Mapping[str, pa.Array], found: Mapping[str, pa.Array]) -> Agreement | None:
    """The agreement of the columns of two computations; None where they hold numbers alone, or no row.

    A row that neither annotated is not compared; one that only one of them did does not agree.
    """
    vectors = [name for name, values in exact.items() if _is_vectors(values.type)]
    words = [name for name, values in exact.items() if name not in vectors and _has_words(values.type)]
    asked_R = np.zeros(len(next(iter(exact.values()))), np.bool_)
    for name in exact:
        for values in (exact[name], found[name]):
            asked_R |= np.asarray(values.is_valid())
    rows = int(asked_R.sum())
    if rows == 0 or not (vectors or words):
        return None
    if vectors:
        cosines_R = np.min([_cosines(exact[name], found[name]) for name in vectors], axis=0)[asked_R]
        return Agreement("cosine", float(np.sort(cosines_R)[int(rows * (1 - REACHED))]), rows)
    pairs = [zip(_words(exact[name]), _words(found[name]), strict=True) for name in words]
    same_R = np.array([all(one == other for one, other in row) for row in zip(*pairs, strict=True)])
    return Agreement("same", float(same_R[asked_R].mean()), rows)


def can_compare(fields: Sequence[pa.Field]) -> bool:
    """Whether columns of these types hold vectors or words."""
    return any(_is_vectors(field.type) or _has_words(field.type) for field in fields)


def _is_vectors(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


def _has_words(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_words(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_has_words(field.type) for field in kind)
    return bool(pa.types.is_string(kind))


def _cosines(exact: pa.Array, found: pa.Array) -> npt.NDArray[np.float64]:
    """Of each row; 0 where one is null or has no direction."""
    one_RD, other_RD = _numbers(exact), _numbers(found)
    lengths_R = np.linalg.norm(one_RD, axis=1) * np.linalg.norm(other_RD, axis=1)
    cosines_R: npt.NDArray[np.float64] = (one_RD * other_RD).sum(1) / np.where(lengths_R > 0, lengths_R, 1)
    return cosines_R


def _numbers(vectors: pa.Array) -> npt.NDArray[np.float64]:
    """Vectors_RD; a null is 0."""
    width = vectors.type.list_size
    found_RD = np.zeros((len(vectors), width))
    kept_R = np.asarray(vectors.is_valid())
    found_RD[kept_R] = vectors.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return found_RD


def _words(values: pa.Array) -> list[object]:
    """What of each row must be the same: all but real numbers."""
    return [_without_reals(value) for value in values.to_pylist()]


def _without_reals(value: object) -> object:
    if isinstance(value, Mapping):
        return tuple(
            sorted((name, _without_reals(each)) for name, each in value.items() if not isinstance(each, float))
        )
    if isinstance(value, list):
        return tuple(_without_reals(each) for each in value if not isinstance(each, float))
    return value
