"""Summaries that an encoder-decoder writes; a text over its window is summarised part by part.

a text of 2,000 tokens, a window of 512:  5 groups of sentences -> 5 summaries -> their text fits -> 1 summary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.models.reference import PinnedModel
from pipeline.tasks.base import Annotation, Texts
from pipeline.tasks.writer import DecodingSettings, WriterTask, Written
from pipeline.text.passages import grouped


@dataclass(slots=True)
class _Waiting:
    """A text that is not summarised yet."""

    row: int
    text: str
    groups: int | None = None  # into which it, or what it is a summary of, was cut in the round before


class Abstractive(WriterTask):
    """Reads each text, or groups of its sentences, and writes what follows."""

    def __init__(self, config: DecodingSettings, model: PinnedModel | None) -> None:
        """Find what stands before each text; errors as `WriterTask`."""
        super().__init__(config, model)
        self.prefix = own_prefix(self.pinned) if self.config.prefix is None else self.config.prefix

    def fields(self) -> list[pa.Field]:
        """`summary`, and its `end`."""
        return [pa.field("summary", pa.string()), pa.field("end", pa.string())]

    def annotate(self, texts: Texts) -> Annotation:
        """Round by round, until each text is one summary."""
        written = Written.nothing(len(texts.values))
        summaries: list[str | None] = [None] * len(texts.values)
        waiting = [_Waiting(row, text) for row, text in enumerate(texts.values)]
        while waiting:
            waiting = self._round(waiting, texts, written, summaries)
        for row in written.failures:
            summaries[row], written.ends_R[row] = None, None
        return Annotation(
            columns={"summary": pa.array(summaries, pa.string()), "end": pa.array(written.ends_R, pa.string())},
            tokens_R=written.tokens_R,
            truncated_R=written.truncated_R,
            failures=written.failures,
            forward_tokens=written.tokens,
            padding_tokens=written.padding_tokens,
            model_seconds=written.seconds,
        )

    def _round(
        self, waiting: Sequence[_Waiting], texts: Texts, written: Written, summaries: list[str | None]
    ) -> list[_Waiting]:
        """Summarise what waits, all of it together; the texts that wait for another round."""
        parts_W = [self._parts(each) for each in waiting]
        for each in waiting:  # how the parts of a round before ended does not tell how this one ends
            written.ends_R[each.row] = None
        found = iter(
            self.writer.write(
                [self.prefix + part for parts in parts_W for part in parts],
                [each.row for each, parts in zip(waiting, parts_W, strict=True) for _ in parts],
                texts,
                written,
            )
        )
        again = []
        for each, parts in zip(waiting, parts_W, strict=True):
            said = [summary for summary in (next(found) for _ in parts) if summary is not None]
            if each.row in written.failures:
                continue
            if len(parts) == 1:
                summaries[each.row] = said[0]
            elif joined := " ".join(summary for summary in said if summary.strip()):
                again.append(_Waiting(each.row, joined, len(parts)))
            else:  # the model has nothing to say of any part
                summaries[each.row] = ""
        return again

    def _parts(self, waiting: _Waiting) -> list[str]:
        """What is summarised by itself: the text where it fits, is cut off, or does not become less; else groups."""
        if self.config.long_text == "truncate":
            return [waiting.text]
        around = self.writer.lengths([self.prefix])[0] if self.prefix else 0

        def lengths(parts: Sequence[str]) -> list[int]:
            return [tokens - around for tokens in self.writer.lengths([self.prefix + part for part in parts])]

        room = self.writer.room - around
        if lengths([waiting.text])[0] <= room:
            return [waiting.text]
        groups = grouped(waiting.text, room, lengths, self.config.language or "en")
        if waiting.groups is not None and len(groups) >= waiting.groups:
            return [waiting.text]
        return [waiting.text[start:stop] for start, stop in groups]


def own_prefix(pinned: PinnedModel) -> str:
    """What config.json says that a model wants before a text to summarise, as T5's does; else nothing."""
    options = (pinned.config.get("task_specific_params") or {}).get("summarization") or {}
    return str(options.get("prefix") or "")
