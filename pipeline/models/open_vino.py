"""OpenVINO: an encoder on a CPU, compiled from the graph that lies on its node and called like the module in torch.

    module = opened(graphs, bert_config, "AutoModel", "bfloat16", threads=1)
    module(input_ids=…, attention_mask=…).last_hidden_state        # a torch tensor, float32

The graph takes micro-batches of any shape; weights and arithmetic have the number format that the plan pinned. It has
to say of some texts what torch said of them as it was converted (`conversion`): one that says otherwise is refused.

In int8 the linear layers of the graph are quantised before it is compiled (`graph_int8`).

Nobody is told of it: see `pipeline.models.telemetry`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ModelError, RunError
from pipeline.models.engines import OF_TEXTS, OUTPUTS
from pipeline.models.graph_int8 import quantize_graph
from pipeline.models.graph_rows import laid_out
from pipeline.models.graph_tables import halve_tables
from pipeline.models.graphs import Graph, Said
from pipeline.models.mapped import let_go_of_path
from pipeline.models.ranges import Ranges
from pipeline.models.rows import PackedRows
from pipeline.models.telemetry import without_telemetry

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""Of int8, what all but the linear layers compute in."""

_MOST_OFF = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}
"""Of the length of what torch says in float32: how far off the graph may be. Bfloat16 has three digits, and layers add
up; a graph that took something of the example for a constant is off by the whole length. What int8 loses is judged by
rows of the corpus, by which it was calibrated (`pipeline.calibration`); the words here are any."""

_PREPARED = 32
"""Of each kind of operation, for how many shapes the prepared code is kept. A micro-batch seldom has the shape of one
before, but its layers ask for the same. OpenVINO keeps 5,000: MiniLM's actor grew by 0.8 MB with each micro-batch."""

_ADVICE = "set `engine: torch`"

_BLOTTED = 0x7FC0_BEEF
"""The bits of a float32 that no arithmetic gives: it is not a number, but not the one that a bad text gives either."""


_LOOKED_AT = 256
"""So many numbers at least tell whether new ones came."""


class OpenVinoModule:
    """A compiled graph that is called like the module which it was made from.

    Where memory runs out OpenVINO raises nothing: it leaves the numbers, or the shape, of texts before, and goes on so.
    So some numbers are blotted out as soon as all are copied, and a graph that failed is compiled anew.
    """

    def __init__(
        self,
        compile_graph: Callable[[], Any],
        outputs: Sequence[str],
        config: Any,
        in_rows: bool = False,
        of_tokens: bool = True,
    ) -> None:
        """Compile: `compile_graph` gives an `openvino.CompiledModel` with these outputs; `config` is the module's.

        `in_rows`: it takes what `graph_rows` lays out. `of_tokens`: it gives something for each, not for a text.
        """
        self.config, self.outputs, self.in_rows = config, outputs, in_rows
        self._of_tokens = of_tokens
        self._compile = compile_graph
        self._request: Any = None  # none yet, or none any more
        self._inputs: list[str] = []
        self._begin()

    def _begin(self) -> None:
        compiled = self._compile()
        self._inputs = [port.get_any_name() for port in compiled.inputs]
        self._request = compiled.create_infer_request()

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        """The outputs of a micro-batch by their names, on the CPU in float32.

        It takes what the module does: tensors_BL of ids and token types, which are 0 where none are told, and of the
        real tokens an `attention_mask`, or `rows` (`PackedRows`). What it says of padding is any number.

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
        texts, tokens = inputs["input_ids"].shape
        given = self._given(**inputs)
        held = given["input_ids"].shape
        request, self._request = self._request, None  # until it has done well
        found = request.infer(given, share_inputs=True, share_outputs=True)
        copies = {}
        for place, name in enumerate(self.outputs):
            array = found[place]
            misses = len(array) != texts or (self._of_tokens and array.shape[1] != held[1])
            if misses or (_some(array) == _BLOTTED).all():
                raise MemoryError(f"OpenVINO gave no numbers for inputs of {held}")
            copies[name] = torch.from_numpy((array[:, :tokens] if self._of_tokens else array).copy())
            _some(array).fill(_BLOTTED)
        self._request = request
        return SimpleNamespace(**copies)

    def _given(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        rows: PackedRows | None = None,
    ) -> dict[str, npt.NDArray[np.int64]]:
        """What the graph takes, by the names of its inputs."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        given = {"input_ids": input_ids.numpy(), "token_type_ids": types.numpy()}
        if not self.in_rows:
            given |= {} if attention_mask is None else {"attention_mask": attention_mask.numpy()}
        else:
            if rows is not None:
                lengths_B = np.diff(rows.starts_B1.numpy())
            else:
                assert attention_mask is not None, "one of them tells which tokens are real"
                lengths_B = attention_mask.sum(1).numpy()
            pad_id = getattr(self.config, "pad_token_id", None) or 0
            given = laid_out(given, lengths_B, getattr(self.config, "max_position_embeddings", None), pad_id)
        return {name: given[name] for name in self._inputs}


def _some(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """The bits of some of the numbers: of all, or of many from all over."""
    return array.reshape(-1).view(np.uint32)[:: max(1, array.size // _LOOKED_AT)]


Graphs = Callable[[], AbstractContextManager[Graph]]
"""Has the files of one graph there inside a block."""


def opened(
    graphs: Graphs, config: Any, auto_class: str, dtype: str, threads: int, ranges: Ranges | None = None
) -> OpenVinoModule:
    """The graph of a module of that transformers class, compiled in that number format for so many threads.

    `graphs` is asked again where the compiled one failed, so that nothing is kept twice. `config` is the module's.
    `ranges`: what linear layers are quantised by, where the dtype is int8. Raises ModelError where it cannot be opened
    or quantised, or says otherwise than the module.
    """
    assert (ranges is not None) == (dtype == "int8"), "a model in int8 was calibrated before"

    def compiled() -> Any:
        with graphs() as graph:
            return _compiled(graph, dtype, threads, ranges)

    with graphs() as graph:
        try:
            made = OpenVinoModule(
                lambda: _compiled(graph, dtype, threads, ranges),
                OUTPUTS[auto_class],
                config,
                graph.in_rows,
                of_tokens=auto_class not in OF_TEXTS,
            )
            off = _off(made, graph.said())
        except ModelError as fault:
            raise ModelError(f"{fault}; {_ADVICE}, or `dtype: bfloat16`") from fault
        except Exception as fault:
            gist = (str(fault).strip().splitlines() or ["no message"])[0]
            raise ModelError(
                f"{graph.made_of} converted to OpenVINO cannot be compiled: {type(fault).__name__}: {gist[:300]}; "
                f"{_ADVICE}"
            ) from fault
        if not off <= _MOST_OFF[dtype]:
            raise ModelError(
                f"{graph.made_of} converted to OpenVINO gives other numbers than in torch: {off:.2g} of their length "
                f"off, and {dtype} may be {_MOST_OFF[dtype]:g}; {_ADVICE}"
            )
        let_go_of_path(graph.weights)  # weights are laid out for the processor by now
        made._compile = compiled
        return made


def _compiled(graph: Graph, dtype: str, threads: int, ranges: Ranges | None) -> Any:
    """The graph for one micro-batch at a time."""
    without_telemetry()
    import openvino

    core = openvino.Core()
    model = core.read_model(graph.xml)
    if dtype != "float32":
        halve_tables(model)
        let_go_of_path(graph.weights)
    if ranges is not None:
        quantize_graph(model, graph, ranges)
        let_go_of_path(graph.weights)
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # every actor of a node would be pinned to its first cores
        "CPU_RUNTIME_CACHE_CAPACITY": _PREPARED,
    }
    compiled = core.compile_model(model, "CPU", options)
    let_go_of_path(graph.weights)
    return compiled


def _off(made: OpenVinoModule, said: Said) -> float:
    """How far off real tokens the graph's numbers are, of the length of torch's."""
    found = made(**{name: torch.from_numpy(values) for name, values in said.inputs.items()})
    mask_BL = said.inputs["attention_mask"]
    off = []
    for name, wanted in said.outputs.items():
        real = mask_BL.astype(bool) if wanted.shape[:2] == mask_BL.shape else np.ones(len(wanted), bool)
        difference = (getattr(found, name).numpy() - wanted)[real]
        off.append(np.linalg.norm(difference) / np.linalg.norm(wanted[real]))
    return float(np.max(off))  # of which one that is no number is the most
