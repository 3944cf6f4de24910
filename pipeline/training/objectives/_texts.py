"""What mlm and clm share: they learn from texts alone, packed or one by one, and are judged by perplexity.

two texts, packed for BERT      [CLS] tokens [SEP] tokens [SEP]
for GPT-2                       tokens <|endoftext|> tokens <|endoftext|>
for Llama                       <s> tokens </s> <s> tokens </s>
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Input, TextInput
from pipeline.text.pieces import PieceMaker
from pipeline.text.tokens import Ids, Tokens
from pipeline.training.objectives._packing import Part, packed
from pipeline.training.objectives._tokenwise import TokenObjective
from pipeline.training.objectives.base import Encoded, Learned, ObjectiveSettings, Prediction, as_lists

if TYPE_CHECKING:
    from pipeline.training.examples import Examples
    from pipeline.training.job import DataSettings, EvaluationData


class TextsObjective(TokenObjective):
    """Texts in, examples of tokens out; what is a target, a subclass says."""

    asks_tokenizer = True

    class Config(ObjectiveSettings):
        """How texts become examples."""

        packed: bool = True
        """Join texts into sequences of `max_tokens`: a step then has `batch_rows` of these, and nothing is cut off.
        false: one text is one example, cut to the window."""

    def __init__(self, config: ObjectiveSettings, data: "DataSettings | EvaluationData") -> None:
        """Raises JobError with a label or a second text, which nothing would look at."""
        super().__init__(config, data)
        for option in ("label", "text_pair"):
            if getattr(data, option) is not None:
                raise JobError(f"data.{option}: {config.name} learns from the texts alone; leave it out")
        self._maker: PieceMaker | None = None

    def inputs(self) -> Mapping[str, Input]:
        """The text."""
        return {"text": TextInput(self.data.text)}

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Take the tokenizer, and learn what it puts around a text."""
        super().start(tokenizer, model, max_tokens)
        self._maker = PieceMaker(self._texts, max_tokens)
        self._before, self._gap, self._after = self._around(self._maker)
        self._room = max_tokens - len(self._before) - len(self._after)
        if self._room < 2:
            raise JobError(
                f"training.max_tokens: {max_tokens} leaves room for {max(0, self._room)} tokens of a text; at least "
                f"{max_tokens - self._room + 2}"
            )

    @abstractmethod
    def _around(self, maker: PieceMaker) -> tuple[Ids, Ids, Ids]:
        """The special tokens before a sequence, between two texts, and behind a text that ends there."""

    @abstractmethod
    def _ends(self, part: Part, tokens: int) -> bool:
        """Whether the special tokens stand behind a sequence that ends with this part of a text of so many tokens."""

    @abstractmethod
    def _targets(self, ids: Ids) -> int:
        """How many targets an example has."""

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """Examples of R texts; one without a token that could be a target is left out."""
        texts, most = rows["text"], None if self.config.packed else self._room
        found = list(self._texts.tokens(texts, most))
        failures = {row: fault for row, each in enumerate(found) if (fault := self._fault(each, texts[row]))}
        ids_R = [
            np.zeros(0, np.int32) if row in failures or isinstance(each, Failure) else each.ids_T
            for row, each in enumerate(found)
        ]
        lengths_R = [len(ids) for ids in ids_R]
        if self.config.packed:
            sequences = packed(lengths_R, self._room, len(self._gap))
        else:
            sequences = [[Part(row, 0, min(length, self._room))] for row, length in enumerate(lengths_R) if length]
        examples = [self._example(parts, ids_R) for parts in sequences]
        weights = [self._targets(ids) for ids in examples]
        # A rest of one token has nothing before it to be judged by; a stretch of unknown words has nothing to mask.
        kept = [at for at, weight in enumerate(weights) if weight]
        made = {
            "input_ids": as_lists([examples[at] for at in kept]),
            "weight": pa.array([weights[at] for at in kept], pa.float32()),
        }
        return Encoded(
            pa.table(made),
            failures,
            truncated_rows=0 if self.config.packed else sum(length > self._room for length in lengths_R),
            tokens=sum(len(examples[at]) for at in kept),
        )

    def _fault(self, found: Tokens | Failure, text: str) -> Failure | None:
        if isinstance(found, Failure):
            return found
        if not len(found.ids_T):
            return Failure(Reason.NO_TOKENS, f"the tokenizer finds no token in {len(text)} characters")
        if not self._targets(np.concatenate([self._before, found.ids_T[: self._room], self._after])):
            return Failure(
                Reason.NO_TOKENS,
                f"the tokenizer finds nothing to predict among {len(found.ids_T)} tokens: they are special or unknown",
            )
        return None

    def _example(self, parts: Sequence[Part], ids_R: Sequence[Ids]) -> Ids:
        pieces = [self._before]
        for part in parts:
            pieces += [ids_R[part.row][part.start : part.stop], self._gap]
        pieces[-1] = self._after if self._ends(parts[-1], len(ids_R[parts[-1].row])) else self._gap[:0]
        return np.concatenate(pieces)

    def prediction(self, name: str) -> Prediction:
        """`score`, which gives the perplexity of each text, read in the window that was trained."""
        annotation: dict[str, Any] = {"name": name, "task": "score", "text": self.data.text}
        columns = {"loss": f"{name}_loss", "tokens": f"{name}_tokens"}
        if self._maker is None:
            return Prediction([annotation], "perplexity", columns)
        annotation["max_tokens"] = self.max_tokens
        return Prediction([annotation], "perplexity", columns, {"unjudged_tokens": self._unjudged(self._maker)})

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:  # noqa: ARG002
        """unigram: a token is as likely as it is often among the training rows, whatever stands around it.

        Every token counts once more than it stands there (Laplace), so none is impossible.
        """
        words_V = np.ones(len(self.tokenizer), bool)
        words_V[[each for each in special_ids(self.tokenizer) if each < len(words_V)]] = False
        counts_V = (train.counts(len(words_V)) + 1) * words_V
        with np.errstate(divide="ignore"):
            nats_V = np.log(counts_V.sum()) - np.log(counts_V)
        assert self._maker is not None, "start comes first"
        losses, tokens = [], []
        for found in self._texts.tokens(gold["text"].to_pylist(), self._room):
            nats_T = np.zeros(0) if isinstance(found, Failure) else nats_V[found.ids_T[: self._room]]
            nats_T = nats_T[np.isfinite(nats_T)]
            losses.append(nats_T.mean() if len(nats_T) else None)
            tokens.append(len(nats_T) + self._unjudged(self._maker))
        return {"unigram": pa.table({"loss": pa.array(losses, pa.float64()), "tokens": pa.array(tokens, pa.int64())})}

    def _unjudged(self, maker: PieceMaker) -> int:
        """Of the tokens that `score` counts, those that it does not judge: special ones."""
        return maker.frame.special


def special_ids(tokenizer: Any) -> npt.NDArray[np.int64]:
    """The ids of tokens that are no words: they are neither masked nor put in a word's place."""
    return np.array(sorted(set(tokenizer.all_special_ids)), np.int64)
