"""`classify` and `tag`: a text has labels, or entities, and agrees where all of them are those of float32."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.bench.workload import ANNOTATION, Agreement, TextWorkload
from pipeline.errors import JobError
from pipeline.models.classes import class_names

_AGREEMENT = Agreement("same", "same_share", "share of the texts whose labels are all those of float32")


@dataclass(frozen=True, slots=True)
class Classifying(TextWorkload):
    """The likeliest label of each text, or all that are likelier than not."""

    name = "classifying"
    peers: ClassVar[Mapping[str, str]] = {
        "transformers.pipeline": "transformers_pipeline:Classify",
        "onnxruntime": "onnx_runtime:OnnxRuntime",
        "openvino bf16": "open_vino:OpenVino",
    }
    reference = "reference:Reference"
    agreement = _AGREEMENT
    ours_alone = ("text_pair", "label_names", "top_k", "all_scores", "threshold", "window_pooling", "stride")
    auto_class = "AutoModelForSequenceClassification"

    labels: Sequence[str]
    is_several: bool  # a text may have several, or none

    @classmethod
    def of(cls, task: Any, rows: int, texts: str, cores: int) -> Self:
        """Labels of the model. Raises JobError: it gives values."""
        kind = task.compared().kind
        if kind == "numbers":
            raise JobError(f"annotation {task.config.name!r}: bench compares labels, and this model gives one value")
        names = class_names(task.pinned)
        return cls(task.pinned.folder, rows, task.window_tokens, cores, texts, names, kind == "multilabels")

    def our_outputs(self, part: pa.Table) -> list[Any]:
        """Labels in alphabetical order."""
        if self.is_several:
            return [sorted(labels) for labels in part[f"{ANNOTATION}_labels"].to_pylist()]
        return [[label] for label in part[f"{ANNOTATION}_label"].to_pylist()]

    def decoded(self, output_BC: npt.NDArray[np.float32], _: Any, __: Sequence[str], ___: Any) -> list[Any]:
        """Labels of logits."""
        if self.is_several:
            return [sorted(np.array(self.labels)[logits_C >= 0].tolist()) for logits_C in output_BC]
        return [[self.labels[int(best)]] for best in output_BC.argmax(1)]


@dataclass(frozen=True, slots=True)
class Tagging(TextWorkload):
    """The entities of each text, as far as the window goes."""

    name = "tagging"
    peers: ClassVar[Mapping[str, str]] = {
        "transformers.pipeline": "transformers_pipeline:Tag",
        "onnxruntime": "onnx_runtime:OnnxRuntime",
        "openvino bf16": "open_vino:OpenVino",
    }
    reference = "reference:Reference"
    agreement = Agreement("same", "same_share", "share of the texts whose entities are all those of float32")
    ours_alone = ("labels", "threshold", "stride")
    ours_too: ClassVar[Mapping[str, Any]] = {"long_text": "truncate"}
    auto_class = "AutoModelForTokenClassification"

    aggregation: str

    @classmethod
    def of(cls, task: Any, rows: int, texts: str, cores: int) -> Self:
        """The job's aggregation."""
        return cls(task.pinned.folder, rows, task.window_tokens, cores, texts, task.config.aggregation)

    def our_outputs(self, part: pa.Table) -> list[Any]:
        """Label, start, end of each."""
        return [places(found) for found in part[f"{ANNOTATION}_entities"].to_pylist()]

    def decoded(self, output_BLC: npt.NDArray[np.float32], inputs: Any, texts: Sequence[str], pipe: Any) -> list[Any]:
        """Entities of logits, by the decoder of transformers' own pipeline."""
        import torch

        found = []
        for row, text in enumerate(texts):
            tokens = int(inputs["attention_mask"][row].sum())
            names = ("input_ids", "offset_mapping", "special_tokens_mask")
            own = {name: torch.from_numpy(np.asarray(inputs[name][row][:tokens]))[None] for name in names}
            logits_1LC = torch.from_numpy(np.ascontiguousarray(output_BLC[row, :tokens]))[None]
            asked = [{**own, "logits": logits_1LC, "sentence": text}]
            found.append(places(pipe.postprocess(asked, aggregation_strategy=self.strategy)))
        return found

    @property
    def strategy(self) -> Any:
        """The aggregation as transformers calls it."""
        from transformers.pipelines.token_classification import AggregationStrategy

        return AggregationStrategy(self.aggregation)


def places(entities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Label, start, end of each entity, of ours or of a pipeline's."""
    return [
        {
            "label": each.get("label") or each.get("entity_group") or each["entity"],
            "start": int(each["start"]),
            "end": int(each["end"]),
        }
        for each in entities
    ]
