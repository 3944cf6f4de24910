"""A label for each text, from a model that was trained with a classification head.

{name: topic, task: classify, text: description, model: models/sections}
-> topic_label: "games", topic_score: 0.93
with `top_k: 2`, `all_scores: true`, or a model of several labels at once
-> topic_labels: ["games", "web"], topic_scores: [0.93, 0.04]
regression -> topic_score: 3.7
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import labels
from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import task_of_head, tensor_names
from pipeline.models.reference import PinnedModel
from pipeline.tasks.encoder import EncoderSettings, EncoderTask

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Padded

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

DEFAULT_THRESHOLD = 0.5
DEFAULT_LABELS = 2  # what transformers takes where config.json names none

# The last layer of a head, as the models of transformers call it.
_LAST_LAYERS = (
    "classifier.weight",
    "classifier.out_proj.weight",
    "classification_head.out_proj.weight",
    "score.weight",
)


class Classify(EncoderTask):
    """Softmax, sigmoid or the bare value of a classification head; long texts: of each window, then pooled."""

    needs = "AutoModelForSequenceClassification"

    class Config(EncoderSettings):
        """Which labels are kept."""

        problem_type: Problem | None = None
        """One label of several (softmax), any number of labels (sigmoid), or a value; default: what config.json says,
        else regression for a single label and one of several for more."""

        top_k: int | None = Field(default=None, ge=1)
        """Keep the so many best labels, best first; at most the model's labels."""

        all_scores: bool = False
        """Keep every label with its score, in the model's order."""

        threshold: float | None = Field(default=None, ge=0, le=1)
        """Multi-label: keep labels with at least this score, best first, 0 to 1; default 0.5."""

        @model_validator(mode="after")
        def _one_choice_of_labels(self) -> Self:
            asked = [
                option for option in ("top_k", "all_scores", "threshold") if getattr(self, option) not in (None, False)
            ]
            if len(asked) > 1:
                raise ValueError(f"{' and '.join(asked)} exclude each other: each says which labels are kept")
            if asked and self.problem_type == "regression":
                raise ValueError(f"{asked[0]} needs labels; regression gives one value")
            if self.threshold is not None and self.problem_type == "single_label_classification":
                raise ValueError("threshold needs several labels at once; a single label always has the highest score")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find labels and kind of problem.

        Raises ModelError: no classification head, more labels than names; JobError: an option that this model does not
        give sense to.
        """
        super().__init__(config, model)
        head = task_of_head(self.pinned.config)
        if head not in (None, "sequence_classification"):
            raise ModelError(
                f"model {self.pinned.ref!r} is of another kind ({head}: {self.pinned.config['architectures'][0]}); "
                "classify needs one with a head for sequences (…ForSequenceClassification)"
            )
        self._labels = _label_names(self.pinned)
        self._problem: Problem = config.problem_type or _problem_of(self.pinned, len(self._labels))
        self._check_options(config)

    def _check_options(self, config: Config) -> None:
        place = f"annotation {config.name!r}"
        if self._problem == "regression":
            if len(self._labels) != 1:
                raise ModelError(
                    f"{place}: regression gives one value, and {self.pinned.ref!r} gives {len(self._labels)}"
                )
            if config.top_k is not None or config.all_scores:
                raise JobError(
                    f"{place}: top_k and all_scores need labels; {self.pinned.ref!r} gives one value (regression)"
                )
        if config.threshold is not None and self._problem != "multi_label_classification":
            raise JobError(
                f"{place}: threshold needs several labels at once, and {self.pinned.ref!r} is a model of "
                f"{self._problem}; for sigmoid scores set `problem_type: multi_label_classification`"
            )
        if config.top_k is not None and config.top_k > len(self._labels):
            raise JobError(f"{place}: top_k: {config.top_k} is more than the {len(self._labels)} labels of the model")

    def fields(self) -> list[pa.Field]:
        """`label` and `score`, or `labels` and `scores`; regression: `score`."""
        if self._problem == "regression":
            return [labels.BEST_FIELDS[1]]
        several = (
            self.config.top_k is not None or self.config.all_scores or self._problem == "multi_label_classification"
        )
        return list(labels.LIST_FIELDS if several else labels.BEST_FIELDS)

    def width(self) -> int:
        """Labels of the model."""
        return len(self._labels)

    def forward_key(self) -> Hashable:
        """What the logits become."""
        return ("scores", self._problem)

    def forward(self, padded: "Padded") -> "torch.Tensor":
        """Probabilities, or values."""
        logits_BD: torch.Tensor = self.loaded.module(**padded.inputs).logits.float()
        if self._problem == "regression":
            return logits_BD
        return logits_BD.softmax(1) if self._problem == "single_label_classification" else logits_BD.sigmoid()

    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The labels that are asked for."""
        if self._problem == "regression":
            return {"score": pa.array(values_RD[:, 0], pa.float32(), mask=~good_R)}
        if self.config.all_scores:
            return labels.every(values_RD, self._labels, good_R)
        if self.config.top_k is not None:
            return labels.ranked(values_RD, self._labels, good_R, most=self.config.top_k)
        if self._problem == "multi_label_classification":
            threshold = DEFAULT_THRESHOLD if self.config.threshold is None else self.config.threshold
            return labels.ranked(values_RD, self._labels, good_R, at_least=threshold)
        return labels.best(values_RD, self._labels, good_R)


def _problem_of(pinned: PinnedModel, label_count: int) -> Problem:
    """What config.json says, else what transformers takes for so many labels."""
    stated: Problem | None = pinned.config.get("problem_type")
    return stated or ("regression" if label_count == 1 else "single_label_classification")


def _label_names(pinned: PinnedModel) -> list[str]:
    """The labels in the order of the head's rows; LABEL_0, LABEL_1 … where config.json has no names."""
    named = {int(number): str(name) for number, name in (pinned.config.get("id2label") or {}).items()}
    rows = _head_rows(pinned)
    if not named:
        count = rows or pinned.config.get("num_labels") or DEFAULT_LABELS
        return [f"LABEL_{number}" for number in range(count)]
    if sorted(named) != list(range(len(named))):
        raise ModelError(f"model {pinned.ref!r}: id2label in config.json does not count from 0 without gaps")
    if rows is not None and rows != len(named):
        more = "more labels than names" if rows > len(named) else "more names than labels"
        raise ModelError(
            f"model {pinned.ref!r} has {more}: its head has {rows} rows, and id2label in config.json names {len(named)}"
        )
    return [named[number] for number in range(len(named))]


def _head_rows(pinned: PinnedModel) -> int | None:
    """Rows of the head's last layer in the weights; None where its name is not known."""
    shapes = tensor_names(Path(pinned.folder))
    return next((shapes[name][0] for name in _LAST_LAYERS if name in shapes), None)
