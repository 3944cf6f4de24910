"""What tasks that read a text through a model's window share: settings, tokens, pieces.

    {max_tokens: 256, long_text: windows, stride: 32}        # settings
    task.pieces(texts) -> Pieces                             # tokenised once for all annotations with this tokenizer

`EncoderTask` (a row of numbers for each text) and `TokenTask` (something for each token) stand on it.
"""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import positions_tokens
from pipeline.models.inspection import window_of as own_window
from pipeline.models.reference import PinnedModel
from pipeline.profile import timed
from pipeline.quarantine import Failure
from pipeline.tasks.base import AnnotationSettings, Task, Texts
from pipeline.text.pieces import Cut, PieceMaker, Pieces
from pipeline.text.tokens import TextTokenizer, Tokenized, Tokens

if TYPE_CHECKING:
    from pipeline.models.engine import AboutToRun, Padded
    from pipeline.models.loading import LoadedModel


class WindowSettings(AnnotationSettings):
    """Options of every task that reads a text through a model's window."""

    long_text: Literal["truncate", "windows"] = "truncate"
    """A text longer than `max_tokens`: cut off, which `<name>_truncated` tells, or read in several windows."""

    stride: int | None = Field(default=None, ge=0)
    """Tokens that neighbouring windows share, fewer than a window holds; default: an eighth of `max_tokens`."""

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.long_text == "truncate" and self.stride is not None:
            raise ValueError("stride needs `long_text: windows`; with truncate there is one window")
        if self.stride is not None and self.max_tokens is not None and self.stride >= self.max_tokens:
            raise ValueError(f"stride {self.stride} must be less than max_tokens {self.max_tokens}")
        return self


class WindowTask(Task):
    """A task that reads each text, or each pair of texts, in pieces of at most a window."""

    Config = WindowSettings

    cut: Cut = "longest"
    """Of a pair, the text that gives way (and is read in windows, where the job asks for them)."""

    text_stands: Literal["first", "second"] = "first"
    """Where the row's text stands in a pair."""

    def __init__(self, config: AnnotationSettings, model: PinnedModel | None) -> None:
        """Find the window. Raises JobError: no model; a window that the model has no positions for."""
        super().__init__(config, model)
        self.pinned = required_model(config, model)
        self.window_tokens = window_of(config, self.pinned)

    def second_input(self) -> str | None:
        """The input that stands beside the text in each piece; None: single texts."""
        return None

    def prefix(self) -> str:
        """What stands before every text."""
        return ""

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model and try it once.

        Raises ModelError: the model cannot compute, or gives other numbers than config.json says; JobError: windows
        that leave no room for a text's own tokens.
        """
        self.loaded = loaded
        self.take_tokenizer(loaded.tokenizer)
        try:
            self._try_model()
        except (JobError, ModelError) as fault:
            raise type(fault)(f"annotation {self.config.name!r}: {fault}") from fault.__cause__

    def take_tokenizer(self, tokenizer: Any) -> None:
        """Raises ModelError, JobError as `start` does, but for the model."""
        self._tokenizer = TextTokenizer(tokenizer)
        if self.reads_offsets and not self._tokenizer.has_offsets:
            raise ModelError(
                f"annotation {self.config.name!r}: the tokenizer of {self.pinned.ref!r} is a slow one "
                f"({type(tokenizer).__name__}), which cannot tell where a token stands in its text; a model "
                "with a tokenizer.json can"
            )
        try:
            self.maker = PieceMaker(
                self._tokenizer, self.window_tokens, self.stride(), pairs=self.second_input() is not None
            )
        except (JobError, ModelError) as fault:
            raise type(fault)(f"annotation {self.config.name!r}: {fault}") from fault.__cause__

    @abstractmethod
    def check_model(self, padded: "Padded") -> None:
        """Send one small piece through the model; ModelError where it answers otherwise than the task needs."""

    def stride(self) -> int | None:
        """Overlap of a text's windows in tokens; None: one window."""
        if self.config.long_text == "truncate":
            return None
        stride: int | None = self.config.stride
        return self.window_tokens // 8 if stride is None else stride

    def tokens(
        self, texts: Texts, name: str | None = None, prefix: str = "", most: int | None = None
    ) -> list[Tokens | Failure]:
        """The tokens of the texts, or of another input, each found once for all annotations of the unit."""
        values = texts.values if name is None else list(texts.inputs[name])
        key: tuple[Hashable, ...] = (
            "tokens",
            self.pinned.tokenizer_digest or self.pinned.digest,
            name,
            prefix,
        )
        if name is not None:  # another annotation may mean another column by the same name
            key = (*key, self.inputs()[name])
        tokenized: Tokenized = texts.once(key, lambda: self._tokenized(texts, name or "", prefix, values))
        with timed("tokenise"):
            return tokenized.tokens(most, offsets=self.reads_offsets or (texts.offsets and self._tokenizer.has_offsets))

    def _tokenized(self, texts: Texts, name: str, prefix: str, values: Sequence[str]) -> Tokenized:
        whose = f"{self.config.name}/{name}"
        full = [prefix + value for value in values] if prefix else values
        tokenized = Tokenized(self._tokenizer, full, texts.ahead.get(whose))
        texts.tokenised[whose] = tokenized.found_R
        return tokenized

    def tokenise(self, texts: Texts) -> None:
        """The text's, and those of what stands beside it."""
        self.tokens(texts, prefix=self.prefix(), most=self.maker.most)
        if (second := self.second_input()) is not None:
            self.tokens(texts, second, most=self.maker.most)

    def pieces_key(self) -> Hashable:
        """What the pieces depend on besides the texts and the tokenizer."""
        second = self.second_input()
        other = None if second is None else self.inputs()[second]
        return (self.pinned.digest, self.window_tokens, self.stride(), self.prefix(), other, self.cut, self.text_stands)

    def pieces(self, texts: Texts) -> Pieces:
        """The pieces of all texts."""
        return texts.once(("pieces", self.pieces_key()), lambda: self._pieces(texts))

    def journal(self, pieces: Pieces, texts: Texts) -> "AboutToRun | None":
        """Who wants to be told the texts of each micro-batch before it goes, by its pieces."""
        running, row_P = texts.running, pieces.row_P
        return None if running is None else lambda batch: running(np.unique(row_P[list(batch)]).tolist())

    def _pieces(self, texts: Texts) -> Pieces:
        second = self.second_input()
        own = self.tokens(texts, prefix=self.prefix(), most=self.maker.most)
        if second is None:
            return self.maker.cut(own, texts.values)
        other, others = self.tokens(texts, second, most=self.maker.most), list(texts.inputs[second])
        if self.text_stands == "first":
            return self.maker.pair(own, other, texts.values, others, self.cut)
        return self.maker.pair(other, own, others, texts.values, self.cut)

    def _try_model(self) -> None:
        import torch

        from pipeline.models.engine import pad

        first, second = self._tokenizer.tokens(["a b", "c d"], most=None)
        pieces = (
            self.maker.cut([first], ["a b"])
            if self.second_input() is None
            else self.maker.pair([first], [second], ["a b"], ["c d"], self.cut)
        )
        if (failure := pieces.failures.get(0)) is not None:
            raise JobError(
                f"max_tokens: {self.window_tokens} and the windows' overlap leave no room for a pair of two words: "
                f"{failure.detail}"
            )
        loaded = self.loaded
        padded = pad(pieces.ids_P, np.array([0]), loaded.pad_id, loaded.device, pieces.types_P, loaded.packed)
        try:
            with torch.inference_mode():
                self.check_model(padded)
        except ModelError:
            raise
        except Exception as fault:
            hint = "" if self.loaded.dtype == "float32" else f"; it may need float32 (dtype is {self.loaded.dtype})"
            raise ModelError(
                f"model {self.pinned.ref!r} cannot compute: {type(fault).__name__}: {fault}{hint}"
            ) from fault


def required_model(config: AnnotationSettings, model: PinnedModel | None) -> PinnedModel:
    """The model of a task that cannot do without; JobError where the job names none."""
    if model is None:
        raise JobError(f"annotation {config.name!r}: the task {config.task!r} needs a `model`")
    return model


def window_of(config: AnnotationSettings, pinned: PinnedModel) -> int:
    """Tokens that the model reads at once: the job's, else the model's own; JobError for more than it has positions."""
    asked, bound = config.max_tokens, positions_tokens(pinned.config)
    if asked is not None and bound is not None and asked > bound:
        raise JobError(
            f"annotation {config.name!r}: max_tokens: {asked} is more than the {bound} positions of "
            f"{pinned.ref!r}; for longer texts there is `long_text: windows`"
        )
    return asked or own_window(Path(pinned.folder), pinned.config)
