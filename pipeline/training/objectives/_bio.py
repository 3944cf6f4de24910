"""Spans of a text become labels of its tokens and are found again: pure, without torch.

    "Anna Smithson in York"      spans (PER, 0, 13), (LOC, 17, 21)
    tokens     anna    smith   ##son     in        york
    offsets    (0, 4)  (5, 10) (10, 13)  (14, 16)  (17, 21)
    labels     B-PER   I-PER   I-PER     O         B-LOC           on tokens: (PER, 0, 3), (LOC, 4, 5)

and lists of words beside lists of labels become spans of the text that the words make, joined by blanks:

    ["Anna", "Smithson", "in", "York"], ["B-PER", "I-PER", "O", "B-LOC"]

A token that overlaps a span is the span's, and the earlier span's where it overlaps two. S spans, T tokens of a text, L
labels, B texts; labels of tokens are `["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]` (Ramshaw and Marcus 1995; B- begins
every span, as in CoNLL 2000).
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.quarantine import Failure, Reason

OUTSIDE = "O"

Integers = npt.NDArray[np.integer]


class Marked(NamedTuple):
    """A stretch [start, stop) with a label: of code points, or of tokens."""

    label: str
    start: int
    stop: int


def spans_of(value: Any, chars: int, where: str) -> list[Marked] | Failure:
    """The spans of a text of so many code points as a column holds them, by their place; or what is wrong with one."""
    found = []
    for span in value:
        fault = _fault(span, chars)
        if fault is not None:
            return Failure(Reason.BAD_LABEL, f"{where} has {fault}")
        found.append(Marked(str(span["label"]), int(span["start"]), int(span["end"])))
    found.sort(key=lambda span: span.start)
    for before, after in pairwise(found):
        if after.start < before.stop:
            return Failure(
                Reason.BAD_LABEL,
                f"{where} has spans that overlap, {_told(before)} and {_told(after)}: a token has one label",
            )
    return found


def _fault(span: Mapping[str, Any] | None, chars: int) -> str | None:
    if span is None or any(span[name] is None for name in ("label", "start", "end")):
        return f"a span without label, start or end: {span}"
    told = _told(Marked(str(span["label"]), span["start"], span["end"]))
    if span["label"] in ("", OUTSIDE):
        return f"the span {told}, whose label means none"
    if span["start"] >= span["end"]:
        return f"the span {told}, which holds nothing"
    if span["start"] < 0 or span["end"] > chars:
        return f"the span {told}, outside a text of {chars} characters"
    return None


def _told(span: Marked) -> str:
    return f"{span.label!r} [{span.start}, {span.stop})"


def joined(words: Sequence[str]) -> str:
    """The text that words make."""
    return " ".join(words)


def spans_of_words(words: Sequence[str | None], tags: Sequence[str | None], where: str) -> list[Marked] | Failure:
    """Spans of `joined(words)` by a B-, I- or O of each word; an I- after another label begins a span too."""
    if len(words) != len(tags):
        return Failure(Reason.BAD_LABEL, f"{where} has {len(tags)} labels for {len(words)} tokens")
    found: list[Marked] = []
    place, inside = 0, False
    for word, tag in zip(words, tags, strict=True):
        if word is None or tag is None:
            return Failure(Reason.BAD_LABEL, f"{where} has a null among its tokens or labels")
        prefix, _, label = tag.partition("-")
        if tag != OUTSIDE and (prefix not in ("B", "I") or label in ("", OUTSIDE)):
            return Failure(Reason.BAD_LABEL, f"{where} has the label {tag!r}, which is neither O nor B-… nor I-…")
        stop = place + len(word)
        if tag == OUTSIDE:
            inside = False
        elif prefix == "I" and inside and found[-1].label == label:
            found[-1] = found[-1]._replace(stop=stop)
        else:
            found.append(Marked(label, place, stop))
            inside = True
        place = stop + 1
    empty = next((span for span in found if span.start == span.stop), None)
    return found if empty is None else Failure(Reason.BAD_LABEL, f"{where} labels an empty token {empty.label!r}")


def on_tokens(spans: Sequence[Marked], offsets_T2: Integers) -> list[Marked]:
    """Where sorted spans of a text lie among its tokens; one that no token is left to is dropped."""
    if not spans or not len(offsets_T2):
        return []
    starts_S = np.array([span.start for span in spans])
    stops_S = np.array([span.stop for span in spans])
    # The first span that ends behind where a token begins is the only one that it may belong to.
    span_T = np.searchsorted(stops_S, offsets_T2[:, 0], side="right")
    inside_T = span_T < len(spans)
    inside_T[inside_T] = starts_S[span_T[inside_T]] < offsets_T2[inside_T, 1]
    found = []
    for span in np.unique(span_T[inside_T]):
        tokens = np.flatnonzero(inside_T & (span_T == span))
        found.append(Marked(spans[span].label, int(tokens[0]), int(tokens[-1]) + 1))
    return found


def bio(labels: Iterable[str]) -> list[str]:
    """The labels of tokens that these labels of spans make: O first, then by the alphabet."""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in sorted(labels) for prefix in "BI")]


def remembered(ids_T: Integers, known: Mapping[tuple[int, ...], str]) -> list[Marked]:
    """Stretches of tokens that are known, from the left, the longest of those that begin at a token."""
    ids = ids_T.tolist()
    lengths = sorted({len(stretch) for stretch in known}, reverse=True)
    found: list[Marked] = []
    place = 0
    while place < len(ids):
        stretch = next((each for length in lengths if (each := tuple(ids[place : place + length])) in known), ())
        if stretch:
            found.append(Marked(known[stretch], place, place + len(stretch)))
        place += max(1, len(stretch))
    return found


def found_in(labels_BT: Integers, begins_L: npt.NDArray[np.bool_], tag_L: Integers) -> set[tuple[int, int, int, int]]:
    """The spans that labels of tokens make: text, first token, token behind the last one, label of the span.

    Neighbours of one label are joined, a B- begins anew, as `tag` does with `aggregation: simple`; a negative label (a
    special token, padding) belongs to none. `tag_L` is the span's label of each token label, 0 for O, the first.
    """
    labels_BT = np.maximum(labels_BT, 0)
    tag_BT, opens_BT = tag_L[labels_BT], begins_L[labels_BT]
    before_BT = np.pad(tag_BT, ((0, 0), (1, 0)))[:, :-1]
    after_BT = np.pad(tag_BT, ((0, 0), (0, 1)))[:, 1:]
    opens_after_BT = np.pad(opens_BT, ((0, 0), (0, 1)))[:, 1:]
    first_BT = (tag_BT > 0) & (opens_BT | (tag_BT != before_BT))
    last_BT = (tag_BT > 0) & (opens_after_BT | (tag_BT != after_BT))
    rows_S, starts_S = np.nonzero(first_BT)
    _, lasts_S = np.nonzero(last_BT)
    columns = (rows_S, starts_S, lasts_S + 1, tag_BT[rows_S, starts_S])
    return set(zip(*(column.tolist() for column in columns), strict=True))
