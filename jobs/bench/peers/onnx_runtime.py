"""onnxruntime on the model's ONNX graph, in a loop with sorted micro-batches: its documentation shows a single call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded
from jobs.bench.peer import Peer, Vectors, pooled
from pipeline.batching import micro_batches

TOKENS = 4096
"""Padded tokens of a micro-batch."""


class OnnxRuntime(Peer):
    """In float32."""

    packages = ("onnxruntime", "onnx", "onnxscript")

    def load(self) -> None:
        """The graph is made from the torch model, and kept in memory."""
        import onnxruntime
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)
        model = AutoModel.from_pretrained(self.setting.folder, attn_implementation="eager").eval()
        example = dict(self._tokenizer(["a text", "and another one"], padding=True, return_tensors="pt"))
        self._names = list(example)
        free = {name: dict.fromkeys((0, 1), torch.export.Dim.AUTO) for name in self._names}
        program = torch.onnx.export(model, (), kwargs=example, dynamic_shapes=free, dynamo=True, verbose=False)
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.setting.cores
        graph = program.model_proto.SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Texts of like length together."""
        return sorted_vectors(self._tokenizer, texts, self._hidden, self.setting)

    def _hidden(self, inputs: dict[str, Any]) -> Any:
        return self._session.run(None, {name: inputs[name] for name in self._names})[0]

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """Sorted by tokens."""
        return padded(lengths_R, micro_batches(lengths_R, TOKENS))


def sorted_vectors(tokenizer: Any, texts: Sequence[str], hidden: Any, setting: Any) -> Vectors:
    """Tokens, micro-batches of texts of like length, hidden states by `hidden`, pooling; in the order of the texts."""
    encoded = tokenizer(list(texts), truncation=True, max_length=setting.max_tokens)
    lengths_R = np.array([len(ids) for ids in encoded["input_ids"]], np.int64)
    found: list[Any] = [None] * len(texts)
    for rows in micro_batches(lengths_R, TOKENS):
        some = {name: [values[row] for row in rows] for name, values in encoded.items()}
        inputs = dict(tokenizer.pad(some, return_tensors="np"))
        vectors_BD = pooled(hidden(inputs), inputs["attention_mask"], setting)
        for row, vector_D in zip(rows, vectors_BD, strict=True):
            found[row] = vector_D
    return np.stack(found)
