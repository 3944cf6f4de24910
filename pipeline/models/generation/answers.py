r"""What comes of prompts: ids, why each answer ended, and where a stop string cuts its text.

Generated(ids_P=[array([71, 2, 1]), …], ends_P=["eos", …], failures={}, tokens=96_583, generated_tokens=9_113, …)
cut("Paris.\n\nQ: And", ("\n\n", "Q:")) -> "Paris."
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.quarantine import Failure
from pipeline.text.tokens import Ids

# Tokens before the shortest tail that could hold a stop string: tokenizers may strip what stands first.
_MARGIN_TOKENS = 4


class End(StrEnum):
    """Why an answer ended."""

    EOS = "eos"
    LENGTH = "length"  # it may be cut off, also where the model is made to say its end there
    STOP = "stop"  # its text holds a stop string


@dataclass(slots=True)
class Generated:
    """The answers to P prompts; a failed one holds None.

    Ids are without prompt, padding and the decoder's first token; a final end-of-sequence token is kept, and so are the
    tokens of a stop string.
    """

    ids_P: list[Ids | None]
    ends_P: list[End | None]
    failures: dict[int, Failure]  # by prompt
    tokens: int  # of prompts
    generated_tokens: int
    padding_tokens: int  # beside prompts
    seconds: float


class Stopper:
    """Knows when an answer's text holds a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        """Look for these strings; an empty list never stops."""
        assert not stop or tokenizer is not None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # A token is a byte at least, so that a tail of so many tokens holds any stop string that ends with the answer.
        self._tail_tokens = max((len(each.encode()) for each in stop), default=0) + _MARGIN_TOKENS

    def ends(self, answer: Sequence[int]) -> bool:
        """Whether the text of the answer holds one; asked after each token, so that its tail is enough to look at."""
        return bool(self._stop) and self._holds(answer[-self._tail_tokens :]) and self._holds(answer)

    def _holds(self, ids: Sequence[int]) -> bool:
        text = self._tokenizer.decode(ids)
        return any(each in text for each in self._stop)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [place for each in stop if (place := text.find(each)) >= 0]
    return text[: min(ends)] if ends else text
