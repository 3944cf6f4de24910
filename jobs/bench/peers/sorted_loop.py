"""An engine in a loop with sorted micro-batches: what documentation that shows a single call leaves to its readers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded
from jobs.bench.peer import TextPeer
from pipeline.batching import micro_batches

TOKENS = 4096
"""Padded tokens of a micro-batch."""

Compiled = Callable[[Mapping[str, Any]], npt.NDArray[np.float32]]


class SortedLoop(TextPeer[Any]):
    """Texts of like length together."""

    attention: ClassVar[str]
    """What the engine's converter reads best, as transformers calls it."""

    def load(self) -> None:
        """The engine's graph is made from the torch model, and kept in memory."""
        import transformers

        kind = getattr(transformers, self.setting.auto_class)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.setting.folder)
        model = kind.from_pretrained(self.setting.folder, attn_implementation=self.attention).eval()
        self._tags = self.setting.auto_class == "AutoModelForTokenClassification"
        self._pipe = None
        if self._tags:  # its decoder alone is used
            self._pipe = transformers.TokenClassificationPipeline(model=model, tokenizer=self._tokenizer)
        example = dict(self._tokenizer(["a text", "and another one"], padding=True, return_tensors="pt"))
        self._names = list(example)
        self._compiled = self.compiled(model, example)

    @abstractmethod
    def compiled(self, model: Any, example: Mapping[str, Any]) -> Compiled:
        """From the model's inputs to its first output."""

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """Tokens, micro-batches, the engine, what the workload makes of its numbers; in the order of the texts."""
        more = {"return_offsets_mapping": True, "return_special_tokens_mask": True} if self._tags else {}
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self.setting.max_tokens, **more)
        lengths_R = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
        found: list[Any] = [None] * len(texts)
        for rows in self.batches(lengths_R):
            some = {name: [encoded[name][row] for row in rows] for name in self._names}
            inputs = dict(self._tokenizer.pad(some, return_tensors="np"))
            output = self._compiled({name: inputs[name] for name in self._names})
            inputs |= {
                name: [encoded[name][row] for row in rows]
                for name in ("offset_mapping", "special_tokens_mask")
                if name in encoded
            }
            decoded = self.setting.decoded(output, inputs, [texts[row] for row in rows], self._pipe)
            for row, each in zip(rows, decoded, strict=True):
                found[row] = each
        return found

    def batches(self, lengths_R: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp]]:
        """Texts of these lengths as they go through the engine together."""
        return micro_batches(lengths_R, TOKENS)

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """Those of its batches."""
        return padded(lengths_R, self.batches(lengths_R))
