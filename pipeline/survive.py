"""A task that raises loses the texts that made it raise, and no others.

    annotate_surviving(task, Texts(["good", "bad", "good"])) -> failures={1: Failure(MODEL_FAILED, "ValueError: …")}

The shipped tasks tell their failures themselves; a user's own code may not. The texts are halved until the ones that
raise stand alone.
"""

import numpy as np
import pyarrow as pa

from pipeline.errors import CorpusmillError
from pipeline.quarantine import Reason
from pipeline.tasks.base import Annotation, Failure, Task, Texts

LONGEST_DETAIL = 300
"""Characters of an exception's message that a quarantined row carries."""


def annotate_surviving(task: Task, texts: Texts) -> Annotation:
    """What the task says of the texts; those that it raises for are told in `failures`."""
    try:
        return task.annotate(texts)
    except CorpusmillError:  # no text is to blame: the device or the job is
        raise
    except Exception as error:  # noqa: BLE001 - whatever a user's task raises
        return _halved(task, texts) if len(texts.values) > 1 else _failed(task, error, len(texts.values))


def _halved(task: Task, texts: Texts) -> Annotation:
    middle = len(texts.values) // 2
    first = annotate_surviving(task, _part(texts, 0, middle))
    second = annotate_surviving(task, _part(texts, middle, len(texts.values)))
    names = {field.name: field.type for field in task.fields()}
    return Annotation(
        columns={
            name: pa.concat_arrays([_whole(part.columns[name]).cast(kind) for part in (first, second)])
            for name, kind in names.items()
        },
        tokens_R=np.concatenate([first.tokens_R, second.tokens_R]),
        truncated_R=np.concatenate([first.truncated_R, second.truncated_R]),
        failures={**first.failures, **{row + middle: failure for row, failure in second.failures.items()}},
        forward_tokens=first.forward_tokens + second.forward_tokens,
        padding_tokens=first.padding_tokens + second.padding_tokens,
    )


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _part(texts: Texts, start: int, stop: int) -> Texts:
    """The texts [start, stop), which tell the journal their own places."""
    part = Texts(texts.values[start:stop])
    running = texts.running
    if running is not None:
        part.running = lambda indices: running([start + index for index in indices])
    return part


def _failed(task: Task, error: Exception, rows: int) -> Annotation:
    """No annotation for the one text (or none) that there is."""
    reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.MODEL_FAILED
    detail = f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
    columns = {field.name: pa.nulls(rows, field.type) for field in task.fields()}
    failures = {row: Failure(reason, detail) for row in range(rows)}
    return Annotation(columns, np.zeros(rows, np.int32), np.zeros(rows, np.bool_), failures)
