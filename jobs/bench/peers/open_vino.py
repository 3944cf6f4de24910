"""OpenVINO on the converted model, in bfloat16 where the processor has it."""

from collections.abc import Mapping
from typing import Any

from jobs.bench.peers.sorted_loop import Compiled, SortedLoop
from pipeline.models.device import resolve_dtype
from pipeline.models.telemetry import without_telemetry


class OpenVino(SortedLoop):
    """One request at a time, on all cores."""

    packages = ("openvino",)
    attention = "sdpa"

    def compiled(self, model: Any, example: Mapping[str, Any]) -> Compiled:
        """A request of all cores."""
        without_telemetry()
        import openvino

        graph = openvino.convert_model(model, example_input=dict(example))
        precision = {"bfloat16": "bf16", "float32": "f32"}[resolve_dtype("auto", "cpu")]
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": self.setting.cores}
        request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
        return lambda inputs: request.infer(dict(inputs))[0]
