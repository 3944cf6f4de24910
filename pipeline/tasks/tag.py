"""The entities of each text, from a model that was trained to label its tokens.

{name: found, task: tag, text: letter, model: models/pii, labels: [GIVEN_NAME, CITY], threshold: 0.5}
letter "Zoë 👩🏽 lives in York." -> found_entities: [{label: GIVEN_NAME, text: "Zoë", start: 0, end: 3, score: 0.98},
                                                     {label: CITY, text: "York", start: 16, end: 20, score: 0.99}]

`start` and `end` count code points of the text that was read: a column's value, or what a template gave for the row;
text[start:end] is the entity's `text`, for every row. Entities are those of transformers' TokenClassificationPipeline
(see pipeline.entities). A long text is read in windows, and its entities are found once, in the whole text.

Shapes: R texts, B pieces in a micro-batch, T tokens, L labels, D numbers that are kept of a token.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.entities import (
    ENTITIES_TYPE,
    EntityDecoder,
    Scores,
    Span,
    Strategy,
    WordRule,
    entities_array,
    merged_scores,
)
from pipeline.errors import JobError, ModelError
from pipeline.models.classes import class_names
from pipeline.models.inspection import task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.tasks.base import Annotation, Comparison, Texts
from pipeline.tasks.tokenwise import Said, TokenTask
from pipeline.tasks.window import WindowSettings
from pipeline.text.tokens import Ids, Tokens

if TYPE_CHECKING:
    from pipeline.models.engine import Padded
    from pipeline.models.loading import LoadedModel

# Decoded together: numpy's own costs vanish, and the scores of so many tokens for some 30 labels are 8 MB.
_DECODED_TOKENS = 65_536


class Tag(TokenTask):
    """Softmax over the labels of each token, then spans."""

    needs = "AutoModelForTokenClassification"
    reads_offsets = True
    only_calls = True

    class Config(WindowSettings):
        """How tokens become entities, and which are kept."""

        aggregation: Strategy = "simple"
        """none: each token is an entity, with its B- or I-; simple: neighbours of one label are joined; first, average,
        max: words stay whole, and take the label of their first token, of the mean of all, or of the surest."""

        labels: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=1)
        """Keep only entities of these labels, named with their B-/I- or without; default: all."""

        threshold: float | None = Field(default=None, ge=0, le=1)
        """Keep only entities with at least this score, 0 to 1; default: all."""

        long_text: Literal["truncate", "windows"] = "windows"
        """A text longer than `max_tokens`: read in several windows, so that no entity is lost (default), or cut off,
        which `<name>_truncated` tells."""

        stride: int | None = Field(default=None, ge=0)
        """Tokens that neighbouring windows share, fewer than a window holds; default: a quarter of `max_tokens`. Each
        word is read where it stands farthest from an edge: with about half of these tokens on either side, or more."""

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find the labels.

        Raises ModelError: no head for tokens, labels that config.json does not name; JobError: a label to keep that the
        model has not.
        """
        super().__init__(config, model)
        self._names = _names_of_labels(self.pinned)
        try:
            self._decoder = EntityDecoder(self._names, config.aggregation, config.labels, config.threshold)
        except JobError as fault:
            raise JobError(f"annotation {config.name!r}: labels: {fault}") from fault

    def fields(self) -> list[pa.Field]:
        """The list of entities."""
        return [pa.field("entities", ENTITIES_TYPE)]

    def compared(self) -> Comparison:
        """Spans of code points."""
        return Comparison("spans", {"predicted": "entities"})

    def stride(self) -> int | None:
        """A quarter: a word needs sight on both sides, so only half of what windows share counts for it."""
        if self.config.long_text == "truncate":
            return None
        stride: int | None = self.config.stride
        return self.window_tokens // 4 if stride is None else stride

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model, and learn from its tokenizer what begins a word."""
        super().start(loaded)
        self._word_rule = WordRule.of(loaded.tokenizer)

    @property
    def _needs_all_scores(self) -> bool:
        """Only a mean needs more of a token than its best label and that one's score."""
        return bool(self.config.aggregation == "average")

    def take_key(self) -> Hashable:
        """How much is kept of each token."""
        return ("labels of tokens", self._needs_all_scores)

    def take(self, padded: "Padded") -> Sequence[npt.NDArray[np.float32]]:
        """The scores of each token, or its best label's number and score: 8 bytes a token, however many labels."""
        from pipeline.models.engine import as_numpy

        scores_BTD = as_numpy(self.loaded.module(**padded.inputs).logits.float().softmax(-1))
        if not self._needs_all_scores:
            scores_BTD = _best(scores_BTD)
        # Copies: a view would hold the padding, and all of its micro-batch.
        return [scores_TD[:length].copy() for scores_TD, length in zip(scores_BTD, padded.lengths_B, strict=True)]

    def check_model(self, padded: "Padded") -> None:
        """A score for each label of each token must come."""
        shape = tuple(self.loaded.module(**padded.inputs).logits.shape)
        if shape != (1, padded.lengths_B[0], len(self._names)):
            raise ModelError(
                f"model {self.pinned.ref!r} gives logits of shape {shape} for a text of {padded.lengths_B[0]} tokens, "
                f"and config.json names {len(self._names)} labels"
            )

    def annotate(self, texts: Texts) -> Annotation:
        """Scores of tokens, then entities, some tens of thousands of tokens at a time."""
        said = self.said(texts)
        tokens_of_each = self.tokens(texts, prefix=self.prefix(), most=self.maker.most)
        pieces_R = said.pieces_R
        spans_R: list[list[Span] | None] = [None] * len(texts.values)
        for rows in _parts(np.flatnonzero(said.good_R), said.pieces.tokens_R):
            part = [_Read.of(texts.values[row], tokens_of_each[row], pieces_R[row], said) for row in rows]
            for row, spans in zip(rows, self._entities(part), strict=True):
                spans_R[row] = spans
        return said.annotation({"entities": entities_array(spans_R)})

    def _entities(self, part: Sequence["_Read"]) -> list[list[Span]]:
        texts = [read.text for read in part]
        tokens_R = np.array([len(read.ids_T) for read in part])
        offsets_T2 = np.concatenate([read.offsets_T2 for read in part])
        begins_T = self._word_rule.begins(texts, tokens_R, np.concatenate([read.ids_T for read in part]), offsets_T2)
        begins_R = np.split(begins_T, np.cumsum(tokens_R)[:-1])
        merged = [
            merged_scores(read.windows, read.scores_of_each, begins)
            for read, begins in zip(part, begins_R, strict=True)
        ]
        scores_TD = np.concatenate(merged)
        scores_TL = scores_TD if self._needs_all_scores else _spread(scores_TD, len(self._names))
        return self._decoder.spans(texts, tokens_R, offsets_T2, begins_T, scores_TL)


@dataclass(frozen=True, slots=True)
class _Read:
    """One text as far as the model read it, in one window or several."""

    text: str
    ids_T: Ids
    offsets_T2: npt.NDArray[np.int32]
    windows: list[tuple[int, int]]
    scores_of_each: list[Scores]  # what was taken of each window's own tokens

    @classmethod
    def of(cls, text: str, tokens: Tokens | Failure, pieces: range, said: Said) -> Self:
        assert isinstance(tokens, Tokens)
        assert tokens.offsets_T2 is not None
        windows: list[tuple[int, int]] = said.pieces.spans_P2[pieces.start : pieces.stop].tolist()
        leads = said.pieces.leads_P[pieces.start : pieces.stop].tolist()
        own = [
            said.found_P[piece][lead : lead + stop - start]
            for piece, lead, (start, stop) in zip(pieces, leads, windows, strict=True)
        ]
        read = windows[-1][1]
        return cls(text, tokens.ids_T[:read], tokens.offsets_T2[:read], windows, own)


def _names_of_labels(pinned: PinnedModel) -> list[str]:
    """The labels in the order of the head's rows; ModelError where there is no such head, or it has no names."""
    head = task_of_head(pinned.config)
    if head not in (None, "token_classification"):
        raise ModelError(
            f"model {pinned.ref!r} is of another kind ({head}: {pinned.config['architectures'][0]}); "
            "tag needs one with a head for tokens (…ForTokenClassification)"
        )
    if not pinned.config.get("id2label"):
        raise ModelError(
            f"model {pinned.ref!r} does not name its labels, so nobody can tell which of them means no entity: put "
            'id2label into its config.json, as in {"0": "O", "1": "B-PER", "2": "I-PER"}'
        )
    return class_names(pinned)


def _parts(rows: npt.NDArray[np.intp], tokens_R: npt.NDArray[np.int32]) -> Iterator[list[int]]:
    """The rows in order, so many at a time as are decoded together."""
    part_of_each = np.cumsum(tokens_R[rows], dtype=np.int64) // _DECODED_TOKENS
    for part in np.split(rows, np.flatnonzero(np.diff(part_of_each)) + 1):
        if len(part):
            yield part.tolist()


def _best(scores_BTD: Scores) -> Scores:
    """Number and score of each token's best label, the first of equals."""
    label_BT1 = scores_BTD.argmax(axis=-1)[..., None]
    score_BT1 = np.take_along_axis(scores_BTD, label_BT1, axis=-1)
    return np.concatenate([label_BT1.astype(np.float32), score_BT1], axis=-1)


def _spread(best_T2: Scores, labels: int) -> Scores:
    """Scores from what `_best` gave; the other labels hold nothing."""
    scores_TL = np.zeros((len(best_T2), labels), np.float32)
    scores_TL[np.arange(len(best_T2)), best_T2[:, 0].astype(np.intp)] = best_T2[:, 1]
    return scores_TL
