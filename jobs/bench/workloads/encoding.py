"""`embed`: texts become vectors, and agree by their cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.bench.workload import ANNOTATION, Agreement, TextWorkload
from pipeline.errors import JobError
from pipeline.models.inspection import Pooling


@dataclass(frozen=True, slots=True)
class Encoding(TextWorkload):
    """A pooled vector of each text."""

    name = "encoding"
    peers: ClassVar[Mapping[str, str]] = {
        "transformers.pipeline": "transformers_pipeline:Extract",
        "datasets.map": "datasets_map:DatasetsMap",
        "ray.data": "ray_data:RayData",
        "sentence-transformers": "sentence_transformers:InFloat32",
        "sentence-transformers bf16": "sentence_transformers:InBfloat16",
        "onnxruntime": "onnx_runtime:OnnxRuntime",
        "openvino bf16": "open_vino:OpenVino",
    }
    unavailable: ClassVar[Mapping[str, str]] = {
        "sentence-transformers openvino": "optimum-intel 2.2 asks for transformers < 5.6, and corpusmill for >= 5.23"
    }
    reference = "reference:Reference"
    agreement = Agreement("cosine", "cosine_least", "the least of all rows to the vectors of float32")
    ours_alone = ("prefix", "prompt_name", "truncate_dim", "window_pooling", "stride")
    auto_class = "AutoModel"

    pooling: Pooling
    normalize: bool

    @classmethod
    def of(cls, task: Any, rows: int, texts: str, cores: int) -> Self:
        """Pooling as the task found it."""
        return cls(task.pinned.folder, rows, task.window_tokens, cores, texts, task.pooling, task.normalizes)

    @classmethod
    def check(cls, settings: Any) -> None:
        """Only float32 has a cosine that can be compared."""
        super(Encoding, cls).check(settings)
        if settings.output != "float32":
            raise JobError(f"annotation {settings.name!r}: peers have no word for output: leave it out")

    def our_outputs(self, part: pa.Table) -> list[Any]:
        """Vectors."""
        vectors = part[f"{ANNOTATION}_embedding"].combine_chunks()
        return list(vectors.flatten().to_numpy().reshape(len(vectors), -1))

    def agreed(self, found: Sequence[Any], right: Sequence[Any]) -> npt.NDArray[np.float64]:
        """Cosines."""
        ours_RD, right_RD = (np.stack(vectors).astype(np.float64) for vectors in (found, right))
        lengths_R = np.linalg.norm(ours_RD, axis=1) * np.linalg.norm(right_RD, axis=1)
        cosines_R: npt.NDArray[np.float64] = (ours_RD * right_RD).sum(1) / lengths_R
        return cosines_R

    def decoded(self, output_BLD: npt.NDArray[np.float32], inputs: Any, _: Sequence[str], __: Any) -> list[Any]:
        """Vectors of hidden states: for peers that give no more."""
        return list(pooled(output_BLD, inputs["attention_mask"], self))


def pooled(hidden_BLD: npt.NDArray[np.float32], mask_BL: npt.NDArray[np.int64], setting: Encoding) -> Any:
    """Vectors_BD of hidden states."""
    import torch

    from pipeline.models.pooling import pool
    from pipeline.tasks.encoder import normalized

    vectors_BD = pool(torch.from_numpy(hidden_BLD), torch.from_numpy(mask_BL), setting.pooling).numpy()
    return normalized(vectors_BD) if setting.normalize else vectors_BD
