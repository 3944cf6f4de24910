"""`model.generate` of transformers, as its documentation shows it: batches in the order of the texts."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import TextPeer
from jobs.bench.workloads.writing import Writing

BATCH = 8
"""Larger ones wait longer for their last row: of a T5 of 77 million weights, 64 texts at once were a third slower."""


class InFloat32(TextPeer[Writing]):
    """Eight texts at once."""

    one_in = 4
    batch: ClassVar[int] = BATCH
    dtype: ClassVar[str] = "float32"

    def load(self) -> None:
        """Model and tokenizer."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        self._model = AutoModelForSeq2SeqLM.from_pretrained(self.setting.folder, dtype=self.dtype).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """Texts, batch by batch."""
        import torch

        found: list[str] = []
        options = {"truncation": True, "max_length": self.setting.max_tokens, "padding": True}
        for start in range(0, len(texts), self.batch):
            inputs = self._tokenizer(list(texts[start : start + self.batch]), return_tensors="pt", **options)
            with torch.inference_mode():
                told = self._model.generate(**inputs, **self.setting.options)
            found += self._tokenizer.batch_decode(told, skip_special_tokens=True)
        return found

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, self.batch)


class InBfloat16(InFloat32):
    """With its weights in bfloat16."""

    one_in = 2
    dtype = "bfloat16"


class Alone(InFloat32):
    """What is right: a text at a time. No contender."""

    batch = 1
