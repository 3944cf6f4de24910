"""onnxruntime on the model's ONNX graph."""

from collections.abc import Mapping
from typing import Any

from jobs.bench.peers.sorted_loop import Compiled, SortedLoop


class OnnxRuntime(SortedLoop):
    """In float32."""

    packages = ("onnxruntime", "onnx", "onnxscript")
    attention = "eager"

    def compiled(self, model: Any, example: Mapping[str, Any]) -> Compiled:
        """A session of all cores."""
        import onnxruntime
        import torch

        free = {name: dict.fromkeys((0, 1), torch.export.Dim.AUTO) for name in example}
        program = torch.onnx.export(model, (), kwargs=dict(example), dynamic_shapes=free, dynamo=True, verbose=False)
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.setting.cores
        graph = program.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, dict(inputs))[0]
