"""A label for each text, or pair of texts, from a model that was trained with a classification head.

{name: topic, task: classify, text: description, model: models/sections}
-> topic_label: "games", topic_score: 0.93
with `top_k: 2`, `all_scores: true`, or a model of several labels at once
-> topic_labels: ["games", "web"], topic_scores: [0.93, 0.04]
regression -> topic_score: 3.7
{name: same, task: classify, text: question, text_pair: other_question, label_names: {LABEL_1: duplicate}, …}
-> same_label: "duplicate", same_score: 0.88
"""

from collections.abc import Hashable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import labels
from pipeline.errors import JobError, ModelError
from pipeline.models.classes import check_classifies, class_names
from pipeline.models.reference import PinnedModel
from pipeline.tasks.base import Comparison, Input, TextInput
from pipeline.tasks.encoder import EncoderSettings, EncoderTask

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Padded

Name = Annotated[str, Field(min_length=1, max_length=10_000)]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

DEFAULT_THRESHOLD = 0.5


class Classify(EncoderTask):
    """Softmax, sigmoid or the bare value of a classification head; long texts: of each window, then pooled."""

    needs = "AutoModelForSequenceClassification"

    class Config(EncoderSettings):
        """A second text, and which labels are kept by which names."""

        text_pair: str | None = Field(default=None, min_length=1)
        """The second text of each pair, for models that judge two: a column, a template, or words that are the same for
        every row. Where both do not fit into `max_tokens`, the longer one is cut first."""

        label_names: dict[Name, Name] | None = Field(default=None, min_length=1)
        """The model's own name of a label -> the name that the column holds; labels that are left out keep theirs, and
        no two may become one."""

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
        def _pairs_are_read_whole(self) -> Self:
            if self.text_pair is not None and self.long_text == "windows":
                raise ValueError("text_pair needs `long_text: truncate`; a pair is read in one window")
            return self

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
        check_classifies(self.pinned, "classify")
        self._labels = _renamed(class_names(self.pinned), config)
        self._problem: Problem = config.problem_type or _problem_of(self.pinned, len(self._labels))
        self._check_options(config)

    def _check_options(self, config: Config) -> None:
        place = f"annotation {config.name!r}"
        if self._problem == "regression":
            if len(self._labels) != 1:
                raise ModelError(
                    f"{place}: regression gives one value, and {self.pinned.ref!r} gives {len(self._labels)}"
                )
            if config.top_k is not None or config.all_scores or config.label_names is not None:
                raise JobError(
                    f"{place}: top_k, all_scores and label_names need labels; {self.pinned.ref!r} gives one value "
                    "(regression)"
                )
        if config.threshold is not None and self._problem != "multi_label_classification":
            raise JobError(
                f"{place}: threshold needs several labels at once, and {self.pinned.ref!r} is a model of "
                f"{self._problem}; for sigmoid scores set `problem_type: multi_label_classification`"
            )
        if config.top_k is not None and config.top_k > len(self._labels):
            raise JobError(f"{place}: top_k: {config.top_k} is more than the {len(self._labels)} labels of the model")

    def inputs(self) -> Mapping[str, Input]:
        """The text, and the second one where it judges pairs."""
        pair: str | None = self.config.text_pair
        second = {} if pair is None else {"text_pair": TextInput(pair, may_be_words=True)}
        return {**super().inputs(), **second}

    def second_input(self) -> str | None:
        """The second text of a pair."""
        return None if self.config.text_pair is None else "text_pair"

    def fields(self) -> list[pa.Field]:
        """`label` and `score`, or `labels` and `scores`; regression: `score`."""
        if self._problem == "regression":
            return [labels.BEST_FIELDS[1]]
        several = (
            self.config.top_k is not None or self.config.all_scores or self._problem == "multi_label_classification"
        )
        return list(labels.LIST_FIELDS if several else labels.BEST_FIELDS)

    def compared(self) -> Comparison:
        """Labels, several labels at once, or numbers."""
        if self._problem == "regression":
            return Comparison("numbers", {"predicted": "score"})
        every, best = {"labels": "labels", "scores": "scores"}, {"predicted": "label", "score": "score"}
        known = {"known": tuple(self._labels)}
        if self._problem == "multi_label_classification":
            if self.config.all_scores:
                return Comparison("multilabels", every, {"threshold": DEFAULT_THRESHOLD, **known})
            return Comparison("multilabels", {"predicted": "labels"}, known)
        several = self.config.top_k is not None or self.config.all_scores
        return Comparison("labels", every if several else best, known)

    def width(self) -> int:
        """Labels of the model."""
        return len(self._labels)

    def forward_key(self) -> Hashable:
        """What the logits become."""
        return ("scores", self._problem)

    def forward(self, padded: "Padded") -> "torch.Tensor":
        """Probabilities, or values."""
        from pipeline.models.heads import logits

        logits_BD = logits(self.loaded.module, padded)
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


def _renamed(own: list[str], config: Classify.Config) -> list[str]:
    """The labels by the job's names for them; JobError for one that the model has not, or where two become one."""
    names = config.label_names or {}
    place = f"annotation {config.name!r}: label_names"
    for old in names:
        if old not in own:
            match = get_close_matches(old, own, n=1)
            hint = f"; did you mean {match[0]!r}?" if match else ";"
            raise JobError(f"{place}: the model has no label {old!r}{hint} it has {', '.join(own)}")
    renamed = [names.get(label, label) for label in own]
    for name in names.values():
        merged = [label for label in own if names.get(label, label) == name]
        if len(merged) > 1:
            raise JobError(
                f"{place}: {' and '.join(merged)} would both be {name!r}; keep them apart, and add up what "
                "`all_scores: true` gives"
            )
    return renamed
