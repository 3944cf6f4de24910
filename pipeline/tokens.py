"""Texts become pieces: the token ids of one window each, special tokens included, without padding.

    tokenizer = PieceMaker(bert_tokenizer, window_tokens=256)
    tokenizer.pieces(["Hello world", "", 5 MB of text]) ->
        Pieces(ids_P=[[101, 7592, 2088, 102], [101, …, 102]], windows_R=[1, 0, 1], tokens_R=[4, 0, 256],
               truncated_R=[False, False, True], failures={1: Failure("no_tokens", "…")})

Each text is tokenised once. Fast tokenizers work through their Rust backend; slow ones text by text.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError, ModelError
from pipeline.quarantine import Failure, Reason
from pipeline.windows import spans

Ids = npt.NDArray[np.int32]

# One call to the tokenizer holds some 100 bytes for each token until its ids are taken out.
_CALL_CHARS = 4_000_000
# A prefix of a long text: tokens are seldom longer than 16 characters on average.
_CHARS_PER_TOKEN = 16
_SHORTEST_CUT_CHARS = 20_000
# Nothing that a tokenizer looks ahead for (an added token of several words, a run of blanks) is longer.
_LOOK_AHEAD_CHARS = 256
_WORD_END = re.compile(r"(?<=[^\W_])(?= )")


@dataclass(frozen=True, slots=True)
class Pieces:
    """What the tokenizer made of R texts: P pieces, those of one text one after another."""

    ids_P: list[Ids]
    windows_R: npt.NDArray[np.int64]  # pieces of each text; 0 where it failed
    tokens_R: npt.NDArray[np.int32]  # that the model will see, special ones and overlaps included
    truncated_R: npt.NDArray[np.bool_]
    failures: dict[int, Failure]  # by text

    @property
    def row_P(self) -> npt.NDArray[np.int64]:  # noqa: N802 - carries its shape
        """The text of each piece."""
        return np.repeat(np.arange(len(self.windows_R)), self.windows_R)


class PieceMaker:
    """One tokenizer with one window."""

    def __init__(self, tokenizer: Any, window_tokens: int, stride: int | None = None) -> None:
        """Learn which special tokens stand around a text.

        `stride` is the overlap of a text's windows in tokens; None: only the first window, the rest is cut off.

        Raises ModelError for a tokenizer that does more to a text than to put tokens around it; JobError where the
        special tokens leave no room in the window, or the overlap leaves none.
        """
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._prefix, self._suffix = _special_tokens(tokenizer)
        special = len(self._prefix) + len(self._suffix)
        self._size = window_tokens - special
        self._stride = stride
        self._cuts = stride is None and self._backend is not None and _splits_at_blanks(self._backend)
        if self._size < 1:
            raise JobError(f"max_tokens: {window_tokens} leaves no room: {special} are special; at least {special + 1}")
        if stride is not None and stride >= self._size:
            raise JobError(
                f"stride: {stride} tokens of overlap leave no room for new ones: a window holds {self._size} besides "
                f"{special} special ones; at most {self._size - 1}"
            )

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """The pieces of all texts. A text that the tokenizer fails at is told in `failures`; it never raises."""
        ids_P: list[Ids] = []
        windows_R = np.zeros(len(texts), np.int64)
        tokens_R = np.zeros(len(texts), np.int32)
        truncated_R = np.zeros(len(texts), np.bool_)
        failures: dict[int, Failure] = {}
        for row, found in enumerate(self._all_ids(texts)):
            if isinstance(found, Failure):
                failures[row] = found
                continue
            if len(found) == 0:
                failures[row] = Failure(
                    Reason.NO_TOKENS, f"the tokenizer finds no token in {len(texts[row])} characters"
                )
                continue
            windows = [(0, min(self._size, len(found)))]
            if self._stride is not None:
                windows = spans(len(found), self._size, self._stride)
            truncated_R[row] = windows[-1][1] < len(found)
            mine = [np.concatenate([self._prefix, found[start:stop], self._suffix]) for start, stop in windows]
            ids_P += mine
            windows_R[row] = len(mine)
            tokens_R[row] = sum(map(len, mine))
        return Pieces(ids_P, windows_R, tokens_R, truncated_R, failures)

    def _all_ids(self, texts: Sequence[str]) -> Iterator[Ids | Failure]:
        """Ids of each text without special tokens; of a long one that will be cut, perhaps only its beginning."""
        for call in _calls(texts):
            try:
                yield from self._ids(call)
            except BaseException as fault:
                if not _is_the_tokenizers(fault):
                    raise
                yield from map(self._ids_alone, call)

    def _ids_alone(self, text: str) -> Ids | Failure:
        try:
            return self._ids([text])[0]
        except BaseException as fault:
            if not _is_the_tokenizers(fault):
                raise
            return Failure(Reason.TOKENIZER_FAILED, f"{type(fault).__name__}: {fault}")

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        if self._backend is None:
            return [np.array(self._tokenizer.encode(text, add_special_tokens=False), np.int32) for text in texts]
        beginnings = [self._beginning(text) if self._cuts else None for text in texts]
        whole = [text for text, beginning in zip(texts, beginnings, strict=True) if beginning is None]
        encoded = self._backend.encode_batch_fast(whole, add_special_tokens=False)
        rest = iter([np.array(encoding.ids, np.int32) for encoding in encoded])
        return [next(rest) if beginning is None else beginning for beginning in beginnings]

    def _beginning(self, text: str) -> Ids | None:
        """More than a window of the text's first ids, without tokenising the rest; None where that is not safe.

        Safe is this: the tokenizer splits a text at blanks before it looks for tokens, so a word's tokens depend on its
        neighbourhood alone. The text is cut at the end of a word, and the ids count only where the window's last token,
        and one after it, end so far before the cut that nothing beyond can reach them.
        """
        reach = max(_SHORTEST_CUT_CHARS, self._size * _CHARS_PER_TOKEN)
        if len(text) < 2 * reach:
            return None
        ends = [match.start() for match in _WORD_END.finditer(text, reach - _LOOK_AHEAD_CHARS, reach)]
        if not ends:
            return None
        assert self._backend is not None
        encoding = self._backend.encode(text[: ends[-1]], add_special_tokens=False)
        safe = bisect.bisect_right(encoding.offsets, ends[-1] - _LOOK_AHEAD_CHARS, key=lambda offset: offset[1])
        return np.array(encoding.ids[:safe], np.int32) if safe > self._size else None


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in order, so many at a time as a tokenizer's memory should hold."""
    call: list[str] = []
    chars = 0
    for text in texts:
        if call and chars + len(text) > _CALL_CHARS:
            yield call
            call, chars = [], 0
        call.append(text)
        chars += len(text)
    if call:
        yield call


def _special_tokens(tokenizer: Any) -> tuple[Ids, Ids]:
    """Ids that the tokenizer puts before and after a single text, found by trying it."""
    inner = list(tokenizer.encode("a b", add_special_tokens=False))
    probe = tokenizer("a b", add_special_tokens=True)
    outer = list(probe["input_ids"])
    starts = [start for start in range(len(outer)) if outer[start : start + len(inner)] == inner]
    if not inner or not starts:
        raise ModelError(
            "the tokenizer does not put its special tokens around a text, but changes the text's own tokens"
        )
    if any(probe.get("token_type_ids") or ()):
        raise ModelError("the tokenizer gives single texts token types other than 0, which are not handed to the model")
    return np.array(outer[: starts[0]], np.int32), np.array(outer[starts[0] + len(inner) :], np.int32)


def _splits_at_blanks(backend: Any) -> bool:
    """Whether this backend looks for tokens only within what stands between blanks."""
    if backend.pre_tokenizer is None:
        return False
    try:
        normal = backend.normalizer.normalize_str("ab cd") if backend.normalizer is not None else "ab cd"
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]
    except Exception:  # noqa: BLE001 - a part that cannot be asked alone: then the whole text is tokenised
        return False
    return not any("b" in word and "c" in word for word in words)


def _is_the_tokenizers(fault: BaseException) -> bool:
    """Whether the text is to blame: a panic in Rust is no Exception, but it is one of the tokenizer."""
    return isinstance(fault, Exception) or type(fault).__name__ == "PanicException"
