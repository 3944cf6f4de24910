"""The examples of a subset, as a worker sees them: mapped into memory, never read whole.

    examples = Examples.of(store, "train")
    examples.lengths_E, examples.weights_E        # one number each
    examples.rows([7, 3])                          # an Arrow table of two examples, in this order

Their order is that of the plan's units, so it hangs on the corpus alone.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import RunError
from pipeline.output.storage import Store
from pipeline.training.rows import EXAMPLES
from pipeline.training.split import SUBSETS, Subset


@dataclass(frozen=True, slots=True)
class Counts:
    """What all units of a job's corpora came to."""

    rows: dict[str, int]  # by subset
    tokens: dict[str, int]
    counted: dict[str, dict[str, float]]  # what the objective counts, by subset
    left_out: dict[str, int]  # rows by reason
    unreadable: int
    filtered: int
    truncated: int

    @classmethod
    def of(cls, receipts: Iterable[dict[str, Any]]) -> "Counts":
        """The sums."""
        found = cls({}, {}, {}, {}, 0, 0, 0)
        unreadable = filtered = truncated = 0
        for each in receipts:
            for sums, part in (
                (found.rows, each["rows"]),
                (found.tokens, each["tokens"]),
                (found.left_out, each["left_out"]),
            ):
                for key, value in part.items():
                    sums[key] = sums.get(key, 0) + value
            for subset, part in each["counted"].items():
                counted = found.counted.setdefault(subset, {})
                for key, value in part.items():
                    counted[key] = counted.get(key, 0) + value
            unreadable += each["unreadable"]
            filtered += each["rows_filtered"]
            truncated += each["truncated_rows"]
        return cls(found.rows, found.tokens, found.counted, found.left_out, unreadable, filtered, truncated)

    def to_json(self) -> dict[str, Any]:
        """Rows of every subset, those left out told with their reasons."""
        return {subset: self.rows.get(subset, 0) for subset in SUBSETS} | {
            "left_out": sum(self.left_out.values()) + self.unreadable,
            "reasons": self.left_out | ({"unreadable": self.unreadable} if self.unreadable else {}),
        }


def receipt_of(store: Store, name: str) -> dict[str, Any] | None:
    """The receipt of an encoded unit; None where it has none that can be read."""
    content = store.find(f"{EXAMPLES}/{name}.json")
    if content is None:
        return None
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError:
        return None
    return found


class Examples:
    """E examples in files of Arrow's stream format, mapped into memory by `datasets`."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Map the files; their order is the order of the examples. Raises RunError where one cannot be read."""
        import datasets

        try:
            parts = [datasets.Dataset.from_file(path) for path in paths]
        except (OSError, pa.ArrowInvalid) as error:
            raise RunError(
                f"the examples cannot be read: {error}; remove {EXAMPLES} and run the same command"
            ) from error
        self._dataset = datasets.concatenate_datasets(parts).with_format("arrow") if parts else None
        tables = [] if self._dataset is None else [self._dataset.data.table]
        lists = [chunk for table in tables for chunk in table["input_ids"].chunks]
        weights = [chunk for table in tables for chunk in table["weight"].chunks]
        self.lengths_E: npt.NDArray[np.int64] = np.concatenate(
            [np.zeros(0, np.int64), *(chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in lists)]
        ).astype(np.int64)
        self.weights_E: npt.NDArray[np.float64] = np.concatenate(
            [np.zeros(0), *(chunk.to_numpy(zero_copy_only=False) for chunk in weights)]
        )

    @classmethod
    def of(cls, store: Store, subset: Subset, names: Sequence[str]) -> "Examples":
        """The examples of a subset, of units in this order."""
        paths = [f"{EXAMPLES}/{name}-{subset}.arrow" for name in names]
        return cls([str(store.full(path)) for path in paths if store.exists(path)])

    def __len__(self) -> int:
        """E."""
        return len(self.lengths_E)

    def counts(self, vocabulary: int) -> npt.NDArray[np.int64]:
        """How often each of the ids 0 to vocabulary - 1 stands in all examples together."""
        found_V = np.zeros(vocabulary, np.int64)
        for chunk in [] if self._dataset is None else self._dataset.data.table["input_ids"].chunks:
            found_V += np.bincount(chunk.flatten().to_numpy(), minlength=vocabulary)[:vocabulary]
        return found_V

    def rows(self, rows_B: Sequence[int] | npt.NDArray[np.intp]) -> pa.Table:
        """B examples, in this order."""
        assert self._dataset is not None
        found: pa.Table = self._dataset[[int(row) for row in rows_B]]
        return found
