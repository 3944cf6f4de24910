"""`Dataset.map` with a model, as the documentation of datasets shows it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded_in_order
from jobs.bench.peer import BATCH, TextPeer
from jobs.bench.workloads.encoding import Encoding, pooled


class DatasetsMap(TextPeer[Encoding]):
    """In float32, batches of 32 in the order of the texts."""

    packages = ("datasets",)
    one_in = 4

    def load(self) -> None:
        """Model and tokenizer."""
        from transformers import AutoModel, AutoTokenizer

        self._model = AutoModel.from_pretrained(self.setting.folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)

    def outputs(self, texts: Sequence[str]) -> Sequence[Any]:
        """A column of a dataset in memory."""
        from datasets import Dataset, disable_caching, disable_progress_bars

        disable_caching()
        disable_progress_bars()
        mapped = Dataset.from_dict({"text": list(texts)}).map(self._of_batch, batched=True, batch_size=BATCH)
        return list(np.array(mapped.with_format("numpy")["vector"][:], np.float32))

    def _of_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        import torch

        options = {"padding": True, "truncation": True, "max_length": self.setting.max_tokens}
        inputs = self._tokenizer(batch["text"], return_tensors="pt", **options)
        with torch.no_grad():
            hidden_BLD = self._model(**inputs).last_hidden_state.numpy()
        return {"vector": pooled(hidden_BLD, inputs["attention_mask"].numpy(), self.setting)}

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """In the order of the texts."""
        return padded_in_order(lengths_R, BATCH)
