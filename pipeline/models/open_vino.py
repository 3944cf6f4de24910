"""OpenVINO: an encoder on a CPU, converted from its torch module once in each actor and called as that one was.

    module = converted(bert, "AutoModel", "bfloat16", threads=1)
    module(input_ids=…, attention_mask=…).last_hidden_state        # a torch tensor, float32

The graph takes micro-batches of any shape; weights and arithmetic have the number format that the plan pinned. Before
the torch module is let go, both compute the same texts: a graph that says something else is refused.

In int8 the linear layers of the graph are quantised before it is compiled (`graph_int8`).

Nobody is told of it: see `pipeline.models.telemetry`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.errors import ModelError, RunError
from pipeline.models.engines import OUTPUTS
from pipeline.models.graph_int8 import quantize_graph
from pipeline.models.ranges import Ranges
from pipeline.models.telemetry import without_telemetry

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""Of int8, what all but the linear layers compute in."""

_MOST_OFF = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
"""Of the length of what torch says in float32: how far off the graph may be. Bfloat16 has three digits, and layers add
up; a graph that took something of the example for a constant is off by the whole length. What int8 loses is judged by
rows of the corpus, by which it was calibrated (`pipeline.calibration`); the words here are any."""

_EXAMPLE = (2, 8)  # B, L
_TRIED = (3, 19)
_MOST_TRIED_IDS = 1000

_BLOTTED = 0x7FC0_BEEF
"""The bits of a float32 that no arithmetic gives: it is not a number, but not the one that a bad text gives either."""


class OpenVinoModule:
    """A compiled graph that is called like the module which it was made from.

    Where memory runs out OpenVINO raises nothing: it leaves the numbers, or the shape, of texts before, and goes on so.
    So numbers are blotted out as soon as they are copied, and a graph that failed is compiled anew.
    """

    def __init__(self, compile_graph: Callable[[], Any], outputs: Sequence[str], config: Any) -> None:
        """Compile: `compile_graph` gives an `openvino.CompiledModel` with these outputs; `config` is the module's."""
        self.config, self.outputs = config, outputs
        self._compile = compile_graph
        self._request: Any = None  # none yet, or none any more
        self._inputs: list[str] = []
        self._begin()

    def _begin(self) -> None:
        compiled = self._compile()
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._request = compiled.create_infer_request()

    def __call__(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """The outputs of a micro-batch by their names, on the CPU in float32. Token types are 0 where none are told.

        The numbers are copies, for OpenVINO writes the next ones over its own. Raises MemoryError where it left none,
        RunError where it cannot go on after that.
        """
        if self._request is None:
            try:
                self._begin()
            except Exception as fault:
                raise RunError(
                    f"OpenVINO gave up after it failed, for its graph could not be compiled anew ({fault}); the same "
                    "command goes on, and fewer actors leave more memory to each"
                ) from fault
        shape = inputs["input_ids"].shape
        given = {name: inputs[name].numpy() if name in inputs else np.zeros(shape, np.int64) for name in self._inputs}
        request, self._request = self._request, None  # until it has done well
        found = request.infer(given, share_inputs=True, share_outputs=True)
        copies = {}
        for place, name in enumerate(self.outputs):
            array = found[place]
            misses = len(array) != shape[0] or (array.ndim > 2 and array.shape[1] != shape[1])
            if misses or (array.view(np.uint32) == _BLOTTED).all():
                raise MemoryError(f"OpenVINO gave no numbers for inputs of {tuple(shape)}")
            copies[name] = torch.from_numpy(array.copy())
            array.view(np.uint32).fill(_BLOTTED)
        self._request = request
        return SimpleNamespace(**copies)


class _Plain(nn.Module):
    """A module as a graph is made of it: tensors in, the wanted tensors out."""

    def __init__(self, module: nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.module(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(found[name] for name in self.outputs)


def converted(
    load: Callable[[], nn.Module], auto_class: str, dtype: str, threads: int, ranges: Ranges | None = None
) -> OpenVinoModule:
    """The module of a transformers class as a graph in that number format, on so many threads.

    `load` gives the module in float32; it is asked again where a graph failed, so that no weights are kept twice.
    `ranges`: what linear layers are quantised by, where the dtype is int8. Raises ModelError where it cannot be
    converted or quantised, or the graph says otherwise than the module.
    """
    assert (ranges is not None) == (dtype == "int8"), "a model in int8 was calibrated before"
    module = load()
    made = _checked(module, auto_class, dtype, threads, ranges)
    made._compile = lambda: _compiled(_graph_of(load(), auto_class, ranges), dtype, threads)
    return made


def _checked(module: nn.Module, auto_class: str, dtype: str, threads: int, ranges: Ranges | None) -> OpenVinoModule:
    advice = "set `engine: torch`"
    try:
        graph = _graph_of(module, auto_class, ranges)
        config = getattr(module, "config", None)
        made = OpenVinoModule(lambda: _compiled(graph, dtype, threads), OUTPUTS[auto_class], config)
        off = _off(made, _Plain(module, OUTPUTS[auto_class]).eval(), _texts(module, *_TRIED))
    except ModelError as fault:
        raise ModelError(f"{fault}; {advice}, or `dtype: bfloat16`") from fault
    except Exception as fault:
        gist = (str(fault).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"{type(module).__name__} cannot be converted to OpenVINO: {type(fault).__name__}: {gist[:300]}; {advice}"
        ) from fault
    if not off <= _MOST_OFF[dtype]:
        raise ModelError(
            f"{type(module).__name__} converted to OpenVINO gives other numbers than in torch: {off:.2g} of their "
            f"length off, and {dtype} may be {_MOST_OFF[dtype]:g}; {advice}"
        )
    return made


def _graph_of(module: nn.Module, auto_class: str, ranges: Ranges | None) -> Any:
    with torch.inference_mode():
        graph = _graph(_Plain(module, OUTPUTS[auto_class]).eval(), _texts(module, *_EXAMPLE))
    if ranges is not None:
        quantize_graph(graph, module, ranges)
    return graph


def _texts(module: Any, texts: int, tokens: int) -> dict[str, torch.Tensor]:
    """Texts of several lengths, padded; the same each time."""
    most = min(_MOST_TRIED_IDS, int(module.config.get_text_config().vocab_size))
    pad_id = getattr(module.config, "pad_token_id", None) or 0
    ids_BL = torch.randint(most // 2, most, (texts, tokens), generator=torch.Generator().manual_seed(7))
    mask_BL = (torch.arange(tokens) < tokens - 3 * torch.arange(texts)[:, None]).long()
    found = {"input_ids": ids_BL.masked_fill(mask_BL == 0, pad_id), "attention_mask": mask_BL}
    if "token_type_ids" in inspect.signature(module.forward).parameters:
        found["token_type_ids"] = torch.zeros_like(ids_BL)
    return found


def _graph(plain: nn.Module, example: Mapping[str, torch.Tensor]) -> Any:
    """An `openvino.Model` with inputs of any shape."""
    without_telemetry()
    from openvino import PartialShape
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(plain, example_input=dict(example))  # nothing else keeps it alive
    graph = frontend.convert(frontend.load(decoder))
    for port, name in zip(graph.inputs, example, strict=True):
        port.get_tensor().set_names({name})
        port.get_node().set_partial_shape(PartialShape([-1, -1]))
    graph.validate_nodes_and_infer_types()
    return graph


def _compiled(graph: Any, dtype: str, threads: int) -> Any:
    """The graph for one micro-batch at a time."""
    import openvino

    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # every actor of a node would be pinned to its first cores
    }
    return openvino.Core().compile_model(graph, "CPU", options)


def _off(made: OpenVinoModule, plain: nn.Module, texts: Mapping[str, torch.Tensor]) -> float:
    """How far off real tokens the graph's numbers are, of the length of the module's."""
    with torch.inference_mode():
        wanted_by_output = plain(**texts)
    found = made(**texts)
    most = 0.0
    for name, wanted in zip(made.outputs, wanted_by_output, strict=True):
        is_of_tokens = wanted.shape[:2] == texts["input_ids"].shape
        real = texts["attention_mask"].bool() if is_of_tokens else torch.ones(len(wanted), dtype=torch.bool)
        difference = (getattr(found, name) - wanted.float())[real]
        most = max(most, float(difference.norm() / wanted.float()[real].norm()))
    return most
