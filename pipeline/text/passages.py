"""A text too long for a model's window becomes passages that fit: at sentences where it can, else at blanks: pure.

    passages("One. Two two. Three.", most=3, length=words) -> [(0, 4), (5, 13), (14, 20)]  # each sentence alone
    grouped("One. Two two. Three.", most=3, length=words)  -> [(0, 13), (14, 20)]          # as many as fit, in order

Every visible character stands in exactly one passage, so that what lies between is white space alone.
"""

from collections.abc import Callable, Sequence

from pipeline.text.sentences import Span, groups, sentence_spans

Length = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each of some texts."""


def passages(text: str, most: int, length: Length, language: str = "en") -> list[Span]:
    """[start, stop) of each sentence; one of more than `most` tokens in halves, or halves of these, that fit."""
    return _fitting(text, sentence_spans(text, language), most, length)


def grouped(text: str, most: int, length: Length, language: str = "en") -> list[Span]:
    """[start, stop) of passages of whole sentences, as many as fit into `most` tokens."""
    sentences = passages(text, most, length, language)
    if not sentences:
        return []
    lengths = length([text[start:stop] for start, stop in sentences])
    joined = [(sentences[first][0], sentences[last - 1][1]) for first, last in groups(lengths, most)]
    # What lies between two sentences may bring a token more than their sum.
    return _fitting(text, joined, most, length)


def _fitting(text: str, spans: Sequence[Span], most: int, length: Length) -> list[Span]:
    assert most >= 1
    fitting: list[Span] = []
    waiting = list(spans)
    while waiting:
        lengths = length([text[start:stop] for start, stop in waiting])
        halves: list[Span] = []
        for (start, stop), tokens in zip(waiting, lengths, strict=True):
            parts = _halves(text, start, stop) if tokens > most else []
            halves += parts
            fitting += [] if parts else [(start, stop)]
        waiting = halves
    return sorted(fitting)


def _halves(text: str, start: int, stop: int) -> list[Span]:
    """The span in two, at the blank nearest to its middle, else in the middle; nothing where it is one character."""
    if stop - start < 2:
        return []
    middle = (start + stop) // 2
    before, behind = text.rfind(" ", start + 1, middle + 1), text.find(" ", middle, stop - 1)
    blanks = [place for place in (before, behind) if place > start]
    cut = min(blanks, key=lambda place: abs(place - middle)) if blanks else middle
    return [span for span in (_stripped(text, start, cut), _stripped(text, cut, stop)) if span is not None]


def _stripped(text: str, start: int, stop: int) -> Span | None:
    """The span without white space at its ends; None where nothing else is in it."""
    inner = text[start:stop]
    left = len(inner) - len(inner.lstrip())
    kept = inner.strip()
    return (start + left, start + left + len(kept)) if kept else None
