r"""Texts become sentences, by their offsets, and sentences become groups: pure.

    text = "Dr. Smith came. He stayed.\n\n * one item\n * another"
    sentence_spans(text)           -> [(0, 15), (16, 26), (29, 39), (41, 50)]    # text[16:26] == "He stayed."
    groups([15, 10, 10, 9], 25)    -> [(0, 2), (2, 4)]                           # sentences 0 and 1, then 2 and 3

Offsets are code points. Nothing is changed or lost: between two sentences stands white space, or nothing where a script
has none. Where a sentence ends is told by `sentencex` (Wikimedia; rules, with abbreviations for some 30 languages and
the marks of all scripts); a script that marks no ends, as Thai, gives one sentence a paragraph.
"""

import re
from collections.abc import Iterator, Sequence

import sentencex

# The library's time grows with the square of the sentences in a paragraph, so it sees a long one in stretches.
_STRETCH_CHARS = 4_000

# After some words (English's "I") the library takes each white space for one byte, and panics at a wider one.
_WIDE_BLANK = re.compile(r"[^\S\x00-\x7f]")
_BLANKS = re.compile(r"\s{2,}")
_LINE_END = re.compile(r"\r\n|[\n\r\v\f\x85\u2028\u2029]")
_NUMBER = r"\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{2,5})[.)]{1,2}"
_ITEM = re.compile(rf"\s*(?:[*+\-–—•◦▪▫■□●○⁃⁌⁍◆◇★☆➤➢➣▶▸►]|{_NUMBER})\s+(?=\S)")
_NUMBER_ALONE = re.compile(r"\(?\d{1,3}[.)]{1,2}")

Span = tuple[int, int]


def sentence_spans(text: str, language: str = "en") -> list[Span]:
    """[start, stop) of each sentence in code points: in order, disjoint, without white space at either end.

    A blank line always ends a sentence, and so does an item of a list; the item's bullet or number belongs to its first
    sentence. What goes on for 4,000 characters without an end is cut, before a word where there is one.

    `language` is a code as Wikipedia has it (en, de, zh, pt-br); one that the library does not know goes by English's
    rules. The time is linear in the text.
    """
    found: list[Span] = []
    narrow = _WIDE_BLANK.sub(" ", text)
    for start, stop in _paragraphs(text):
        found += _numbered(narrow, _sentences(narrow, start, stop, language))
    return found


def groups(lengths_S: Sequence[int], most: int) -> list[Span]:
    """[first, last) of neighbouring sentences whose lengths add up to at most `most`, as many as fit; none is left out.

    A single longer one goes alone. The lengths are what the caller bounds: characters, or tokens.
    """
    assert most > 0
    found: list[Span] = []
    first, total = 0, 0
    for at, length in enumerate(lengths_S):
        if at > first and total + length > most:
            found.append((first, at))
            first, total = at, 0
        total += length
    if first < len(lengths_S):
        found.append((first, len(lengths_S)))
    return found


def _paragraphs(text: str) -> Iterator[Span]:
    """[start, stop) of what stands between blank lines."""
    start = 0
    for blanks in _BLANKS.finditer(text):
        if len(_LINE_END.findall(blanks[0])) > 1:
            yield start, blanks.start()
            start = blanks.end()
    yield start, len(text)


def _sentences(text: str, start: int, stop: int, language: str) -> Iterator[Span]:
    """Of one paragraph, stripped; a long one goes stretch by stretch, each from where the last whole sentence ended."""
    while start < stop:
        stretch = text[start : min(stop, start + _STRETCH_CHARS)]
        parts = _segments(language, stretch)
        if start + len(stretch) < stop:
            parts = parts[:-1] or [stretch[: _cut(stretch)]]
        for part in parts:
            yield from _inside(text, start, start + len(part), language)
            start += len(part)


def _inside(text: str, start: int, stop: int, language: str) -> Iterator[Span]:
    """The sentences of one item of a list, which the library leaves whole, with all that follows the last one."""
    begins = start
    if item := _ITEM.match(text, start, stop):
        begins = item.end()
        lengths = [len(part) for part in _segments(language, text[begins:stop])]
    else:
        lengths = [stop - start]
    for length in lengths:
        found = _stripped(text, start, begins + length)
        begins += length
        start = begins
        if found is not None:
            yield found


def _segments(language: str, stretch: str) -> list[str]:
    """What the library makes of it: all its characters, in order. Where it panics, which is no Exception, the whole."""
    try:
        return list(sentencex.segment(language, stretch))
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":
            raise
        return [stretch]


def _numbered(text: str, spans: Iterator[Span]) -> Iterator[Span]:
    """A number that stands alone before a sentence belongs to it: "2. Second thing."; before a number it is its own."""
    number: Span | None = None
    for start, stop in spans:
        alone = _NUMBER_ALONE.fullmatch(text, start, stop) is not None
        if number is not None and alone:
            yield number
        elif not alone:
            yield start if number is None else number[0], stop
        number = (start, stop) if alone else None
    if number is not None:
        yield number


def _stripped(text: str, start: int, stop: int) -> Span | None:
    """None where there is white space alone."""
    part = text[start:stop]
    begin = start + len(part) - len(part.lstrip())
    stop = start + len(part.rstrip())
    return (begin, stop) if begin < stop else None


def _cut(stretch: str) -> int:
    """Where a stretch without an end is cut: before its last word, or at its own end where it is a single word."""
    words = stretch.rsplit(maxsplit=1)
    return len(stretch) if len(words) < 2 or stretch[-1].isspace() else len(stretch) - len(words[1])
