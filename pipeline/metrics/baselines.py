"""What needs no model: predictions that a figure must beat to be worth its cost.

    majority({"games": 12, "web": 30}, rows=3)             -> ["web", "web", "web"]
    lead(["Fathom is a stand-alone tool.", null], words=3) -> ["Fathom is a", null]

Each gives a column, which is measured as the model's is: `measure(Labels("section", "majority"), table)`. Counts and
numbers are those of the training rows: of the rows that are judged a baseline knows nothing.
"""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.errors import JobError


def majority(counts: Mapping[str, int], rows: int) -> pa.Array:
    """For every row the label that most training rows have; of equal ones the first by name.

    Raises JobError: no labels.
    """
    if not counts:
        raise JobError("there is no majority without labels: the training rows have none")
    most = min(counts, key=lambda label: (-counts[label], label))
    return pa.repeat(pa.scalar(most, pa.string()), rows)


def commonest(counts: Mapping[str, int], training_rows: int, rows: int) -> pa.Array:
    """For every row the labels that are commonest, as many as a training row has on average, at least one.

    Raises JobError: no labels, or no training rows.
    """
    if not counts or training_rows < 1:
        raise JobError("there are no commonest labels: the training rows have none")
    many = max(1, round(sum(counts.values()) / training_rows))
    most = sorted(counts, key=lambda label: (-counts[label], label))[:many]
    return pa.repeat(pa.scalar(most, pa.list_(pa.string())), rows)


def mean(training_mean: float, rows: int) -> pa.Array:
    """For every row the mean of the training rows' numbers."""
    return pa.repeat(pa.scalar(training_mean, pa.float64()), rows)


def lead(texts: pa.Array | pa.ChunkedArray, words: int) -> pa.Array:
    """The first words of each text, with single blanks between them; null where the text is.

    Raises JobError: less than one word.
    """
    if words < 1:
        raise JobError(f"a lead of {words} words is no text; at least 1")
    return pa.array(
        [None if text is None else " ".join(text.split(maxsplit=words)[:words]) for text in texts.to_pylist()],
        pa.string(),
    )
