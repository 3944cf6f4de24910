"""Embeddings from pairs: a text and its label come close together, and far from the others of their batch.

objective: contrastive        data: {text: summary, label: description, …}
summary                   description                                  -> near each other
"sparse matrix library"   "SuiteSparse is a suite of sparse matrix …"

Each text should find its own label among those of the batch, and each label its text (InfoNCE: van den Oord et al.
2018, arXiv:1807.03748; of sentence pairs: Henderson et al. 2017, arXiv:1705.00652). The model folder that comes of it
is one of sentence-transformers. B pairs of a batch, L tokens, D numbers of an embedding.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from pipeline.errors import JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.metrics.retrieval import Retrieval
from pipeline.models.inspection import Pooling, modules_of, pooling_of
from pipeline.models.reference import PinnedModel
from pipeline.tasks.base import Input, TextInput
from pipeline.training.objectives.base import (
    Encoded,
    Learned,
    Objective,
    ObjectiveSettings,
    Prediction,
    as_lists,
    needs_label,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.job import TrainingSettings

_SENTENCE_MODULES = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})
_POOLING_MODES: Mapping[Pooling, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}


class Contrastive(Objective):
    """Cross entropy of finding one's own among the batch, both ways."""

    needs = "AutoModel"
    whole_batch = True
    figures: ClassVar[Mapping[str, bool]] = {"mrr": True, "recall_at_1": True}

    class Config(ObjectiveSettings):
        """How near is near."""

        temperature: float = Field(default=0.05, gt=0, le=1)
        """Cosines are divided by it before the softmax: less pushes the nearest of the wrong ones away harder."""

        pooling: Pooling | None = None
        """How token vectors become one: mean, cls (the first), max or last; default: what the model's folder says, else
        mean."""

    def __init__(self, config: ObjectiveSettings, data: Any) -> None:
        """Raises JobError without a label, or with a second text."""
        super().__init__(config, data)
        needs_label("contrastive", data, "the column of the texts that belong to those of data.text")
        if data.text_pair is not None:
            raise JobError("data.text_pair: the pairs of contrastive are `text` and `label`; leave text_pair out")

    def inputs(self) -> Mapping[str, Input]:
        """The two texts of each pair."""
        return {"text": TextInput(self.data.text), "label": TextInput(str(self.data.label))}

    def check_model(self, model: PinnedModel) -> None:
        """Raise ModelError for a model with layers after the pooling, or whose half is a decoder."""
        further = [kind for kind, _ in modules_of(Path(model.folder)) if kind not in _SENTENCE_MODULES]
        if further:
            raise ModelError(
                f"model {model.ref!r} has modules that are not trained here: {', '.join(further)}; supported: "
                f"{', '.join(sorted(_SENTENCE_MODULES))}"
            )
        if model.config.get("is_encoder_decoder", False):
            raise ModelError(f"model {model.ref!r} is an encoder with a decoder; contrastive trains encoders")

    @property
    def pooling(self) -> Pooling:
        """The job's word, the folder's, or mean."""
        return self.config.pooling or pooling_of(Path(self.model.folder)) or "mean"

    # ------------------------------------------------------------------------------------------------------ encoding

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a pair: the tokens of both texts one after another, so that its length is that of its work."""
        texts, labels = (self.pieces({"text": rows[name]}) for name in ("text", "label"))
        failures = {**labels.failures, **texts.failures}
        sides = [
            {row: piece for piece, row in enumerate(pieces.row_P.tolist()) if row not in failures}
            for pieces in (texts, labels)
        ]
        both = [(texts.ids_P[sides[0][row]], labels.ids_P[sides[1][row]]) for row in sides[0]]
        columns = {
            "input_ids": as_lists([np.concatenate(pair) for pair in both]),
            "text_tokens": pa.array([len(text) for text, _ in both], pa.int32()),
            "weight": pa.array(np.ones(len(both), np.float32)),
        }
        if texts.types_P is not None and labels.types_P is not None:
            types = [(texts.types_P[sides[0][row]], labels.types_P[sides[1][row]]) for row in sides[0]]
            columns["token_type_ids"] = as_lists([np.concatenate(pair) for pair in types])
        truncated_R = texts.truncated_R | labels.truncated_R
        return Encoded(
            pa.table(columns),
            failures,
            truncated_rows=int(truncated_R[list(sides[0])].sum()),
            tokens=sum(len(text) + len(label) for text, label in both),
        )

    # ------------------------------------------------------------------------------------------------------ training

    def build(self, learned: Learned, training: "TrainingSettings") -> "nn.Module":
        """The encoder, without the pooler that no embedding comes from: what gets no gradient stops several workers."""
        from pipeline.training.loading import without_adapters

        self.check_model(self.model)
        module = super().build(learned, training)
        inner = without_adapters(module)
        if getattr(inner, "pooler", None) is not None:
            inner.pooler = None
        return module

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """`text.…` and `label.…`: ids and mask of each side; `own_BB`: which pairs are no negatives of each other."""
        import torch

        lengths_B = examples["text_tokens"].to_numpy()
        own_BB = np.zeros((len(examples), len(examples)), np.bool_)
        found: dict[str, torch.Tensor] = {}
        for at, side in enumerate(("text", "label")):
            columns = {
                name: _side(examples[name], lengths_B, at)
                for name in ("input_ids", "token_type_ids")
                if name in examples.column_names
            }
            found |= {f"{side}.{name}": tensor for name, tensor in self.tensors(pa.table(columns)).items()}
            own_BB |= _same(columns["input_ids"])
        return found | {"own_BB": torch.from_numpy(own_BB)}

    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":  # noqa: ARG002
        """Summed over the pairs: the mean of both ways."""
        return self._loss(*self._embedded(model, batch), batch["own_BB"])

    def _embedded(self, model: "nn.Module", batch: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
        """Embeddings of length 1, in float32, of the texts and of the labels."""
        import torch.nn.functional as functional
        from torch import nn

        from pipeline.models.pooling import pool

        found = []
        for side in ("text", "label"):
            inputs = {
                name.removeprefix(f"{side}."): tensor for name, tensor in batch.items() if name.startswith(f"{side}.")
            }
            hidden_BLD = model(**inputs).last_hidden_state
            found.append(functional.normalize(pool(hidden_BLD, inputs["attention_mask"], self.pooling), dim=1))
            # DDP begins anew with each call, and overwrites buffers that the way back still needs: one call is enough.
            model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        return found[0], found[1]

    def _loss(self, texts_BD: "torch.Tensor", labels_BD: "torch.Tensor", own_BB: "torch.Tensor") -> "torch.Tensor":
        import torch
        import torch.nn.functional as functional

        wanted_B = torch.arange(len(texts_BD), device=texts_BD.device)
        others_BB = own_BB & (wanted_B[:, None] != wanted_B)  # a copy of one's own is right as well, so it is no choice
        scores_BB = (texts_BD @ labels_BD.T / self.config.temperature).masked_fill(others_BB, -torch.inf)
        ways = [functional.cross_entropy(each_BB, wanted_B, reduction="sum") for each_BB in (scores_BB, scores_BB.T)]
        return (ways[0] + ways[1]) / 2

    def judge(
        self,
        model: "nn.Module",
        batch: "dict[str, torch.Tensor]",
        learned: Learned,  # noqa: ARG002
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """The loss, and both embeddings of each pair."""
        import torch

        texts_BD, labels_BD = self._embedded(model, batch)
        kept = torch.cat([texts_BD, labels_BD], 1).half()
        return self._loss(texts_BD, labels_BD, batch["own_BB"]), kept.cpu().numpy()

    def score(self, judged_EK: npt.NDArray[Any], learned: Learned) -> dict[str, float]:  # noqa: ARG002
        """How high each text finds its own label among all of the validation."""
        sides = np.split(judged_EK.astype(np.float32), 2, axis=1)
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(each.ravel()), each.shape[1]) for each in sides]
        table = pa.table(lists, ["text", "label"])
        figures = measure(Retrieval("text", "label"), table, resamples=0).figures
        return {name: figures[name].value for name in self.figures}

    # ------------------------------------------------------------------------------------------------------ promoting

    def save(self, model: "nn.Module", folder: str) -> None:
        """A folder of sentence-transformers: the encoder, its pooling, and vectors of length 1."""
        super().save(model, folder)
        config: Any = model.config
        pooling = {mode: how == self.pooling for how, mode in _POOLING_MODES.items()}
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for at, (path, kind) in enumerate(kinds.items())
            ],
            "sentence_bert_config.json": {"max_seq_length": self.max_tokens, "do_lower_case": False},
            "1_Pooling/config.json": {"word_embedding_dimension": int(config.hidden_size), **pooling},
            "config_sentence_transformers.json": {"prompts": {}, "default_prompt_name": None}
            | {"similarity_fn_name": "cosine"},
        }
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2), encoding="utf-8")
        Path(folder, "2_Normalize").mkdir(exist_ok=True)

    def prediction(self, name: str) -> Prediction:
        """`embed`, of both texts: whether a text finds its label."""
        sides = {f"{name}_text": self.data.text, f"{name}_label": str(self.data.label)}
        annotations = [{"name": each, "task": "embed", "text": text} for each, text in sides.items()]
        if self.config.pooling is not None:
            annotations = [each | {"pooling": self.config.pooling} for each in annotations]
        query, document = (f"{each}_embedding" for each in sides)
        return Prediction(annotations, "retrieval", {"query": query, "document": document})


def _side(lists: pa.ChunkedArray, lengths_B: npt.NDArray[np.int32], at: int) -> pa.Array:
    """The first so many numbers of each list, or the rest of it."""
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    values = whole.flatten().to_numpy(zero_copy_only=False)
    ends_B = np.cumsum(whole.value_lengths().to_numpy(zero_copy_only=False))
    starts_B = np.concatenate([[0], ends_B[:-1]])
    cuts_B = starts_B + lengths_B
    spans = zip(starts_B, cuts_B, strict=True) if at == 0 else zip(cuts_B, ends_B, strict=True)
    return as_lists([values[start:stop] for start, stop in spans])


def _same(lists: pa.Array) -> npt.NDArray[np.bool_]:
    """same_BB: which of B lists are equal."""
    numbers: dict[bytes, int] = {}
    values = lists.flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))[:-1]
    number_B = np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in np.split(values, ends)])
    same_BB: npt.NDArray[np.bool_] = number_B[:, None] == number_B
    return same_BB
