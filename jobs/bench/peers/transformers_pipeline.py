"""`transformers.pipeline` as its documentation shows it: float32, batches of 32 in the order of the texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, Reads, TextPeer
from jobs.bench.workloads.encoding import Encoding, pooled
from jobs.bench.workloads.labeling import Classifying, Tagging, places


class _Pipeline(TextPeer[Reads]):
    one_in = 8

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, BATCH)

    def _pipeline(self, task: Any) -> Any:
        from transformers import pipeline

        made: Any = pipeline(task, model=self.setting.folder, tokenizer=self.setting.folder)
        return made


class Extract(_Pipeline[Encoding]):
    """`pipeline("feature-extraction")`."""

    def load(self) -> None:
        """Model and tokenizer."""
        self._extract = self._pipeline("feature-extraction")

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """It gives the numbers of each token, which are pooled here."""
        options = {"truncation": True, "max_length": self.setting.max_tokens}
        found: list[Any] = []
        for (tokens,) in self._extract(list(texts), batch_size=BATCH, tokenize_kwargs=options):
            # Padding of its batch stands at the end of a text's tokens.
            ids = self._extract.tokenizer(texts[len(found)], **options)["input_ids"]
            hidden_1LD = np.array(tokens, np.float32)[None, : len(ids)]
            found.append(pooled(hidden_1LD, np.ones(hidden_1LD.shape[:2], np.int64), self.setting)[0])
        return found


class Classify(_Pipeline[Classifying]):
    """`pipeline("text-classification")`."""

    def load(self) -> None:
        """Model and tokenizer."""
        self._classify = self._pipeline("text-classification")

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """The likeliest label; of several at once all with their scores, of which half or more counts."""
        options: dict[str, Any] = {"truncation": True, "max_length": self.setting.max_tokens, "batch_size": BATCH}
        if not self.setting.is_several:
            return [[found["label"]] for found in self._classify(list(texts), **options)]
        told = self._classify(list(texts), top_k=None, function_to_apply="sigmoid", **options)
        return [sorted(each["label"] for each in found if each["score"] >= 0.5) for found in told]


class Tag(_Pipeline[Tagging]):
    """`pipeline("token-classification")`."""

    def load(self) -> None:
        """Model and tokenizer; it cuts texts where the tokenizer says."""
        self._tag = self._pipeline("token-classification")
        self._tag.tokenizer.model_max_length = self.setting.max_tokens

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """Its own entities."""
        strategy = self.setting.aggregation
        return [places(found) for found in self._tag(list(texts), batch_size=BATCH, aggregation_strategy=strategy)]
