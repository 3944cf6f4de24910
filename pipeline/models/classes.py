"""The classes of a classification head, told from the model folder's files without loading weights.

config.json {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}, …}
class_names(pinned) -> ["contradiction", "neutral", "entailment"]
inference_head(["contradiction", "neutral", "entailment"]) -> InferenceHead(entailment=2, contradiction=0)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.models.inspection import task_of_head, tensor_names
from pipeline.models.reference import PinnedModel

DEFAULT_CLASSES = 2  # what transformers takes where config.json names none

# The last layer of a head, as the models of transformers call it.
_LAST_LAYERS = (
    "classifier.weight",
    "classifier.out_proj.weight",
    "classification_head.out_proj.weight",
    "score.weight",
)


@dataclass(frozen=True, slots=True)
class InferenceHead:
    """Where a head of natural language inference says that one text follows from another."""

    entailment: int
    contradiction: int | None  # None: no class is known as such


def class_names(pinned: PinnedModel) -> list[str]:
    """The classes in the order of the head's rows; LABEL_0, LABEL_1 … where config.json has no names.

    Raises ModelError: names that are not by number, or do not count from 0; more of them than the head has rows, or
    fewer.
    """
    named = _stated_names(pinned)
    rows = _head_rows(pinned)
    if not named:
        count = rows or pinned.config.get("num_labels") or DEFAULT_CLASSES
        return [f"LABEL_{number}" for number in range(count)]
    if sorted(named) != list(range(len(named))):
        raise ModelError(f"model {pinned.ref!r}: id2label in config.json does not count from 0 without gaps")
    if rows is not None and rows != len(named):
        more = "more labels than names" if rows > len(named) else "more names than labels"
        raise ModelError(
            f"model {pinned.ref!r} has {more}: its head has {rows} rows, and id2label in config.json names {len(named)}"
        )
    return [named[number] for number in range(len(named))]


def check_classifies(pinned: PinnedModel, task: str) -> None:
    """Refuse a model that config.json calls another kind than one with a head for sequences, with a ModelError."""
    head = task_of_head(pinned.config)
    if head not in (None, "sequence_classification"):
        raise ModelError(
            f"model {pinned.ref!r} is of another kind ({head}: {pinned.config['architectures'][0]}); "
            f"{task} needs one with a head for sequences (…ForSequenceClassification)"
        )


def inference_head(names: Sequence[str]) -> InferenceHead | None:
    """The classes of natural language inference among these; None where none is called entailment.

    As ZeroShotClassificationPipeline finds entailment: the first name that begins with "entail". A contradiction is
    what is called so, or the other of two classes.
    """
    lower = [name.lower() for name in names]
    entailment = next((place for place, name in enumerate(lower) if name.startswith("entail")), None)
    if entailment is None:
        return None
    contradiction = next((place for place, name in enumerate(lower) if name.startswith("contra")), None)
    if contradiction is None and len(names) == 2:
        contradiction = 1 - entailment
    return InferenceHead(entailment, contradiction)


def _stated_names(pinned: PinnedModel) -> dict[int, str]:
    stated = pinned.config.get("id2label") or {}
    try:
        return {int(number): str(name) for number, name in stated.items()}
    except (AttributeError, ValueError) as fault:  # no object, or keys that are no numbers
        raise ModelError(
            f"model {pinned.ref!r}: id2label in config.json does not name labels by their numbers, as in "
            f'{{"0": "games", "1": "web"}}: {fault}'
        ) from fault


def _head_rows(pinned: PinnedModel) -> int | None:
    """Rows of the head's last layer in the weights; None where its name is not known."""
    if pinned.gguf_file is not None:
        return None
    shapes = tensor_names(Path(pinned.folder))
    return next((shapes[name][0] for name in _LAST_LAYERS if name in shapes), None)
