"""The peers by name, in the order in which they stand in a table."""

import importlib
from importlib.util import find_spec

from jobs.bench.peer import Peer
from pipeline.errors import JobError

PEERS = {
    "transformers.pipeline": "transformers_pipeline:TransformersPipeline",
    "datasets.map": "datasets_map:DatasetsMap",
    "ray.data": "ray_data:RayData",
    "sentence-transformers": "sentence_transformers:InFloat32",
    "sentence-transformers bf16": "sentence_transformers:InBfloat16",
    "onnxruntime": "onnx_runtime:OnnxRuntime",
    "openvino bf16": "open_vino:OpenVino",
}

_REFERENCE = "reference:Reference"


def find(name: str) -> type[Peer]:
    """The class of a peer; what it needs is not imported yet. Raises JobError for a name that is not known."""
    place = _REFERENCE if name == "reference" else PEERS.get(name)
    if place is None:
        raise JobError(f"no peer named {name!r}; known: {', '.join(PEERS)}")
    module, class_name = place.split(":")
    found: type[Peer] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return found


def missing(name: str) -> list[str]:
    """The packages that a peer needs and that are not installed."""
    return [package for package in find(name).packages if find_spec(package) is None]
