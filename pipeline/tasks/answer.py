"""The words of a text that answer a question, found by a model with a head for extractive questions.

{name: founded, task: answer, text: body, question: "When was it founded?", model: models/squad}
body: "Köln was founded in 38 BC by …"
-> founded_answer: "38 BC", founded_score: 0.87, founded_start: 20, founded_end: 25     # text[20:25] is the answer
with `no_answer: true`, of a text that does not tell
-> founded_answer: null, founded_score: 0.93, founded_start: null, founded_end: null

The model reads question and text side by side. Of all windows of a text the best span is that with the highest sum of
its start's and its end's logit; it begins and ends with tokens of the text that are not white space, and has at most
`max_answer_tokens`. The score is the product of the two probabilities among the text's tokens of that window and its
null token, as in transformers' question-answering pipeline (gone since 5). A text without an answer is told by the
null token, [CLS]: where the sum of its logits, least over the windows, exceeds the best span's by more than `threshold`
(Devlin et al. 2018, section 4.3, for SQuAD 2.0 of Rajpurkar et al. 2018); the score is then that of the null token.

R rows, P pieces, L tokens of a piece, T tokens of the text in a window.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import ModelError
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, Comparison, Input, TextInput, Texts
from pipeline.tasks.tokenwise import Said, TokenTask
from pipeline.tasks.window import WindowSettings
from pipeline.text.tokens import Tokens

if TYPE_CHECKING:
    from pipeline.models.engine import Padded
    from pipeline.models.loading import LoadedModel

Logits = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

# Every character that str.strip() takes off.
_BLANKS = np.array([code for code in range(0x3001) if chr(code).isspace()], np.uint32)


class Span(NamedTuple):
    """One candidate: tokens first to last, both included, of the text's tokens in a window."""

    first: int
    last: int
    logit: float  # the sum of its start's and its end's
    score: float  # the product of their probabilities


class Answer(TokenTask):
    """The best span of a text for a question, or none; the question stands whole in every window."""

    needs = "AutoModelForQuestionAnswering"
    reads_offsets = True
    only_calls = True
    cut = "second"
    text_stands = "second"

    class Config(WindowSettings):
        """The question, and what counts as an answer."""

        question: str = Field(min_length=1, pattern=r"\S")
        """A column, a dotted path, a template with {column} in it, or, with a blank in it, the same words for each
        row."""

        long_text: Literal["truncate", "windows"] = "windows"
        """A text longer than the room beside the question: read in several windows, or cut off, which
        `<name>_truncated` tells."""

        max_answer_tokens: int = Field(default=30, ge=1, le=100_000)
        """Tokens of the longest answer, at least 1; 30 as BERT's authors took for SQuAD."""

        no_answer: bool = False
        """Whether a text may hold no answer; for models that were trained with such texts, as in SQuAD 2.0."""

        threshold: float | None = Field(default=None, allow_inf_nan=False)
        """Logits: no answer where the null token exceeds the best span by more than so much; default 0; higher finds
        more answers."""

        @model_validator(mode="after")
        def _threshold_is_asked_for(self) -> Self:
            if self.threshold is not None and not self.no_answer:
                raise ValueError("threshold needs `no_answer: true`; otherwise every text has an answer")
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Refuse a model of another kind.

        Raises ModelError: a head for something else; JobError as every task with a window does.
        """
        super().__init__(config, model)
        architecture = next(iter(self.pinned.config.get("architectures") or []), None)
        if architecture is not None and "QuestionAnswering" not in architecture:
            raise ModelError(
                f"model {self.pinned.ref!r} is of another kind ({architecture}); answer needs one with a head for "
                "extractive questions (…ForQuestionAnswering)"
            )

    def inputs(self) -> Mapping[str, Input]:
        """The text, and the question."""
        return {**super().inputs(), "question": TextInput(self.config.question, may_be_words=True)}

    def fields(self) -> list[pa.Field]:
        """`answer`, its `score`, and where it stands."""
        return [
            pa.field("answer", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
        ]

    def compared(self) -> Comparison:
        """Texts; a row whose gold is null is not asked."""
        return Comparison("texts", {"predicted": "answer"})

    def second_input(self) -> str | None:
        """The question stands in each piece."""
        return "question"

    def stride(self) -> int | None:
        """Overlap of windows in tokens; by default an edge tears no answer, unless a quarter of a window is less."""
        if self.config.long_text == "truncate" or self.config.stride is not None:
            return super().stride()
        longest: int = self.config.max_answer_tokens
        return max(self.window_tokens // 8, min(longest - 1, self.window_tokens // 4))

    def take_key(self) -> Hashable:
        """The logits as they are."""
        return "start and end"

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model, and find its null token. Errors as of every task with a window."""
        super().start(loaded)
        self._null = self._null_place()

    def take(self, padded: "Padded") -> Sequence[npt.NDArray[np.float32]]:
        """For each piece logits_L2: of an answer's start and of its end."""
        import torch

        from pipeline.models.engine import as_numpy

        output = self.loaded.module(**padded.inputs)
        logits_BL2 = as_numpy(torch.stack([output.start_logits, output.end_logits], -1))
        return [logits_L2[:length] for logits_L2, length in zip(logits_BL2, padded.lengths_B, strict=True)]

    def check_model(self, padded: "Padded") -> None:
        """Two numbers for each token must come."""
        length = padded.lengths_B[0]
        if self.take(padded)[0].shape != (length, 2):
            raise ModelError(f"model {self.pinned.ref!r} does not give two numbers for each of {length} tokens")

    def annotate(self, texts: Texts) -> Annotation:
        """Question and text in pieces, forward pass, the best span of each text."""
        said = self.said(texts)
        tokens_R = self.tokens(texts, most=self.maker.most)
        answers: list[str | None] = [None] * len(texts.values)
        scores: list[float | None] = [None] * len(texts.values)
        starts: list[int | None] = [None] * len(texts.values)
        ends: list[int | None] = [None] * len(texts.values)
        for row in np.flatnonzero(said.good_R).tolist():
            text, tokens = texts.values[row], tokens_R[row]
            assert isinstance(tokens, Tokens)
            assert tokens.offsets_T2 is not None
            best, null = self._best(said, row, visible(text, tokens.offsets_T2))
            if best is None:
                said.failures[row] = Failure(Reason.NO_TOKENS, "no token of the text is anything but white space")
                continue
            if self.config.no_answer and null.logit - best.logit > (self.config.threshold or 0.0):
                scores[row] = null.score
                continue
            start, end = _place(text, tokens.offsets_T2[[best.first, best.last]])
            answers[row], scores[row], starts[row], ends[row] = text[start:end], best.score, start, end
        return said.annotation(
            {
                "answer": pa.array(answers, pa.string()),
                "score": pa.array(scores, pa.float32()),
                "start": pa.array(starts, pa.int32()),
                "end": pa.array(ends, pa.int32()),
            }
        )

    def _best(self, said: Said, row: int, visible_T: Flags) -> tuple[Span | None, Span]:
        """The best span of a text, in its own tokens, and the least null; of equal ones the first."""
        best: Span | None = None
        nulls: list[Span] = []
        for piece in said.pieces_R[row]:
            logits_L2 = said.found_P[piece].astype(np.float64)
            (begin, stop), lead = said.pieces.spans_P2[piece].tolist(), int(said.pieces.leads_P[piece])
            own_T2 = logits_L2[lead : lead + stop - begin]
            span, null = best_span(own_T2, logits_L2[self._null], visible_T[begin:stop], self.config.max_answer_tokens)
            nulls.append(null)
            if span is not None and (best is None or span.logit > best.logit):
                best = span._replace(first=begin + span.first, last=begin + span.last)
        return best, min(nulls, key=lambda null: null.logit)

    def _null_place(self) -> int:
        """Where in a piece the null token stands: [CLS], else what begins a text, else the first token.

        Counted from the piece's end, and negative, where the tokenizer puts it behind the texts.
        """
        before, after = (ids.tolist() for ids in (self.maker.frame.before, self.maker.frame.after))
        for token in (self.loaded.tokenizer.cls_token_id, self.loaded.tokenizer.bos_token_id):
            if token in before:
                return int(before.index(token))
            if token in after:
                return int(after.index(token)) - len(after)
        return 0


def best_span(logits_T2: Logits, null_2: Logits, allowed_T: Flags, most_tokens: int) -> tuple[Span | None, Span]:
    """The span of at most `most_tokens` tokens with the highest logits, and the null token as a span.

    A span begins and ends with allowed tokens; None where no token is allowed. Of equal spans the one that begins
    first, of these the shortest. Probabilities are among the T tokens and the null token.
    """
    tokens = len(logits_T2)
    longest = min(most_tokens, tokens)
    start_T, end_T = np.where(allowed_T[:, None], logits_T2, -np.inf).T
    beyond = np.full(longest - 1, -np.inf)
    end_TW = np.lib.stride_tricks.sliding_window_view(np.concatenate([end_T, beyond]), longest)
    length_T = end_TW.argmax(1)
    sum_T = start_T + end_TW[np.arange(tokens), length_T]
    first = int(sum_T.argmax())
    last = first + int(length_T[first])
    # log of the softmax's denominators, of starts and of ends
    all_X2 = np.concatenate([logits_T2, null_2[None]])
    highest_2 = all_X2.max(0)
    norm = float((highest_2 + np.log(np.exp(all_X2 - highest_2).sum(0))).sum())
    null = Span(0, 0, float(null_2.sum()), float(np.exp(null_2.sum() - norm)))
    if sum_T[first] == -np.inf:
        return None, null
    return Span(first, last, float(sum_T[first]), float(np.exp(sum_T[first] - norm))), null


def visible(text: str, offsets_T2: npt.NDArray[np.integer]) -> Flags:
    """Which tokens stand for something besides white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    seen_before = np.concatenate([[0], np.cumsum(~np.isin(codes, _BLANKS))])
    seen_T: Flags = seen_before[offsets_T2[:, 1]] > seen_before[offsets_T2[:, 0]]
    return seen_T


def _place(text: str, offsets_22: npt.NDArray[np.integer]) -> tuple[int, int]:
    """[start, end) of the first and the last token's characters and all between, white space around them left out."""
    start, end = int(offsets_22[:, 0].min()), int(offsets_22[:, 1].max())
    said = text[start:end]
    return end - len(said.lstrip()), start + len(said.rstrip())
