"""OpenVINO on the converted model, in a loop with sorted micro-batches, in bfloat16 where the processor has it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import padded
from jobs.bench.peer import Peer, Vectors
from jobs.bench.peers.onnx_runtime import TOKENS, sorted_vectors
from pipeline.batching import micro_batches
from pipeline.models.device import resolve_dtype


class OpenVino(Peer):
    """One request at a time, on all cores."""

    packages = ("openvino",)

    def load(self) -> None:
        """The graph is made from the torch model, and kept in memory."""
        import openvino
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(self.setting.folder)
        model = AutoModel.from_pretrained(self.setting.folder).eval()
        example = dict(self._tokenizer(["a text", "and another one"], padding=True, return_tensors="pt"))
        self._names = list(example)
        graph = openvino.convert_model(model, example_input=example)
        precision = {"bfloat16": "bf16", "float32": "f32"}[resolve_dtype("auto", "cpu")]
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": self.setting.cores}
        self._request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Texts of like length together."""
        return sorted_vectors(self._tokenizer, texts, self._hidden, self.setting)

    def _hidden(self, inputs: dict[str, Any]) -> Any:
        return self._request.infer({name: inputs[name] for name in self._names})[0]

    def padded_tokens(self, texts: Sequence[str], lengths_R: npt.NDArray[np.int64]) -> int:  # noqa: ARG002
        """Sorted by tokens."""
        return padded(lengths_R, micro_batches(lengths_R, TOKENS))
