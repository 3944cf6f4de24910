"""Rows that could not be annotated, and why.

    Problem(row=17, annotation="topic", reason=Reason.BLANK_TEXT, detail="the text has 3 characters, none visible")
    Lost(file="b/part-01.parquet", first_row=4096, rows=1024, reason=Reason.DAMAGED_ROW_GROUP, detail="…")

A `Problem` is about one row that was read; a `Lost` is about rows that could not be. Each becomes one or more
rows of the quarantine files: `_file, _row, annotation, reason, detail, input`.
"""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a row stands in the quarantine; the value is what the `reason` column holds."""

    # the text of a row
    NULL_TEXT = "null_text"
    BLANK_TEXT = "blank_text"
    CONTROL_CHARACTERS = "control_characters"  # nothing but control characters; among visible ones they are harmless
    NOT_UTF8 = "not_utf8"
    OVER_MAX_CHARS = "over_max_chars"
    # the label of a row that should train or judge a model
    NULL_LABEL = "null_label"
    BAD_LABEL = "bad_label"  # of the right type, and still no label: no number, a span outside its text
    TOO_FEW_LABELS = "too_few_labels"  # fewer than the job asks for
    UNSEEN_LABEL = "unseen_label"  # a label that no training row has
    NO_SUBSET = "no_subset"  # the column that says where a row belongs says something else
    # the work on a row
    TOKENIZER_FAILED = "tokenizer_failed"
    NO_TOKENS = "no_tokens"
    NO_ROOM = "no_room"  # what must be read whole, a question or a prompt, does not fit into the model's window
    NO_MASK = "no_mask"  # nothing to fill
    TEMPLATE_FAILED = "template_failed"  # the model's chat template refuses the messages
    MODEL_FAILED = "model_failed"
    NON_FINITE_OUTPUT = "non_finite_output"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED_PROCESS = "killed_process"
    # the file of a row
    NOT_PARQUET = "not_parquet"
    EMPTY_FILE = "empty_file"
    TRUNCATED_FILE = "truncated_file"
    DAMAGED_FOOTER = "damaged_footer"
    DAMAGED_ROW_GROUP = "damaged_row_group"
    PERMISSION_DENIED = "permission_denied"
    FILE_MISSING = "file_missing"
    FILE_CHANGED = "file_changed"
    PARTITION_CONTRADICTS = "partition_contradicts"  # the path says section=games, the row says otherwise
    CAST_FAILED = "cast_failed"  # a value does not fit the corpus's common schema


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one text got no annotation."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a unit that failed.

    `row` is its index in the unit's table as read (not its position in a file); `annotation` is the name of the
    annotation that failed, or None where the row itself is at fault.
    """

    row: int
    annotation: str | None
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Lost:
    """Rows that could not be read: `rows` of them from `first_row` on, or a whole file of unknown length (None)."""

    file: str
    first_row: int | None
    rows: int | None
    reason: Reason
    detail: str
