"""A transformers model becomes a graph of OpenVINO's in files (`graphs`), here or in a process apart.

    convert(bert, "AutoModel", folder)
    convert_apart(pinned, "AutoModel", folder)
    python -m pipeline.models.conversion < wish.json      # {"model": {…}, "auto_class": "AutoModel", "folder": "…", …}

What it takes is more than the graph does: the module in float32, its trace, a computer algebra system that torch's
tracing imports. An actor of MiniLM that converted it itself held 830 MB at its peak.
"""

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import ModelError
from pipeline.models import graphs
from pipeline.models.engines import OUTPUTS
from pipeline.models.graph_attention import graph_attention_of
from pipeline.models.graph_rows import PLACES_N, PLACES_T, laid_out
from pipeline.models.linears import body_of
from pipeline.models.mapped import own_library
from pipeline.models.quietly import quietly
from pipeline.models.reference import PinnedModel
from pipeline.models.rows import LaidRows, can_compute_in_rows, compute_in_rows, compute_side_by_side
from pipeline.models.telemetry import without_telemetry

_EXAMPLE = (2, 8)  # B, L
_TRIED = (3, 19)
_MOST_TRIED_IDS = 1000

LONGEST_SECONDS = 3600.0
"""That a process apart may take, for the largest of models."""

_ADVICE = "set `engine: torch`"

_PR_SET_PDEATHSIG = 1


def convert(module: nn.Module, auto_class: str, folder: Path) -> None:
    """Write the module of a transformers class, in float32, as a graph into an empty folder.

    Where its family may compute in rows, the graph does (`graph_rows`). Raises ModelError where it cannot be converted,
    OSError where the folder cannot be written.
    """
    plain = _Plain(module, OUTPUTS[auto_class]).eval()
    try:
        with quietly(), torch.inference_mode():
            texts, example = _texts(module, *_TRIED), _texts(module, *_EXAMPLE)
            said = plain(**texts)
            with _in_rows(module) as in_rows:
                graph = _graph(_InRows(plain), _laid_out(example)) if in_rows else _graph(plain, example)
    except Exception as fault:
        gist = (str(fault).strip().splitlines() or ["no message"])[0]
        raise ModelError(
            f"{type(module).__name__} cannot be converted to OpenVINO: {type(fault).__name__}: {gist[:300]}; {_ADVICE}"
        ) from fault
    _save(graph, folder)
    graphs.write(
        folder,
        type(module).__name__,
        linear_nodes(module),
        graphs.Said(
            {name: values.numpy() for name, values in texts.items()},
            {name: values.float().numpy() for name, values in zip(plain.outputs, said, strict=True)},
        ),
        in_rows,
    )


def linear_nodes(module: nn.Module) -> dict[str, str]:
    """The linear layers of a model's body, by what the frontend names their nodes after; none of what has no body."""
    body = body_of(module)
    names = {} if body is None else {part: name for name, part in body.named_modules() if type(part) is nn.Linear}
    return {f"__module.module.{name}": names[part] for name, part in module.named_modules() if part in names}


class _Plain(nn.Module):
    """A module as a graph is made of it: tensors in, the wanted tensors out."""

    def __init__(self, module: nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.module(input_ids=input_ids, attention_mask=attention_mask, **types, **more)
        return tuple(found[name] for name in self.outputs)


class _InRows(nn.Module):
    """The same of a module that computes in rows."""

    def __init__(self, plain: _Plain) -> None:
        super().__init__()
        self.module, self.say = plain.module, plain.forward

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        places_N: torch.Tensor,
        places_T: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,  # last: a gap in what is given would name all nodes otherwise
    ) -> tuple[torch.Tensor, ...]:
        rows = LaidRows(attention_mask, places_N, places_T)
        return self.say(input_ids, attention_mask, token_type_ids, rows=rows)


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


@contextlib.contextmanager
def _in_rows(module: nn.Module) -> Iterator[bool]:
    """Inside the block the module computes as a graph in rows does, where it can; whether it can."""
    if not can_compute_in_rows(module):
        yield False
        return
    with graph_attention_of(module) as can:
        if can:
            compute_in_rows(module)
        try:
            yield can
        finally:
            if can:
                compute_side_by_side(module)


def _laid_out(texts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same as a graph in rows takes them, in the order of `_InRows`."""
    inputs = {name: values.numpy() for name, values in texts.items() if name != "attention_mask"}
    found = laid_out(inputs, texts["attention_mask"].sum(1).numpy(), most_tokens=None, pad_id=0)
    order = ["input_ids", "attention_mask", PLACES_N, PLACES_T, "token_type_ids"]
    return {name: torch.from_numpy(found[name]) for name in order if name in found}


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
        port.get_node().set_partial_shape(PartialShape([-1] * example[name].ndim))
    graph.validate_nodes_and_infer_types()
    return graph


def _save(graph: Any, folder: Path) -> None:
    import openvino

    try:
        openvino.save_model(graph, folder / graphs.XML, compress_to_fp16=False)
    except RuntimeError as fault:  # all that OpenVINO says of a full disk
        raise OSError(f"{folder} cannot be written: {fault}") from fault


def convert_apart(pinned: PinnedModel, auto_class: str, folder: Path) -> None:
    """Load the model that lies on this node and `convert` it, in a process of its own.

    Raises ModelError: it cannot be loaded or converted; the process died, or had no end. OSError where the folder
    cannot be written.
    """
    wish = {"model": asdict(pinned), "auto_class": auto_class, "folder": str(folder), "asked_by": os.getpid()}
    path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", __name__],  # a folder that is named like a package of ours is not it
            input=json.dumps(wish),
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONPATH": path},
            check=False,
            timeout=LONGEST_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise ModelError(f"model {pinned.ref!r} was not converted to OpenVINO: {fault}; {_ADVICE}") from fault
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelError(
            f"model {pinned.ref!r} was not converted to OpenVINO, for the process that does it ended with "
            f"{process.returncode}: {last[:300]}; {_ADVICE}"
        )
    told = json.loads(process.stdout.splitlines()[-1])  # before it, what was printed while Python started
    if "refused" in told:
        raise ModelError(told["refused"])
    if "unwritten" in told:
        raise OSError(told["unwritten"])


def main() -> None:
    """Convert what standard input names; what came of it is told on standard output."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    wish = json.load(sys.stdin)
    _end_with(wish["asked_by"])
    from pipeline.models.lean import import_lean

    import_lean()
    from pipeline.models.pretrained import wide_module

    pinned, told = PinnedModel(**wish["model"]), {}
    try:
        convert(wide_module(pinned, wish["auto_class"]), wish["auto_class"], Path(wish["folder"]))
    except ModelError as fault:
        told["refused"] = str(fault)
    except OSError as fault:
        told["unwritten"] = str(fault)
    with answer:
        json.dump(told, answer)


def _end_with(parent: int) -> None:
    """End as soon as who asked has ended: its successor asks again."""
    if sys.platform == "linux":
        own_library().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("who asked has ended")


if __name__ == "__main__":
    main()
