"""What computes a model, and where: torch everywhere, OpenVINO encoders on CPUs. Pure; neither is imported.

why_not_openvino(task, "cpu", "bfloat16")  ->  None                      # it may
why_not_openvino(task, "cuda", "bfloat16") ->  "it computes on CPUs, and the actors would compute on cuda: …"
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from pipeline.errors import JobError
from pipeline.workers import Device

if TYPE_CHECKING:
    from pipeline.tasks.base import Task

Engine = Literal["auto", "torch", "openvino"]

AUTO, TORCH, OPENVINO = "auto", "torch", "openvino"

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "AutoModel": ("last_hidden_state",),
    "AutoModelForSequenceClassification": ("logits",),
    "AutoModelForTokenClassification": ("logits",),
    "AutoModelForQuestionAnswering": ("start_logits", "end_logits"),
}
"""What tasks take from a model that reads, by the transformers class which it is loaded as."""

OF_TEXTS = frozenset({"AutoModelForSequenceClassification"})
"""Those of which each output is of a whole text; others say something of each token."""

_DTYPES = ("float32", "bfloat16", "int8")


def why_not_openvino(task: "Task", device: Device, dtype: str) -> str | None:
    """What keeps OpenVINO from computing an annotation, and what to do; None where it may.

    `dtype` is what `auto` became.
    """
    model = task.model
    assert model is not None, "an engine computes a model"
    otherwise = "set `engine: torch`"
    if task.needs not in OUTPUTS or not task.only_calls:
        return f"it computes encoders alone, and task {task.config.task!r} asks more of its model: {otherwise}"
    if model.gguf_file is not None:
        return f"it reads safetensors, and {model.ref!r} is a GGUF file: {otherwise}"
    if model.allow_remote_code:
        return f"it computes models of transformers, and {model.ref!r} brings code of its own: {otherwise}"
    if device != "cpu":
        return f"it computes on CPUs, and the actors would compute on {device}: {otherwise}, or gpus_per_actor to 0"
    if dtype not in _DTYPES:
        return f"it computes in {', '.join(_DTYPES)}, and dtype is {dtype}: {otherwise}"
    if find_spec("openvino") is None:
        return f"it is not installed: pip install 'corpusmill[openvino]', or {otherwise}"
    return None


def resolve_engine(task: "Task", device: Device, dtype: str) -> str:
    """The engine that the job asks for, where it can compute the annotation; `auto` is torch, unless a trial says else.

    Raises JobError for OpenVINO where it cannot be.
    """
    asked: str = task.config.engine
    if asked != OPENVINO:
        return TORCH
    if (why_not := why_not_openvino(task, device, dtype)) is not None:
        raise JobError(f"annotation {task.config.name!r}: engine: openvino is not possible: {why_not}")
    return OPENVINO
