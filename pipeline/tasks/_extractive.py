"""Summaries that are sentences of the text itself: those that stand for it, by their vectors.

"Dr. Smith came. He stayed. It rained." -> "Dr. Smith came. It rained.", [(0, 15), (27, 37)]
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.centrality import Vectors, chosen
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Annotation, AnnotationSettings, Task, Texts
from pipeline.tasks.embed import Embed
from pipeline.text.sentences import Span, groups, sentence_spans

if TYPE_CHECKING:
    from pipeline.models.loading import LoadedModel

DEFAULT_SENTENCES = 3
DEFAULT_DIVERSITY = 0.3
DEFAULT_BEFORE = -0.3

SENTENCES_TYPE: pa.DataType = pa.list_(
    pa.struct([pa.field("text", pa.string()), pa.field("start", pa.int32()), pa.field("end", pa.int32())])
)

# Their vectors are held at once: some 100 MB with a thousand numbers each.
_SENTENCES_TOGETHER = 32_768


class Extractive(Task):
    """Embeds the sentences of each text and keeps the central ones."""

    needs = Embed.needs

    def __init__(self, config: AnnotationSettings, model: PinnedModel | None) -> None:
        """Errors as `Embed`."""
        super().__init__(config, model)
        self._most: int = self.config.sentences or DEFAULT_SENTENCES
        self._diversity: float = DEFAULT_DIVERSITY if self.config.diversity is None else self.config.diversity
        self._before: float = DEFAULT_BEFORE if self.config.before is None else self.config.before
        shared = {name: getattr(config, name) for name in AnnotationSettings.model_fields}
        own = {"pooling": self.config.pooling, "prefix": self.config.prefix}
        self._embed = Embed(Embed.Config.model_validate(shared | own), model)

    def fields(self) -> list[pa.Field]:
        """`summary`, and the `sentences` that it is made of."""
        return [pa.field("summary", pa.string()), pa.field("sentences", SENTENCES_TYPE)]

    def start(self, loaded: "LoadedModel") -> None:
        """Take the encoder and try it once."""
        self._embed.start(loaded)

    def annotate(self, texts: Texts) -> Annotation:
        """Sentences of all texts through the model together, then text by text."""
        spans_R = [sentence_spans(text, self.config.language or "en") for text in texts.values]
        # A text of no more sentences than are asked for is kept whole, whatever they say.
        counts_R = [len(spans) if len(spans) > self._most else 0 for spans in spans_R]
        found = _Found(texts, spans_R)
        for first, last in groups(counts_R, _SENTENCES_TOGETHER):
            self._add(found, [row for row in range(first, last) if counts_R[row]])
        return found.annotation()

    def _add(self, found: "_Found", rows: Sequence[int]) -> None:
        """Choose among the sentences of these rows."""
        if not rows:
            return
        row_S = [row for row in rows for _ in found.spans_R[row]]
        sentences = Texts([found.texts.values[row][start:stop] for row in rows for start, stop in found.spans_R[row]])
        if (running := found.texts.running) is not None:
            sentences.running = lambda indices: running(sorted({row_S[index] for index in indices}))
        said = self._embed.annotate(sentences)
        found.count(said, row_S)
        vectors_SD: Vectors = said.columns["embedding"].values.to_numpy().reshape(len(row_S), -1)
        begin = 0
        for row in rows:
            end = begin + len(found.spans_R[row])
            failures = [said.failures[sentence] for sentence in range(begin, end) if sentence in said.failures]
            if (failure := _of_text(failures, end - begin)) is not None:
                found.failures[row] = failure
            else:  # a failed sentence has a vector of zeros, and comes last
                found.chosen_R[row] = chosen(vectors_SD[begin:end], self._most, self._diversity, self._before)
            begin = end


def _of_text(failures: Sequence[Failure], sentences: int) -> Failure | None:
    """Why a text fails whose sentences failed so: not for sentences without tokens, while others have some."""
    worse = [failure for failure in failures if failure.reason != Reason.NO_TOKENS]
    if worse:
        return worse[0]
    return failures[0] if failures and len(failures) == sentences else None


class _Found:
    """What is known of R texts so far."""

    def __init__(self, texts: Texts, spans_R: list[list[Span]]) -> None:
        self.texts = texts
        self.spans_R = spans_R
        self.chosen_R: list[list[int]] = [list(range(len(spans))) for spans in spans_R]
        self.failures: dict[int, Failure] = {}
        self._tokens_R: npt.NDArray[np.int32] = np.zeros(len(spans_R), np.int32)
        self._truncated_R: npt.NDArray[np.bool_] = np.zeros(len(spans_R), np.bool_)
        self._forward_tokens = 0
        self._padding_tokens = 0
        self._seconds = 0.0

    def count(self, said: Annotation, row_S: Sequence[int]) -> None:
        """Add up what the sentences cost."""
        np.add.at(self._tokens_R, row_S, said.tokens_R)
        np.logical_or.at(self._truncated_R, row_S, said.truncated_R)
        self._forward_tokens += said.forward_tokens
        self._padding_tokens += said.padding_tokens
        self._seconds += said.model_seconds

    def annotation(self) -> Annotation:
        """The columns."""
        sentences_R: list[list[dict[str, Any]] | None] = []
        for row, (text, spans, kept) in enumerate(zip(self.texts.values, self.spans_R, self.chosen_R, strict=True)):
            inside = [spans[sentence] for sentence in kept]
            said = [{"text": text[start:stop], "start": start, "end": stop} for start, stop in inside]
            sentences_R.append(None if row in self.failures else said)
        summaries = [None if each is None else " ".join(part["text"] for part in each) for each in sentences_R]
        return Annotation(
            columns={"summary": pa.array(summaries, pa.string()), "sentences": pa.array(sentences_R, SENTENCES_TYPE)},
            tokens_R=self._tokens_R,
            truncated_R=self._truncated_R,
            failures=self.failures,
            forward_tokens=self._forward_tokens,
            padding_tokens=self._padding_tokens,
            model_seconds=self._seconds,
        )
