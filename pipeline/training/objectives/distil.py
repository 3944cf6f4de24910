"""A classifier learns from a larger one: its labels' probabilities say more than the right label alone.

objective: {name: distil, layers: 3}                 the job's own model teaches three of its layers
objective: {name: distil, teacher: models/sections, layers: 3}
objective: {name: distil, scores: topic}             columns topic_labels, topic_scores of an earlier annotation
data: {text: description, label: section, …}         label: right ones, where they are known

The teacher runs beside the student, or has run before, over a corpus of any size (`classify` or `zero_shot` with
`all_scores: true`), which costs its passes once and not in each epoch. Loss: Hinton et al. 2015 (arXiv:1503.02531).
B rows, D labels.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field, model_validator

from pipeline.errors import CorpusError, JobError, ModelError
from pipeline.models.classes import check_classifies, class_names
from pipeline.models.inspection import positions_tokens
from pipeline.models.reference import ModelSettings, PinnedModel, on_this_node, pin
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import ColumnInput, Input
from pipeline.training.objectives.base import Encoded, Learned
from pipeline.training.objectives.classify import LABELS_TOLD, Classify

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.examples import Examples
    from pipeline.training.job import TrainingSettings

_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_RIGHT, _TAUGHT = "right\0", "taught\0"  # before a label's name, in what is counted
_LEAST = 1e-6  # a probability of several labels at once that is 0 or 1 has no logit
_PROBE = "Ein Satz, 2 sentences; naïve 東京 e-mail@example.org"


class Distil(Classify):
    """Cross entropy with a teacher's softened probabilities, beside that with the right labels."""

    class Config(Classify.Config):
        """Who teaches, and what the student begins as."""

        teacher: Annotated[
            ModelSettings | None, BeforeValidator(lambda value: {"ref": value} if isinstance(value, str) else value)
        ] = None
        """A trained classifier, which runs beside the student; it must read the same tokens. Default: the job's own
        model, before it is made smaller."""

        scores: str | None = Field(default=None, min_length=1)
        """Name of an earlier annotation, whose columns `<name>_labels` and `<name>_scores` are the teacher's."""

        temperature: float = Field(default=2.0, ge=1, le=100)
        """Logits are divided by it before the softmax, of teacher and student: more tells more of unlikely labels."""

        alpha: float = Field(default=0.7, gt=0, le=1)
        """Share of the teacher's part in the loss; the rest is of the right labels, in rows that have one."""

        layers: int | list[int] | None = None
        """The student begins with so many of the model's layers, evenly spread, or with these (the first is 0)."""

        neurons: float | None = Field(default=None, gt=0, lt=1)
        """The student begins with this share of each layer's feed-forward neurons, those that weigh most."""

        sparsity: float | None = Field(default=None, gt=0, lt=1)
        """This share of the weights in its layers, the smallest, becomes and stays 0; gains no speed, but packs."""

        @model_validator(mode="after")
        def _somebody_teaches(self) -> Self:
            if self.teacher is not None and self.scores is not None:
                raise ValueError("teacher and scores exclude each other: each says who teaches")
            if self.teacher is None and self.scores is None and not self.shrinks:
                raise ValueError(
                    "nothing is taught: name a `teacher`, or `scores` of an earlier annotation, or say with `layers` "
                    "how much smaller the model becomes"
                )
            return self

        def portable(self) -> dict[str, Any]:
            """With a teacher in a local folder named by its absolute path."""
            found = super().portable()
            if self.teacher is not None and Path(self.teacher.ref).exists():
                found["teacher"] |= {"ref": str(Path(self.teacher.ref).resolve())}
            return found

        @property
        def shrinks(self) -> bool:
            """Whether the student begins smaller than the job's model."""
            return any(each is not None for each in (self.layers, self.neurons, self.sparsity))

    # ------------------------------------------------------------------------------------------------------- reading

    def inputs(self) -> Mapping[str, Input]:
        """What classify reads, and the teacher's columns."""
        found = dict(super().inputs())
        if self.config.scores is not None:
            found["taught_labels"] = ColumnInput(f"{self.config.scores}_labels")
            found["taught_scores"] = ColumnInput(f"{self.config.scores}_scores")
        return found

    def check_label(self, type_: pa.DataType) -> None:
        """Strings, or lists of strings."""
        super().check_label(type_)
        if self.problem == "regression":
            raise CorpusError(f"data.label '{self.data.label}' is {type_}; distil teaches labels, not numbers")

    def check_model(self, model: PinnedModel) -> None:
        """Raise ModelError for a teacher that is no classifier, of another kind of problem, or of shorter texts."""
        if self.config.scores is not None:
            return
        teacher = self._teacher_of(model)
        check_classifies(teacher, "a teacher")
        stated = teacher.config.get("problem_type") or "single_label_classification"
        if stated != self.problem:
            raise ModelError(
                f"the teacher {teacher.ref!r} is a model of {stated}, and '{self.data.label}' asks for {self.problem}"
            )

    def _teacher_of(self, model: PinnedModel) -> PinnedModel:
        return model if self.config.teacher is None else pin(self.config.teacher)

    # ------------------------------------------------------------------------------------------------------ encoding

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """As every objective; a teacher that runs beside the student must read what it reads.

        Raises ModelError: it has other tokens, or fewer positions.
        """
        super().start(tokenizer, model, max_tokens)
        self._module: nn.Module | None = None
        if self.config.teacher is None:
            return
        from pipeline.models.pretrained import prepared_tokenizer

        positions = positions_tokens(self.teacher.config)
        if positions is not None and positions < max_tokens:
            raise ModelError(
                f"the teacher {self.teacher.ref!r} has {positions} positions, and training.max_tokens is {max_tokens}: "
                "lower it"
            )
        theirs = prepared_tokenizer(self.teacher, 1)
        if theirs.get_vocab() != tokenizer.get_vocab() or theirs(_PROBE)["input_ids"] != tokenizer(_PROBE)["input_ids"]:
            raise ModelError(
                f"the teacher {self.teacher.ref!r} reads other tokens than {model.ref!r}: annotate the corpus with it "
                "first (`classify` with `all_scores: true`), and name that annotation with `scores:`"
            )

    @cached_property
    def teacher(self) -> PinnedModel:
        """The teacher that runs beside the student, on this node."""
        return on_this_node(self._teacher_of(self.model))

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a row; a row needs the teacher's scores, or a teacher that runs, and may lack a label."""
        pieces = self.pieces(rows)
        failures = dict(pieces.failures)
        for row, label in enumerate(rows["label"]):
            failure = (None if label is None else self._fault(label)) or self._taught_fault(rows, row)
            if failure is not None:
                failures.setdefault(row, failure)
        good = [row for row in range(len(rows["label"])) if row not in failures]
        columns = {"target": pa.array([rows["label"][row] for row in good], self._target_type())}
        if self.config.scores is not None:
            labels, scores = ([rows[f"taught_{what}"][row] for row in good] for what in ("labels", "scores"))
            columns["taught_labels"] = pa.array(labels, pa.list_(pa.string()))
            columns["taught_scores"] = pa.array(scores, pa.list_(pa.float32()))
        return self.encoded(pieces, failures, columns)

    def _taught_fault(self, rows: Mapping[str, Sequence[Any]], row: int) -> Failure | None:
        """Why the teacher's columns say nothing of a row, or None."""
        if self.config.scores is None:
            return None
        names = [f"{self.config.scores}_{what}" for what in ("labels", "scores")]
        labels, scores = rows["taught_labels"][row], rows["taught_scores"][row]
        for name, found in zip(names, (labels, scores), strict=True):
            if found is None or any(each is None for each in found):
                return Failure(Reason.NULL_LABEL, f"'{name}' is null, or holds a null")
        if len(labels) != len(scores) or len(set(labels)) != len(labels) or not labels:
            return Failure(
                Reason.BAD_LABEL,
                f"'{names[0]}' and '{names[1]}' are no labels with a score each: {len(labels)} and "
                f"{len(scores)} of them",
            )
        least_one = self.problem == "single_label_classification"
        if not all(0 <= score <= 1.0001 for score in scores) or (least_one and not any(scores)):
            return Failure(Reason.BAD_LABEL, f"'{names[1]}' holds {scores[:4]}, which are no probabilities")
        return None

    def counted(self, examples: pa.Table) -> Learned:
        """Rows of each right label, and of each label that the teacher says."""
        known = examples.filter(examples["target"].is_valid())
        counts = {f"{_RIGHT}{label}": rows for label, rows in super().counted(known).items()}
        if self.config.scores is not None:
            taught = pc.list_flatten(examples["taught_labels"]).value_counts().to_pylist()
            counts |= {f"{_TAUGHT}{each['values']}": float(each["counts"]) for each in taught}
        return counts

    def learned(self, counted: Mapping[str, float]) -> Learned:
        """The teacher's labels, in its order (of columns: that of the alphabet), with the rows that have each."""
        if self.config.scores is None:
            labels = class_names(self.teacher)
        else:
            labels = sorted(name.removeprefix(_TAUGHT) for name in counted if name.startswith(_TAUGHT))
        right = {name.removeprefix(_RIGHT): rows for name, rows in counted.items() if name.startswith(_RIGHT)}
        if len(labels) < 2:
            raise CorpusError(f"the teacher has {len(labels)} label ({', '.join(labels)}); at least 2 are needed")
        learned = {"labels": labels, "counts": [int(right.get(label, 0)) for label in labels]}
        self.check_known(learned, counted, "training")
        rows = right.get("", sum(right.values()))
        return learned | {"rows": int(rows)}

    def check_known(self, learned: Learned, counted: Mapping[str, float], subset: str) -> None:
        """Every right label is one of the teacher's."""
        right = {name.removeprefix(_RIGHT): rows for name, rows in counted.items() if name.startswith(_RIGHT)}
        unknown = sorted(label for label in right if label and label not in set(learned["labels"]))
        if unknown:
            rows = int(sum(right[label] for label in unknown))
            raise CorpusError(
                f"the teacher says none of {len(unknown)} label{'' if len(unknown) == 1 else 's'} of "
                f"'{self.data.label}' in {rows} {subset} rows: {', '.join(unknown[:LABELS_TOLD])}"
                f"{' …' if len(unknown) > LABELS_TOLD else ''}; leave them out with data.filter"
            )

    # ------------------------------------------------------------------------------------------------------ training

    def build(self, learned: Learned, training: "TrainingSettings") -> "nn.Module":
        """The student: the job's model, made as small as the options say."""
        from pipeline.training import shrink
        from pipeline.training.loading import freeze, head_of, with_lora

        whole = training.model_copy(update={"freeze": [], "lora": None})  # parts are named as the student has them
        module = super().build(learned, whole)
        if self.config.layers is not None:
            shrink.keep_layers(module, self.config.layers)
        if self.config.neurons is not None:
            shrink.keep_neurons(module, self.config.neurons)
        if self.config.sparsity is not None:
            if training.sharded or training.lora is not None:
                raise JobError("objective.sparsity needs whole weights that are trained: leave sharded and lora out")
            shrink.prune_magnitude(module, self.config.sparsity)
        freeze(module, training.freeze)
        return module if training.lora is None else with_lora(module, training.lora, head_of(module))

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids and mask; `target` and `known_B`, which rows have one; `taught_BD`: the teacher's logits from columns."""
        import torch

        known = examples["target"].is_valid()
        filler = pa.scalar(learned["labels"][0] if self.problem == "single_label_classification" else [])
        target = pc.if_else(known, examples["target"], filler.cast(examples["target"].type))
        filled = examples.set_column(examples.column_names.index("target"), "target", target)
        found = self.tensors(examples) | {
            "target": torch.from_numpy(self._targets(filled, learned)),
            "known_B": torch.from_numpy(known.to_numpy().astype(np.bool_)),
        }
        if self.config.scores is not None:
            found["taught_BD"] = torch.from_numpy(self._taught(examples, learned))
        return found

    def _taught(self, examples: pa.Table, learned: Learned) -> npt.NDArray[np.float32]:
        """The logits that the teacher's scores come from: of one label of several up to a constant, which cancels out.

        A label that it does not say has the probability 0.
        """
        lists, scores = (examples[f"taught_{what}"].combine_chunks() for what in ("labels", "scores"))
        rows = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
        places = pc.index_in(lists.flatten(), pa.array(learned["labels"], pa.string()))
        kept = places.is_valid().to_numpy(zero_copy_only=False)
        shares_BD = np.zeros((len(lists), len(learned["labels"])), np.float32)
        shares_BD[rows[kept], places.drop_null().to_numpy()] = scores.flatten().to_numpy(zero_copy_only=False)[kept]
        if self.problem == "multi_label_classification":
            shares_BD = shares_BD.clip(_LEAST, 1 - _LEAST)
            logits_BD: npt.NDArray[np.float32] = np.log(shares_BD / (1 - shares_BD))
            return logits_BD
        with np.errstate(divide="ignore"):
            return np.log(shares_BD)

    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":
        """Summed over the rows: alpha of the teacher's part and the rest of the right label's; without one, all of it.

        The teacher's part is multiplied by the temperature squared, as its gradients are divided by that.
        """
        inputs = {name: batch[name] for name in _MODEL_INPUTS if name in batch}
        logits_BD: torch.Tensor = model(**inputs).logits.float()
        return self._distilled(logits_BD, self._teachers(model, batch, inputs), batch, learned)

    def _distilled(
        self,
        logits_BD: "torch.Tensor",
        taught_BD: "torch.Tensor",
        batch: "dict[str, torch.Tensor]",
        learned: Learned,
    ) -> "torch.Tensor":
        import torch
        import torch.nn.functional as functional

        heat, alpha, known_B = self.config.temperature, self.config.alpha, batch["known_B"]
        if self.problem == "single_label_classification":
            soft_BD = functional.kl_div(
                (logits_BD / heat).log_softmax(1), (taught_BD / heat).softmax(1), reduction="none"
            )
            soft_B = soft_BD.sum(1) * heat**2
        else:
            wanted_BD = (taught_BD / heat).sigmoid()
            soft_BD = functional.binary_cross_entropy_with_logits(logits_BD / heat, wanted_BD, reduction="none")
            soft_B = soft_BD.mean(1) * heat**2
        right = self._loss(logits_BD[known_B], batch["target"][known_B], learned)
        total: torch.Tensor = (torch.where(known_B, alpha, 1.0) * soft_B).sum() + (1 - alpha) * right
        return total

    def _teachers(
        self, model: "nn.Module", batch: "dict[str, torch.Tensor]", inputs: "dict[str, torch.Tensor]"
    ) -> "torch.Tensor":
        """taught_BD: the teacher's logits, in float32 and without gradients."""
        import torch

        if self.config.scores is not None:
            return batch["taught_BD"]
        like = next(model.parameters())
        with torch.no_grad():
            logits_BD: torch.Tensor = self._teaching(like.device, like.dtype)(**inputs).logits
        return logits_BD.float()

    def _teaching(self, device: "torch.device", dtype: "torch.dtype") -> "nn.Module":
        """The teacher in memory, where and as the student is."""
        if self._module is None:
            import torch

            from pipeline.models.attention import use_plain_attention
            from pipeline.models.loading import load

            self._module = load(self.teacher, self.needs, "float32", "cpu", torch.get_num_threads(), 1).module
            assert self._module is not None
            if device.type == "cpu":
                use_plain_attention(self._module)
        return self._module.to(device=device, dtype=dtype)

    def judge(
        self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """What was wanted and what was said; where no label is known, the teacher's is wanted."""
        import torch

        inputs = {name: batch[name] for name in _MODEL_INPUTS if name in batch}
        logits_BD = model(**inputs).logits.float()
        taught_BD = self._teachers(model, batch, inputs)
        known_B, target = batch["known_B"], batch["target"]
        if self.problem == "single_label_classification":
            kept = torch.stack([torch.where(known_B, target, taught_BD.argmax(1)), logits_BD.argmax(1)], 1)
        else:
            said_BD, theirs_BD = (each.sigmoid() >= self.config.threshold for each in (logits_BD, taught_BD))
            kept = torch.cat([torch.where(known_B[:, None], target.bool(), theirs_BD), said_BD], 1)
        return self._distilled(logits_BD, taught_BD, batch, learned), kept.cpu().numpy()

    # ------------------------------------------------------------------------------------------------------ promoting

    def larger(self, model: PinnedModel) -> PinnedModel | None:
        """The teacher that runs beside the student."""
        return None if self.config.scores is not None else self._teacher_of(model)

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:
        """Those of classify, where a training row has a label."""
        return super().baselines(learned, gold, train) if learned["rows"] else {}
