"""Where a choice begins after a prompt, in the tokens of both together.

    choices = Choices(TextTokenizer(gpt2), ["games", "web"])
    choices.after("Topic:")  -> Border(prompt_ids=[33221, 25], continuations=[[1830], [3992]])      # " games", " web"
    choices.after("Topic: ") -> the same: the blank belongs to the word that follows it

A prompt and a choice are tokenised as one text, as the model has read such texts; one blank stands between them where
the prompt does not end in white space. Where the choices begin is the same place for all: the first token in which any
of them differs from the prompt alone. So a last token of the prompt that would merge with a choice counts with each of
them, and what differs between two choices is the probability of two whole texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.errors import JobError
from pipeline.quarantine import Failure
from pipeline.text.tokens import Ids, TextTokenizer

# After this the choices' tokens do not depend on a prompt.
_ANCHOR = "a"


@dataclass(frozen=True, slots=True)
class Border:
    """How a prompt is divided from its choices."""

    prompt_ids: Ids  # what stands before every choice, without special tokens
    continuations: list[Ids]  # of each choice, at least one token


class Choices:
    """Some texts, one of which follows each prompt."""

    def __init__(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
        """Tokenise them once by themselves. Raises JobError for one that the tokenizer refuses or finds empty."""
        self._tokenizer = tokenizer
        self._texts = list(texts)
        found = self._joined(_ANCHOR, " ")
        if isinstance(found, Failure):
            raise JobError(f"choices: the tokenizer refuses them: {found.detail}")
        kept = min(shared(found[0], ids) for ids in found[1:])
        self.apart = [ids[kept:] for ids in found[1:]]
        for text, ids in zip(self._texts, self.apart, strict=True):
            if len(ids) == 0:
                raise JobError(f"choices: {text!r} becomes no token of this model")

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest choice."""
        return max(map(len, self.apart))

    def after(self, prompt: str) -> Border | Failure:
        """The choices after this prompt, of which nothing may be left where all of it merges with them."""
        found = self._joined(*divided(prompt))
        if isinstance(found, Failure):
            return found
        # At least one token of each is left, also where the tokenizer takes a choice for the prompt's end.
        kept = max(0, min(min(shared(found[0], ids), len(ids) - 1) for ids in found[1:]))
        return Border(found[0][:kept], [ids[kept:] for ids in found[1:]])

    def check(self, score: str) -> None:
        """Refuse what no score could tell apart. Raises JobError: two choices of the same tokens; with `score` "sum",
        one whose tokens begin with all of another's.
        """
        texts = {tuple(ids.tolist()): text for text, ids in zip(self._texts, self.apart, strict=True)}
        for text, ids in zip(self._texts, self.apart, strict=True):
            whole = tuple(ids.tolist())
            if texts[whole] != text:
                raise JobError(f"choices: {text!r} and {texts[whole]!r} are the same tokens of this model")
            begun = next((texts[whole[:end]] for end in range(1, len(whole)) if whole[:end] in texts), None)
            if begun is not None and score == "sum":
                raise JobError(
                    f"choices: {text!r} begins with {begun!r}, so it can never be the likelier one; word them apart, "
                    "or compare tokens: `choice_score: mean`"
                )

    def _joined(self, head: str, lead: str) -> list[Ids] | Failure:
        """The tokens of the prompt alone, and of it with each choice."""
        joined = [head + lead.removesuffix(text[: len(text) - len(text.lstrip())]) + text for text in self._texts]
        found: list[Ids] = []
        for tokens in self._tokenizer.tokens([head, *joined], most=None):
            if isinstance(tokens, Failure):
                return tokens
            found.append(tokens.ids_T)
        return found


def divided(prompt: str) -> tuple[str, str]:
    """A prompt without the blanks at its end, and what stands between it and a choice."""
    head = prompt.rstrip(" ")
    if head and head != prompt:
        return head, prompt[len(head) :]
    return prompt, "" if prompt[-1:].isspace() else " "


def shared(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def softmax(values_RL: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Each row's share of its labels: of log-likelihoods, the probability of each label if it is one of these."""
    parts_RL = np.exp(values_RL - values_RL.max(1, keepdims=True))
    scores_RL: npt.NDArray[np.float32] = (parts_RL / parts_RL.sum(1, keepdims=True)).astype(np.float32)
    return scores_RL
