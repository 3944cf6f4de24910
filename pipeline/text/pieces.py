"""Tokens become pieces: what a model reads at once, special tokens included, without padding.

    maker = PieceMaker(TextTokenizer(bert), window_tokens=256)
    maker.pieces(["Hello world", "", 5 MB of text]) ->
        Pieces(ids_P=[[101, 7592, 2088, 102], [101, …, 102]], windows_R=[1, 0, 1], tokens_R=[4, 0, 256],
               truncated_R=[False, False, True], failures={1: Failure("no_tokens", "…")}, …)

A piece is of one text, or of two side by side (`pairs`): [CLS] first [SEP] second [SEP].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Failure, Reason
from pipeline.text.tokens import Ids, TextTokenizer, Tokens
from pipeline.text.windows import spans

Cut = Literal["longest", "first", "second"]
"""Which text of a pair gives way where both do not fit: the longer one, token by token, or always the same."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What became of R texts (or pairs): P pieces, those of one text one after another."""

    ids_P: list[Ids]
    types_P: list[Ids] | None  # token types; None where all are 0
    spans_P2: npt.NDArray[np.int64]  # [start, stop) in the tokens of the text that was cut into windows
    leads_P: npt.NDArray[np.int64]  # tokens of the piece before that text's first one
    windows_R: npt.NDArray[np.int64]  # pieces of each text; 0 where it failed
    tokens_R: npt.NDArray[np.int32]  # that the model will see, special ones and overlaps included
    truncated_R: npt.NDArray[np.bool_]
    failures: dict[int, Failure]  # by text

    @property
    def row_P(self) -> npt.NDArray[np.int64]:  # noqa: N802 - carries its shape
        """The text of each piece."""
        return np.repeat(np.arange(len(self.windows_R)), self.windows_R)

    def failures_of(self, failed: Mapping[int, Failure]) -> dict[int, Failure]:
        """By text: those that became no piece, and those of which a piece has `failed` in the model."""
        failures, row_P = dict(self.failures), self.row_P
        for piece, failure in failed.items():
            failures.setdefault(int(row_P[piece]), failure)
        return failures


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around one text, or around two, with the token type of everything."""

    before: Ids
    between: Ids
    after: Ids
    types: tuple[Ids, int, Ids, int, Ids]  # of before, the first text, between, the second text, after

    @property
    def special(self) -> int:
        """How many special tokens a piece holds."""
        return len(self.before) + len(self.between) + len(self.after)

    def around(self, first: Ids, second: Ids) -> Ids:
        """The ids of a piece."""
        return np.concatenate([self.before, first, self.between, second, self.after])

    def types_around(self, first: int, second: int) -> Ids:
        """The token types of a piece of so many tokens."""
        before, of_first, between, of_second, after = self.types
        return np.concatenate(
            [before, np.full(first, of_first, np.int32), between, np.full(second, of_second, np.int32), after]
        )

    @property
    def has_types(self) -> bool:
        """Whether any token type is not 0."""
        return any(np.any(types) for types in self.types)


_NOTHING = np.zeros(0, np.int32)


class PieceMaker:
    """One tokenizer with one window, for texts or for pairs of texts."""

    def __init__(
        self, tokenizer: TextTokenizer, window_tokens: int, stride: int | None = None, pairs: bool = False
    ) -> None:
        """Learn which special tokens stand around a text, or around two.

        `stride` is the overlap of a text's windows in tokens; None: only the first window, the rest is cut off.

        Raises ModelError for a tokenizer that does more to a text than to put tokens around it; JobError where the
        special tokens leave no room in the window, or the overlap leaves none.
        """
        self.tokenizer = tokenizer
        self.frame = _pair_frame(tokenizer.tokenizer) if pairs else _single_frame(tokenizer.tokenizer)
        self.room = window_tokens - self.frame.special
        self.stride = stride
        least = 2 if pairs else 1
        if self.room < least:
            raise JobError(
                f"max_tokens: {window_tokens} leaves no room: {self.frame.special} are special; at least "
                f"{self.frame.special + least}"
            )
        if stride is not None and stride >= self.room:
            raise JobError(
                f"stride: {stride} tokens of overlap leave no room for new ones: a window holds {self.room} besides "
                f"{self.frame.special} special ones; at most {self.room - 1}"
            )

    @property
    def most(self) -> int | None:
        """So many tokens of a text are looked at; None: all, in windows."""
        return self.room if self.stride is None else None

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """The pieces of single texts that nobody has tokenised yet."""
        return self.cut(list(self.tokenizer.tokens(texts, self.most)), texts)

    def cut(self, tokens_R: Sequence[Tokens | Failure], texts: Sequence[str]) -> Pieces:
        """The pieces of single texts. A text without tokens, or that failed before, is told in `failures`."""
        ids_R = [found.ids_T for found in tokens_R if isinstance(found, Tokens) and len(found.ids_T)]
        if self.stride is None and not self.frame.has_types and 0 < len(ids_R) == len(tokens_R):
            return self._beginnings(ids_R)
        made = _Made(len(texts), self.frame)
        for row, found in enumerate(tokens_R):
            if (failure := _no_tokens(found, texts[row])) is not None:
                made.failures[row] = failure
                continue
            assert isinstance(found, Tokens)
            windows = self._windows(len(found.ids_T), self.room, self.stride)
            for start, stop in windows:
                made.add(row, found.ids_T[start:stop], _NOTHING, (start, stop), len(self.frame.before))
            made.truncated_R[row] = windows[-1][1] < len(found.ids_T)
        return made.pieces()

    def _beginnings(self, ids_R: Sequence[Ids]) -> Pieces:
        """The first window of each text, side by side in one array: most texts are no more, and there are many."""
        before, after = self.frame.before, self.frame.after
        kept_R = [ids_T[: self.room] for ids_T in ids_R]
        lengths_R = np.fromiter(map(len, kept_R), np.int64, len(kept_R))
        tokens_R = lengths_R + self.frame.special
        ends = np.cumsum(tokens_R).tolist()
        flat = np.concatenate([part for kept in kept_R for part in (before, kept, after)], dtype=np.int32)
        return Pieces(
            [flat[start:stop] for start, stop in pairwise([0, *ends])],
            None,
            np.stack([np.zeros_like(lengths_R), lengths_R], axis=1),
            np.full(len(kept_R), len(before), np.int64),
            np.ones(len(kept_R), np.int64),
            tokens_R.astype(np.int32),
            np.fromiter(map(len, ids_R), np.int64, len(ids_R)) > self.room,
            {},
        )

    def pair(
        self,
        firsts_R: Sequence[Tokens | Failure],
        seconds_R: Sequence[Tokens | Failure],
        firsts: Sequence[str],
        seconds: Sequence[str],
        cut: Cut = "longest",
    ) -> Pieces:
        """The pieces of pairs. With a stride, the text that `cut` names is read in windows and the other kept whole.

        A pair whose text that is kept whole leaves no room for the other is told in `failures`.
        """
        assert cut != "longest" or self.stride is None
        made = _Made(len(firsts), self.frame)
        for row, (first, second) in enumerate(zip(firsts_R, seconds_R, strict=True)):
            failure = _no_tokens(first, firsts[row]) or _no_tokens(second, seconds[row])
            if failure is not None:
                made.failures[row] = failure
                continue
            assert isinstance(first, Tokens)
            assert isinstance(second, Tokens)
            if cut == "longest":
                self._add_longest(made, row, first.ids_T, second.ids_T)
            else:
                self._add_windows(made, row, first.ids_T, second.ids_T, cut)
        return made.pieces()

    def _add_longest(self, made: "_Made", row: int, first: Ids, second: Ids) -> None:
        kept_first, kept_second = longest_first(len(first), len(second), self.room)
        made.add(row, first[:kept_first], second[:kept_second], (0, kept_first), len(self.frame.before))
        made.truncated_R[row] = kept_first < len(first) or kept_second < len(second)

    def _add_windows(self, made: "_Made", row: int, first: Ids, second: Ids, cut: Cut) -> None:
        whole, other = (second, first) if cut == "first" else (first, second)
        room = self.room - len(whole)
        if room < 1 or (self.stride is not None and self.stride >= room):
            made.failures[row] = Failure(
                Reason.NO_ROOM,
                f"the text that is kept whole has {len(whole)} tokens, which leaves room for {max(0, room)} of the "
                f"other in a window of {self.room + self.frame.special}",
            )
            return
        windows = self._windows(len(other), room, self.stride)
        for start, stop in windows:
            part = other[start:stop]
            if cut == "first":
                made.add(row, part, whole, (start, stop), len(self.frame.before))
            else:
                made.add(row, whole, part, (start, stop), len(self.frame.before) + len(whole) + len(self.frame.between))
        made.truncated_R[row] = windows[-1][1] < len(other)

    @staticmethod
    def _windows(tokens: int, room: int, stride: int | None) -> list[tuple[int, int]]:
        return [(0, min(room, tokens))] if stride is None else spans(tokens, room, stride)


class _Made:
    """Pieces as they come."""

    def __init__(self, rows: int, frame: Frame) -> None:
        self._frame, self._has_types = frame, frame.has_types
        self._ids_P: list[Ids] = []
        self._types_P: list[Ids] = []
        self._spans_P: list[tuple[int, int]] = []
        self._leads_P: list[int] = []
        self._windows_R = np.zeros(rows, np.int64)
        self._tokens_R = np.zeros(rows, np.int32)
        self.truncated_R = np.zeros(rows, np.bool_)
        self.failures: dict[int, Failure] = {}

    def add(self, row: int, first: Ids, second: Ids, span: tuple[int, int], lead: int) -> None:
        """One piece more of this row."""
        ids = self._frame.around(first, second)
        self._ids_P.append(ids)
        if self._has_types:
            self._types_P.append(self._frame.types_around(len(first), len(second)))
        self._spans_P.append(span)
        self._leads_P.append(lead)
        self._windows_R[row] += 1
        self._tokens_R[row] += len(ids)

    def pieces(self) -> Pieces:
        """All of them."""
        return Pieces(
            self._ids_P,
            self._types_P if self._has_types else None,
            np.array(self._spans_P, np.int64).reshape(-1, 2),
            np.array(self._leads_P, np.int64),
            self._windows_R,
            self._tokens_R,
            self.truncated_R,
            self.failures,
        )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text of a pair are kept where both share `room`: the longer gives way first.

    As the tokenizers library does it (`TruncationStrategy::LongestFirst`).
    """
    if first + second <= room:
        return first, second
    shorter, longer = min(first, second), max(first, second)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = shorter + room % 2
    return (longer, shorter) if first > second else (shorter, longer)


def _no_tokens(found: Tokens | Failure, text: str) -> Failure | None:
    """Why a text cannot become a piece, or None."""
    if isinstance(found, Failure):
        return found
    if len(found.ids_T) == 0:
        return Failure(Reason.NO_TOKENS, f"the tokenizer finds no token in {len(text)} characters")
    return None


def _single_frame(tokenizer: Any) -> Frame:
    """What the tokenizer puts before and after a single text, found by trying it."""
    inner = _plain(tokenizer, "a b")
    probe = tokenizer("a b", add_special_tokens=True)
    outer, types = list(probe["input_ids"]), _types(probe)
    start = _find(inner, outer, 0)
    stop = start + len(inner)
    return Frame(
        _ids(outer[:start]),
        _NOTHING,
        _ids(outer[stop:]),
        (_ids(types[:start]), types[start], _NOTHING, 0, _ids(types[stop:])),
    )


def _pair_frame(tokenizer: Any) -> Frame:
    """What the tokenizer puts around and between two texts, found by trying it."""
    first, second = _plain(tokenizer, "a b"), _plain(tokenizer, "c d")
    probe = tokenizer("a b", "c d", add_special_tokens=True)
    outer, types = list(probe["input_ids"]), _types(probe)
    start = _find(first, outer, 0)
    middle = start + len(first)
    begin = _find(second, outer, middle)
    end = begin + len(second)
    return Frame(
        _ids(outer[:start]),
        _ids(outer[middle:begin]),
        _ids(outer[end:]),
        (_ids(types[:start]), types[start], _ids(types[middle:begin]), types[begin], _ids(types[end:])),
    )


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _types(probe: Any) -> list[int]:
    """The token types of a probe; 0 where the tokenizer gives none."""
    return list(probe.get("token_type_ids") or [0] * len(probe["input_ids"]))


def _ids(values: Sequence[int]) -> Ids:
    return np.array(values, np.int32)


def _find(inner: list[int], outer: list[int], start: int) -> int:
    """Where the text's own tokens begin among the special ones."""
    for place in range(start, len(outer) - len(inner) + 1):
        if inner and outer[place : place + len(inner)] == inner:
            return place
    raise ModelError("the tokenizer does not put its special tokens around a text, but changes the text's own tokens")
