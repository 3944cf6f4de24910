"""Texts become tokens: ids without special ones, and where each stands in its text.

    TextTokenizer(bert).tokens(["Hello world", ""], most=None, offsets=True) ->
        [Tokens(ids_T=[7592, 2088], offsets_T2=[[0, 5], [6, 11]], whole=True), Tokens(ids_T=[], …)]

`Tokenized` keeps what was found, so that annotations with one tokenizer have each text tokenised once. Fast tokenizers
work through their Rust backend; slow ones text by text. Offsets count code points.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.quarantine import Failure, Reason

Ids = npt.NDArray[np.int32]

# One call to the tokenizer holds some 100 bytes for each token until its ids are taken out: 6 MB.
_CALL_CHARS = 250_000
# A prefix of a long text: tokens are seldom longer than 16 characters on average.
_CHARS_PER_TOKEN = 16
_SHORTEST_CUT_CHARS = 20_000
# Nothing that a tokenizer looks ahead for (an added token of several words, a run of blanks) is longer.
_LOOK_AHEAD_CHARS = 256
_WORD_END = re.compile(r"(?<=[^\W_])(?= )")


@dataclass(frozen=True, slots=True)
class Tokens:
    """T tokens of one text, special ones left out."""

    ids_T: Ids
    offsets_T2: npt.NDArray[np.int32] | None = None  # [start, stop) of each in the text; None: nobody asked
    whole: bool = True  # False: of a long text only the beginning was tokenised


class TextTokenizer:
    """One tokenizer, as every text of a model goes through it."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a transformers tokenizer; what its file says of truncation and padding does not count."""
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if getattr(tokenizer, "is_fast", False) else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._cuts = self._backend is not None and _splits_at_blanks(self._backend)

    @property
    def has_offsets(self) -> bool:
        """Whether it can tell where a token stands; slow tokenizers cannot."""
        return self._backend is not None

    def tokens(self, texts: Sequence[str], most: int | None, offsets: bool = False) -> Iterator[Tokens | Failure]:
        """The tokens of each text; it never raises for one.

        `most`: nobody looks at more than so many, so of a long text the beginning may do; None: all are wanted.
        """
        assert not offsets or self.has_offsets
        for call in _calls(texts):
            try:
                yield from self._tokens(call, most, offsets)
            except BaseException as fault:
                if not _is_the_tokenizers(fault):
                    raise
                for text in call:
                    yield self._alone(text, most, offsets)

    def _alone(self, text: str, most: int | None, offsets: bool) -> Tokens | Failure:
        try:
            return self._tokens([text], most, offsets)[0]
        except BaseException as fault:
            if not _is_the_tokenizers(fault):
                raise
            return Failure(Reason.TOKENIZER_FAILED, f"{type(fault).__name__}: {fault}")

    def _tokens(self, texts: Sequence[str], most: int | None, offsets: bool) -> list[Tokens]:
        if self._backend is None:
            return [Tokens(np.array(self.tokenizer.encode(text, add_special_tokens=False), np.int32)) for text in texts]
        beginnings = [None if most is None else self._beginning(text, most, offsets) for text in texts]
        whole = [text for text, beginning in zip(texts, beginnings, strict=True) if beginning is None]
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        rest = iter([_taken(encoding, offsets) for encoding in encode(whole, add_special_tokens=False)])
        return [next(rest) if beginning is None else beginning for beginning in beginnings]

    def _beginning(self, text: str, most: int, offsets: bool) -> Tokens | None:
        """More than `most` of the text's first tokens, without tokenising the rest; None where that is not safe.

        Safe is this: the tokenizer splits a text at blanks before it looks for tokens, so a word's tokens depend on its
        neighbourhood alone. The text is cut at the end of a word, and the ids count only where the last token that is
        wanted, and one after it, end so far before the cut that nothing beyond can reach them.
        """
        reach = max(_SHORTEST_CUT_CHARS, most * _CHARS_PER_TOKEN)
        if not self._cuts or len(text) < 2 * reach:
            return None
        ends = [match.start() for match in _WORD_END.finditer(text, reach - _LOOK_AHEAD_CHARS, reach)]
        if not ends:
            return None
        assert self._backend is not None
        encoding = self._backend.encode(text[: ends[-1]], add_special_tokens=False)
        safe = bisect.bisect_right(encoding.offsets, ends[-1] - _LOOK_AHEAD_CHARS, key=lambda offset: offset[1])
        return _taken(encoding, offsets, safe) if safe > most else None


class Tokenized:
    """The tokens of R texts, each found once; of a long text only as far as somebody asked."""

    def __init__(
        self, tokenizer: TextTokenizer, texts: Sequence[str], ahead_R: Sequence[Tokens | Failure | None] | None = None
    ) -> None:
        """Nothing is tokenised yet, but what another process has found ahead."""
        self._tokenizer = tokenizer
        self._texts = texts
        self.found_R: list[Tokens | Failure | None] = [None] * len(texts) if ahead_R is None else list(ahead_R)

    def tokens(self, most: int | None, offsets: bool = False) -> list[Tokens | Failure]:
        """The tokens of every text, or why there are none; at least `most` of each, or all."""
        lacking = [row for row, found in enumerate(self.found_R) if _lacks(found, most, offsets)]
        new = self._tokenizer.tokens([self._texts[row] for row in lacking], most, offsets)
        for row, found in zip(lacking, new, strict=True):
            self.found_R[row] = found
        return [found for found in self.found_R if found is not None]


def _lacks(found: Tokens | Failure | None, most: int | None, offsets: bool) -> bool:
    if found is None or isinstance(found, Failure):
        return found is None
    if offsets and found.offsets_T2 is None:
        return True
    return not found.whole and (most is None or len(found.ids_T) <= most)


def _taken(encoding: Any, offsets: bool, first: int | None = None) -> Tokens:
    """What is kept of the backend's answer: all of it, or its `first` tokens."""
    return Tokens(
        np.array(encoding.ids[:first], np.int32),
        np.array(encoding.offsets[:first], np.int32).reshape(-1, 2) if offsets else None,
        whole=first is None,
    )


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
