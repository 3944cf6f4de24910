"""What tasks share that write text with an encoder-decoder: prompts -> tokens -> decoding -> texts.

    written = task.write(["summarize: a long text", …], rows=[0, …], texts=texts) ->
        Written(texts=["a title", …], ends=["eos", …], failures={}, tokens_R=[…], …)

Decoding is that of `pipeline.models.generation`: what the job leaves open is what the model's generation_config.json
says, as with `generate` of transformers.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import positions_tokens
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.tasks.base import AnnotationSettings, Task, Texts
from pipeline.tasks.window import required_model, window_of
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Ids, TextTokenizer, Tokens

if TYPE_CHECKING:
    from pipeline.models.generation.decoding import Decoding
    from pipeline.models.loading import LoadedModel


class DecodingSettings(AnnotationSettings):
    """How text is written, token by token."""

    max_new_tokens: int | None = Field(default=None, ge=1, le=100_000)
    """Tokens that are written at most, 1 to 100,000; default: what the model's generation_config.json says, else 20."""

    min_new_tokens: int | None = Field(default=None, ge=0, le=100_000)
    """Tokens that are written at least, at most `max_new_tokens`; default: the model's own."""

    num_beams: int | None = Field(default=None, ge=1, le=64)
    """Ways that are followed side by side, 1 (greedy) to 64; default: the model's own."""

    length_penalty: float | None = Field(default=None, ge=-10, le=10)
    """With beams: above 0 longer texts win, below 0 shorter ones, -10 to 10; default: the model's own."""

    early_stopping: bool | None = None
    """With beams: stop as soon as so many have ended; default: the model's own."""

    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=100)
    """No sequence of so many tokens is written twice, 0 (off) to 100; default: the model's own."""

    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    """Above 1, tokens that stand there already are less likely, up to 100; default: the model's own."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if (self.min_new_tokens or 0) > (self.max_new_tokens or 100_000):
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        if self.num_beams == 1:
            for option in ("length_penalty", "early_stopping"):
                if getattr(self, option) is not None:
                    raise ValueError(f"{option} needs beams; num_beams is 1 (greedy)")
        return self


DECODING = frozenset(DecodingSettings.model_fields) - frozenset(AnnotationSettings.model_fields)
"""Names of the options that say how text is written."""


@dataclass(slots=True)
class Written:
    """What was written of P prompts, in several calls or one; and what that cost the R rows that they belong to."""

    tokens_R: npt.NDArray[np.int32]  # that the model has read
    truncated_R: npt.NDArray[np.bool_]  # a prompt was cut off
    ends_R: list[str | None]  # eos; length where a text, or one of several, was cut off by max_new_tokens
    failures: dict[int, Failure] = field(default_factory=dict)  # by row
    tokens: int = 0
    padding_tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def nothing(cls, rows: int) -> "Written":
        """Nothing yet."""
        return cls(np.zeros(rows, np.int32), np.zeros(rows, np.bool_), [None] * rows)


class Seq2SeqWriter:
    """An encoder-decoder that is ready to write: a window, a tokenizer, a way of decoding."""

    def __init__(
        self, loaded: "LoadedModel", window_tokens: int, decoding: "Decoding", lead: Sequence[int] = ()
    ) -> None:
        """Learn the special tokens as the tokenizer puts them now, and try the model once; `lead` stands before them.

        Raises ModelError: the model cannot compute; JobError: a window without room, or a way of decoding that is not
        supported.
        """
        self.loaded = loaded
        self.decoding = decoding
        self._lead = np.array(lead, np.int32)
        self._maker = PieceMaker(TextTokenizer(loaded.tokenizer), window_tokens - len(lead))
        self._try()

    @property
    def room(self) -> int:
        """Tokens of a prompt that the window holds besides the special ones."""
        return self._maker.room

    def tokens(self, texts: Sequence[str]) -> list[Tokens | Failure]:
        """The tokens of each text, without special ones."""
        return list(self._maker.tokenizer.tokens(texts, most=None))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many these are; a text that the tokenizer refuses counts 0: `write` tells it."""
        return [0 if isinstance(each, Failure) else len(each.ids_T) for each in self.tokens(texts)]

    def write(self, prompts: Sequence[str], rows: Sequence[int], texts: Texts, written: Written) -> list[str | None]:
        """Write what follows from each prompt, all in one go, and add up in `written` by the row that each belongs to.

        A prompt at which something fails has failed its row, and gives None.
        """
        from pipeline.models.generation.generate import generate

        pieces = self._maker.pieces(prompts)
        row_P = [rows[prompt] for prompt in pieces.row_P]
        running = texts.running
        done = generate(
            self.loaded.module,
            [np.concatenate([self._lead, ids]) for ids in pieces.ids_P],
            self.decoding,
            token_budget=self.loaded.budget,
            device=self.loaded.device,
            tokenizer=self.loaded.tokenizer,
            about_to_run=None if running is None else lambda batch: running(sorted({row_P[piece] for piece in batch})),
        )
        found: list[str | None] = [None] * len(prompts)
        for prompt, ids, end in zip(pieces.row_P, done.ids_P, done.ends_P, strict=True):
            if ids is not None and end is not None:
                row = rows[prompt]
                found[prompt] = self._text(ids)
                written.ends_R[row] = end.value if written.ends_R[row] in (None, "eos") else written.ends_R[row]
        for prompt, failure in pieces.failures_of(done.failures).items():
            written.failures.setdefault(rows[prompt], failure)
        np.add.at(written.tokens_R, list(rows), pieces.tokens_R + len(self._lead) * pieces.windows_R)
        np.logical_or.at(written.truncated_R, list(rows), pieces.truncated_R)
        written.tokens += done.tokens
        written.padding_tokens += done.padding_tokens
        written.seconds += done.seconds
        return found

    def _text(self, ids: Ids) -> str:
        """What these tokens say; a language that was forced on the model is none of its words."""
        forced = self.decoding.forced_bos_token_id
        words = ids[1:] if forced is not None and len(ids) and ids[0] == forced else ids
        text: str = self.loaded.tokenizer.decode(words, skip_special_tokens=True)
        return text

    def _try(self) -> None:
        written = Written.nothing(1)
        asked = self.decoding
        # Two tokens tell as much as a thousand.
        self.decoding = replace(asked, max_new_tokens=2, min_new_tokens=0)
        self.write(["a b"], [0], Texts(["a b"]), written)
        self.decoding = asked
        if (failure := written.failures.get(0)) is not None:
            dtype = self.loaded.dtype
            hint = "" if dtype == "float32" else f"; it may need float32 (dtype is {dtype})"
            raise ModelError(f"model {self.loaded.pinned.ref!r} cannot write: {failure.detail}{hint}")


class WriterTask(Task):
    """A task that writes with an encoder-decoder."""

    Config = DecodingSettings
    needs = "AutoModelForSeq2SeqLM"

    prefix: str = ""
    """What stands before every text."""

    lead: Sequence[int] = ()
    """Tokens that stand before everything; known once the tokenizer is."""

    forced_bos: int | None = None
    """The token that everything written begins with, beside what generation_config.json says; None: nothing."""

    def __init__(self, config: DecodingSettings, model: PinnedModel | None) -> None:
        """Find the window.

        Raises JobError: no model; a window, or a text to write, that the model has no positions for; ModelError: a
        model that cannot write.
        """
        super().__init__(config, model)
        self.pinned = required_model(config, model)
        if not writes_text(self.pinned):
            raise ModelError(
                f"annotation {config.name!r}: model {self.pinned.ref!r} is {kind_of(self.pinned)}, which cannot write: "
                f"{config.task!r} needs an encoder-decoder with a language-model head (T5, BART, Marian …)"
            )
        self.window_tokens = window_of(config, self.pinned)
        bound = self.pinned.config.get("max_decoder_position_embeddings", positions_tokens(self.pinned.config))
        if config.max_new_tokens is not None and bound is not None and config.max_new_tokens >= bound:
            raise JobError(
                f"annotation {config.name!r}: max_new_tokens: {config.max_new_tokens} is more than {self.pinned.ref!r} "
                f"can write: it has {bound} positions, one of them for the token that begins; at most {bound - 1}"
            )

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model and try it once.

        Errors as `Seq2SeqWriter`; JobError for a prefix that fills the window.
        """
        self.loaded = loaded
        try:
            with self.prepared(loaded):
                self.writer = Seq2SeqWriter(loaded, self.window_tokens, self.decoding(), self.lead)
            self._check_prefix()
        except (JobError, ModelError) as fault:
            raise type(fault)(f"annotation {self.config.name!r}: {fault}") from fault.__cause__

    def prepared(self, loaded: "LoadedModel") -> AbstractContextManager[None]:  # noqa: ARG002 - for those that use it
        """Within it, the tokenizer puts around a text what this task wants; other tasks share the tokenizer."""
        return nullcontext()

    def decoding(self) -> "Decoding":
        """How this task writes."""
        from pipeline.models.generation.decoding import Decoding

        return Decoding(**{name: getattr(self.config, name) for name in DECODING}, forced_bos_token_id=self.forced_bos)

    def _check_prefix(self) -> None:
        tokens = self.writer.lengths([self.prefix])[0] if self.prefix else 0
        if tokens >= self.writer.room:
            raise JobError(
                f"prefix: its {tokens} tokens leave no room for a text in a window of {self.window_tokens}: shorten "
                "it, or raise max_tokens"
            )


def writes_text(pinned: PinnedModel) -> bool:
    """Whether it is an encoder-decoder with a language-model head, by its config.json."""
    names = pinned.config.get("architectures") or []
    return bool(pinned.config.get("is_encoder_decoder", False)) and (
        not names or str(names[0]).endswith(("ForConditionalGeneration", "MTModel", "LMHeadModel", "DecoderModel"))
    )


def kind_of(pinned: PinnedModel) -> str:
    """What its config.json calls a model, for a message."""
    return str(next(iter(pinned.config.get("architectures") or []), pinned.config.get("model_type") or "unnamed"))
