"""A task that raises, or that answers amiss, loses the texts that made it do so, and no others.

    annotate_surviving(task, Texts(["good", "bad", "good"])) -> failures={1: Failure(MODEL_FAILED, "ValueError: …")}

The shipped tasks tell their failures themselves; a user's own code may not. The texts are halved until the ones that
raise stand alone.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.errors import CorpusmillError
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, Task, Texts

LONGEST_DETAIL = 300
"""Characters of an exception's message that a quarantined row carries."""


def annotate_surviving(task: Task, texts: Texts) -> Annotation:
    """What the task says of the texts; those that it raises for are told in `failures`."""
    try:
        return _fitting(task, task.annotate(texts), len(texts.values))
    except CorpusmillError:  # no text is to blame: the device or the job is
        raise
    except Exception as error:  # noqa: BLE001 - whatever a user's task raises
        return _halved(task, texts) if len(texts.values) > 1 else _failed(task, error, len(texts.values))


def _halved(task: Task, texts: Texts) -> Annotation:
    middle = len(texts.values) // 2
    first = annotate_surviving(task, texts.part(0, middle))
    second = annotate_surviving(task, texts.part(middle, len(texts.values)))
    return Annotation(
        columns={
            field.name: pa.concat_arrays([part.columns[field.name] for part in (first, second)])
            for field in task.fields()
        },
        tokens_R=np.concatenate([first.tokens_R, second.tokens_R]),
        truncated_R=np.concatenate([first.truncated_R, second.truncated_R]),
        failures={**first.failures, **{row + middle: failure for row, failure in second.failures.items()}},
        forward_tokens=first.forward_tokens + second.forward_tokens,
        padding_tokens=first.padding_tokens + second.padding_tokens,
        model_seconds=first.model_seconds + second.model_seconds,
    )


def _fitting(task: Task, found: Annotation, rows: int) -> Annotation:
    """The annotation with whole columns of the types that the task told; ValueError where it does not fit its texts."""
    columns = {}
    for field in task.fields():
        if field.name not in found.columns:
            raise ValueError(f"the task gave no column '{field.name}'")
        columns[field.name] = _whole(found.columns[field.name]).cast(field.type)
    for name, values in (*columns.items(), ("tokens_R", found.tokens_R), ("truncated_R", found.truncated_R)):
        if len(values) != rows:
            raise ValueError(f"the task gave {len(values)} values of '{name}' for {rows} texts")
    return replace(found, columns=columns)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _failed(task: Task, error: Exception, rows: int) -> Annotation:
    """No annotation for the one text (or none) that there is."""
    reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.MODEL_FAILED
    message = str(error)
    detail = f"{type(error).__name__}{': ' if message else ''}{message}"[:LONGEST_DETAIL]
    columns = {field.name: pa.nulls(rows, field.type) for field in task.fields()}
    failures = {row: Failure(reason, detail) for row in range(rows)}
    return Annotation(columns, np.zeros(rows, np.int32), np.zeros(rows, np.bool_), failures)
