"""Token scores become spans of the text, and spans become a column: pure, without torch.

    text = "Anna Smithson in York", labels = ["O", "B-PER", "I-PER", "B-LOC"]
    tokens     anna     smith    ##son    in       york
    offsets    (0, 4)   (5, 10)  (10, 13) (14, 16) (17, 21)
    best       B-PER    I-PER    O        O        B-LOC
    first   -> Span("PER", "Anna Smithson", 0, 13, 0.98), Span("LOC", "York", 17, 21, 0.99)
    simple  -> Span("PER", "Anna Smith", 0, 10, 0.98), Span("LOC", "York", 17, 21, 0.99)
    none    -> Span("B-PER", "Anna", 0, 4, 0.99), Span("I-PER", "Smith", 5, 10, 0.97), Span("B-LOC", "York", …)

R texts, T tokens of all of them one after another (special ones left out), L labels, W words, G groups, V vocabulary.
Spans are those of transformers' TokenClassificationPipeline: its rules for words, its B-/I- rules, its scores. Two
things differ. `text` is the slice text[start:end] by code points, where the pipeline decodes tokens. And a span neither
begins nor ends with white space: where a tokenizer counts the blank before a word as the word's, start and end move
inwards over it, and a span that holds nothing else is dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError

Strategy = Literal["none", "simple", "first", "average", "max"]
Scores = npt.NDArray[np.float32]
Integers = npt.NDArray[np.integer]
Flags = npt.NDArray[np.bool_]

ENTITIES_TYPE: pa.DataType = pa.list_(
    pa.struct(
        [
            pa.field("label", pa.string()),
            pa.field("text", pa.string()),
            pa.field("start", pa.int32()),
            pa.field("end", pa.int32()),
            pa.field("score", pa.float32()),
        ]
    )
)

_OUTSIDE = "O"
# Up to here the words of one length are summed together; a longer word is summed alone.
_LONG_WORD_TOKENS = 8


class Span(NamedTuple):
    """One entity: `text` is text[start:end] of its row, counted in code points."""

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class WordRule:
    """Which tokens begin a word, as TokenClassificationPipeline sees it.

    Where the tokenizer marks what continues a word ("##son"), a token continues one if it is written with another
    number of characters than it has in the text. Elsewhere words are what stands between blanks: a text in Chinese is
    one word.
    """

    chars_V: npt.NDArray[np.int32] | None  # as the vocabulary writes each token; None: continuations are not marked
    unknown_id: int | None  # such a token always begins a word

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """The rule for a fast tokenizer of transformers."""
        unknown_id: int | None = tokenizer.unk_token_id
        if not getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None):
            return cls(None, unknown_id)
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        chars_V = np.zeros(max(vocabulary.values()) + 1, np.int32)
        chars_V[list(vocabulary.values())] = list(map(len, vocabulary))
        return cls(chars_V, unknown_id)

    def begins(self, texts: Sequence[str], tokens_R: Integers, ids_T: Integers, offsets_T2: Integers) -> Flags:
        """Whether each token begins a word; `offsets_T2` holds its start and end in its own text."""
        if self.chars_V is not None:
            begins_T: Flags = self.chars_V[ids_T] == offsets_T2[:, 1] - offsets_T2[:, 0]
        else:
            begins_T = _after_blanks(texts, tokens_R, offsets_T2[:, 0])
        if self.unknown_id is not None:
            begins_T |= ids_T == self.unknown_id
        begins_T[_first_tokens(tokens_R)] = True
        return begins_T


class EntityDecoder:
    """What a job asks of a model's labels, ready to be applied to the scores of many texts."""

    def __init__(
        self,
        labels: Sequence[str],
        strategy: Strategy,
        keep: Sequence[str] | None = None,
        at_least: float | None = None,
    ) -> None:
        """Only labels in `keep` and spans with a score of `at_least` come out; "O" never does.

        A name in `keep` may stand with its prefix or without. With the strategy none, "PER" keeps B-PER and I-PER, and
        "B-PER" itself alone; the other strategies know only PER, and both mean it.

        Raises JobError: a name in `keep` that is not among the labels.
        """
        self._strategy = strategy
        self._at_least = None if at_least is None else np.float32(at_least)
        self._names_L = list(labels) if strategy == "none" else [_without_prefix(label) for label in labels]
        kept = None if keep is None else _kept_names(labels, keep, strategy)
        self._kept_L = np.array([name != _OUTSIDE and (kept is None or name in kept) for name in self._names_L])
        self._begins_L = np.array([label.startswith("B-") for label in labels])
        tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
        self._tag_L = np.array([tags.index(tag) for tag in tags])

    def spans(
        self, texts: Sequence[str], tokens_R: Integers, offsets_T2: Integers, begins_T: Flags, scores_TL: Scores
    ) -> list[list[Span]]:
        """The entities of each text, in the order of its tokens.

        `tokens_R` counts each text's tokens, `begins_T` comes from the tokenizer's WordRule, and `scores_TL` sum to 1
        for each token.
        """
        assert tokens_R.sum() == len(offsets_T2) == len(begins_T) == len(scores_TL)
        assert begins_T[_first_tokens(tokens_R)].all()
        by_words = self._strategy not in ("none", "simple")
        first_W = np.flatnonzero(begins_T) if by_words else np.arange(len(scores_TL))
        label_W, score_W = self._labels_of_words(scores_TL, first_W)
        row_W = np.repeat(np.arange(len(texts)), tokens_R)[first_W]
        opens_W = np.ones(len(first_W), np.bool_)
        if self._strategy != "none":
            tag_W = self._tag_L[label_W]
            opens_W[1:] = (tag_W[1:] != tag_W[:-1]) | self._begins_L[label_W[1:]] | (row_W[1:] != row_W[:-1])
        first_G = np.flatnonzero(opens_W)
        if not len(first_G):
            return [[] for _ in texts]
        score_G = _means(score_W, first_G)
        kept_G = self._kept_L[label_W[first_G]]
        if self._at_least is not None:
            kept_G &= score_G >= self._at_least
        start_G = offsets_T2[first_W[first_G], 0]
        last_W = _last_of(first_W, len(scores_TL))
        end_G = offsets_T2[last_W[_last_of(first_G, len(first_W))], 1]
        columns = (row_W[first_G], label_W[first_G], start_G, end_G, score_G)
        return self._sliced(texts, zip(*(column[kept_G].tolist() for column in columns), strict=True))

    def _labels_of_words(self, scores_TL: Scores, first_W: npt.NDArray[np.intp]) -> tuple[Integers, Scores]:
        """Label and score of each word; for none and simple a token is one."""
        if self._strategy == "first":
            scores_TL = scores_TL[first_W]
        elif self._strategy == "average":
            scores_TL = _averages(scores_TL, first_W)
        label_T = scores_TL.argmax(axis=1)
        score_T = scores_TL[np.arange(len(scores_TL)), label_T]
        if self._strategy == "max" and len(first_W):
            surest_W = _surest(score_T, first_W)
            return label_T[surest_W], score_T[surest_W]
        return label_T, score_T

    def _sliced(self, texts: Sequence[str], found: Iterable[tuple[int, int, int, int, float]]) -> list[list[Span]]:
        spans_R: list[list[Span]] = [[] for _ in texts]
        for row, label, start, end, score in found:
            piece = texts[row][start:end]
            if bare := piece.strip():
                begin = start + len(piece) - len(piece.lstrip())
                spans_R[row].append(Span(self._names_L[label], bare, begin, begin + len(bare), score))
        return spans_R


def merged_scores(windows: Sequence[tuple[int, int]], scores_of_each: Sequence[Scores], begins_T: Flags) -> Scores:
    """The scores of one text's tokens from its overlapping windows, [start, stop) each.

    A word takes all its scores from one window: of those that hold it whole, the one in which it stands farthest from
    an edge, the earlier of equals; the text's own beginning and end are no edges. A word that no window holds whole
    takes them token by token, by the same rule. Spans are found afterwards, once, in the whole text: so none can be
    torn at a window's edge, nor found twice. Where neighbouring windows share 2 c tokens more than the longest word
    has, each word is seen with at least c tokens on either side.
    """
    assert len(windows) == len(scores_of_each)
    if len(windows) == 1:
        return scores_of_each[0]
    window_T = _windows_of_tokens(windows, begins_T)
    scores_TL = np.empty((len(begins_T), scores_of_each[0].shape[1]), np.float32)
    for number, (start, stop) in enumerate(windows):
        mine = window_T[start:stop] == number
        scores_TL[start:stop][mine] = scores_of_each[number][mine]
    return scores_TL


def entities_array(spans_R: Sequence[Sequence[Span] | None]) -> pa.Array:
    """A column of ENTITIES_TYPE; None becomes null."""
    flat = list(chain.from_iterable(spans or () for spans in spans_R))
    entity = ENTITIES_TYPE.value_type
    values = [pa.array([span[place] for span in flat], field.type) for place, field in enumerate(entity)]
    lengths_R = [len(spans or ()) for spans in spans_R]
    return pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], np.cumsum(lengths_R)]), pa.int32()),
        pa.StructArray.from_arrays(values, fields=list(entity)),
        type=ENTITIES_TYPE,
        mask=pa.array([spans is None for spans in spans_R], pa.bool_()),
    )


def _without_prefix(label: str) -> str:
    """What the pipeline calls a group: "PER" for B-PER, and also for S-PER; "TIME" for DATE-TIME."""
    return label.split("-", 1)[-1]


def _kept_names(labels: Sequence[str], keep: Sequence[str], strategy: Strategy) -> set[str]:
    """Names as the strategy gives them."""
    groups = [_without_prefix(label) for label in labels]
    known = dict.fromkeys(name for name in [*groups, *labels] if name != _OUTSIDE)
    for name in keep:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ";"
            told = ", ".join(dict.fromkeys(group for group in groups if group != _OUTSIDE))
            raise JobError(f"the model has no label {name!r} to keep{meant} it has {told}")
    if strategy != "none":
        return {_without_prefix(name) if name in labels else name for name in keep}
    return {label for label, group in zip(labels, groups, strict=True) if label in keep or group in keep}


def _first_tokens(tokens_R: Integers) -> Integers:
    """The first token of each text that has any."""
    firsts: Integers = (np.cumsum(tokens_R) - tokens_R)[tokens_R > 0]
    return firsts


def _after_blanks(texts: Sequence[str], tokens_R: Integers, start_T: Integers) -> Flags:
    """Whether each token stands at the text's beginning, or has a blank as its first character or before it."""
    # A line break between texts is no blank: what ends at one text's end does not see the next.
    joined = "\n".join(texts) + "\n"
    blank_C = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32) == ord(" ")
    chars_R = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    place_T = start_T + np.repeat(np.cumsum(chars_R) - chars_R, tokens_R)
    after: Flags = (start_T == 0) | blank_C[place_T] | blank_C[place_T - 1]
    return after


def _last_of(first_G: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.intp]:
    """The last of each group, where groups stand one after another and `count` is all there are."""
    return np.append(first_G[1:], count) - 1


def _means(score_W: Scores, first_G: npt.NDArray[np.intp]) -> Scores:
    sum_G = np.add.reduceat(score_W, first_G, dtype=np.float64)
    return (sum_G / np.diff(first_G, append=len(score_W))).astype(np.float32)


def _averages(scores_TL: Scores, first_W: npt.NDArray[np.intp]) -> Scores:
    """The mean over each word's tokens, summed in their order as the pipeline does, so that equals stay equal."""
    count_W = np.diff(first_W, append=len(scores_TL))
    sums_WL = scores_TL[first_W]
    for word in np.flatnonzero(count_W > _LONG_WORD_TOKENS):
        sums_WL[word] = scores_TL[first_W[word] : first_W[word] + count_W[word]].sum(axis=0)
    for place in range(1, _LONG_WORD_TOKENS):
        longer = np.flatnonzero((count_W > place) & (count_W <= _LONG_WORD_TOKENS))
        sums_WL[longer] += scores_TL[first_W[longer] + place]
    sums_WL /= count_W[:, None].astype(np.float32)
    return sums_WL


def _surest(score_T: Scores, first_W: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The token of each word with the highest score, the first of equals."""
    tokens = len(score_T)
    best_T = np.repeat(np.maximum.reduceat(score_T, first_W), np.diff(first_W, append=tokens))
    return np.minimum.reduceat(np.where(score_T == best_T, np.arange(tokens), tokens), first_W)


def _windows_of_tokens(windows: Sequence[tuple[int, int]], begins_T: Flags) -> npt.NDArray[np.intp]:
    """The window that each token takes its scores from."""
    tokens = len(begins_T)
    first_W = np.flatnonzero(begins_T)
    count_W = np.diff(first_W, append=tokens)
    window_W, held_W = _farthest_from_edges(windows, first_W, first_W + count_W)
    token = np.arange(tokens)
    window_T, held_T = _farthest_from_edges(windows, token, token + 1)
    assert held_T.all()
    return np.where(np.repeat(held_W, count_W), np.repeat(window_W, count_W), window_T)


def _farthest_from_edges(
    windows: Sequence[tuple[int, int]], first_W: npt.NDArray[np.intp], stop_W: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Flags]:
    """The window in which each word [first, stop) stands farthest from an edge, and whether any holds it whole."""
    tokens = int(stop_W[-1])
    window_W, margin_W = np.zeros(len(first_W), np.intp), np.zeros(len(first_W), np.intp)
    held_W = np.zeros(len(first_W), np.bool_)
    for number, (start, stop) in enumerate(windows):
        inside = slice(np.searchsorted(first_W, start), np.searchsorted(stop_W, stop, "right"))
        before = first_W[inside] - start if start > 0 else np.full_like(first_W[inside], tokens)
        behind = stop - stop_W[inside] if stop < tokens else tokens
        margin = np.minimum(before, behind)
        better = ~held_W[inside] | (margin > margin_W[inside])
        window_W[inside][better] = number
        margin_W[inside][better] = margin[better]
        held_W[inside] = True
    return window_W, held_W
