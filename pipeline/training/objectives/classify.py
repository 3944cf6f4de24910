"""A classification head: one label of several, any number of labels, or a value.

objective: classify                      data: {text: description, label: section, …}
a string column      -> one label of several (softmax)
a list of strings    -> any number of labels (sigmoid)
a number             -> a value (regression, squared error)
objective: {name: classify, class_weights: sqrt}
"""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipeline.errors import CorpusError
from pipeline.metrics import baselines
from pipeline.quarantine import Failure, Reason
from pipeline.tasks.base import Input, TextInput
from pipeline.training.objectives.base import (
    Encoded,
    Learned,
    Objective,
    ObjectiveSettings,
    Prediction,
    needs_label,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.examples import Examples

Problem = Literal["single_label_classification", "multi_label_classification", "regression"]

LABELS_TOLD = 20


class Classify(Objective):
    """Cross entropy of labels, of each label by itself, or squared error."""

    needs = "AutoModelForSequenceClassification"
    figures: ClassVar[Mapping[str, bool]] = {"macro_f1": True, "accuracy": True}

    class Config(ObjectiveSettings):
        """Which labels weigh more."""

        class_weights: Literal["balanced", "sqrt"] | dict[str, float] | None = None
        """How much a label's rows weigh: balanced (all labels the same together), sqrt (by the square root of that),
        or a number for each label (1 where none is said). Default: every row the same."""

        label_smoothing: float = Field(default=0.0, ge=0, lt=1)
        """Share of the target that is spread over all labels (Szegedy et al. 2016); one label of several only."""

        threshold: float = Field(default=0.5, gt=0, lt=1)
        """Several labels: the least score of one that is said, in the evaluation."""

        min_labels: int = Field(default=0, ge=0)
        """Several labels: rows with fewer are left out. 1 where an empty list means that nobody has looked yet."""

    def __init__(self, config: ObjectiveSettings, data: Any) -> None:
        """Raises JobError without a label column."""
        super().__init__(config, data)
        needs_label("classify", data, "a column of strings, lists of strings or numbers")

    def inputs(self) -> Mapping[str, Input]:
        """The text, the second one of a pair, and the label."""
        found = dict(super().inputs())
        if self.data.text_pair is not None:
            found["text_pair"] = TextInput(self.data.text_pair, may_be_words=True)
        return found

    def check_label(self, type_: pa.DataType) -> None:
        """Strings, lists of strings, or numbers."""
        problem_of(type_, str(self.data.label))
        self.type = type_

    @property
    def problem(self) -> Problem:
        """What the label column makes of it."""
        return problem_of(self.type, str(self.data.label))

    # ------------------------------------------------------------------------------------------------------ encoding

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a row; a null or empty label, a value that is not finite or too few labels leave the row out."""
        pieces = self.pieces(rows)
        failures = dict(pieces.failures)
        for row, label in enumerate(rows["label"]):
            if (failure := self._fault(label)) is not None:
                failures.setdefault(row, failure)
        targets = [self._target(label) for row, label in enumerate(rows["label"]) if row not in failures]
        return self.encoded(pieces, failures, {"target": pa.array(targets, self._target_type())})

    def _fault(self, label: Any) -> Failure | None:
        if label is None:
            return Failure(Reason.NULL_LABEL, f"the label '{self.data.label}' is null")
        if self.problem == "regression" and not np.isfinite(float(label)):
            return Failure(Reason.BAD_LABEL, f"the label '{self.data.label}' is {label}, no finite number")
        if self.problem == "multi_label_classification" and any(each is None for each in label):
            return Failure(Reason.NULL_LABEL, f"the label '{self.data.label}' holds a null among its labels")
        if label == "" or (self.problem == "multi_label_classification" and "" in label):
            return Failure(Reason.BAD_LABEL, f"a label of '{self.data.label}' is the empty text")
        if self.problem == "multi_label_classification" and len(label) < self.config.min_labels:
            least = self.config.min_labels
            return Failure(Reason.TOO_FEW_LABELS, f"'{self.data.label}' holds {len(label)}, and min_labels is {least}")
        return None

    def _target(self, label: Any) -> Any:
        return float(label) if self.problem == "regression" else label

    def _target_type(self) -> pa.DataType:
        return {
            "single_label_classification": pa.string(),
            "multi_label_classification": pa.list_(pa.string()),
            "regression": pa.float64(),
        }[self.problem]

    def counted(self, examples: pa.Table) -> Learned:
        """Rows of each label; of a regression, what mean and spread need."""
        target = examples["target"]
        if self.problem == "regression":
            values = target.to_numpy()
            return {"rows": float(len(values)), "sum": float(values.sum()), "squares": float((values**2).sum())}
        if self.problem == "multi_label_classification":
            target = pc.list_flatten(target)
        counts = {each["values"]: float(each["counts"]) for each in target.value_counts().to_pylist()}
        return counts | {"": float(len(examples))} if self.problem == "multi_label_classification" else counts

    def learned(self, counted: Mapping[str, float]) -> Learned:
        """The labels in the order of the alphabet, with the rows of each."""
        if self.problem == "regression":
            return {"mean": counted["sum"] / counted["rows"]} if counted.get("rows") else {}
        labels = sorted(label for label in counted if label)
        least = 1 if self.problem == "multi_label_classification" else 2
        if len(labels) < least:
            raise CorpusError(
                f"the training rows have {len(labels)} label{'' if len(labels) == 1 else 's'} in '{self.data.label}' "
                f"({', '.join(labels)}); at least {least} are needed"
            )
        rows = counted.get("", sum(counted[label] for label in labels))
        return {"labels": labels, "counts": [int(counted[label]) for label in labels], "rows": int(rows)}

    def check_known(self, learned: Learned, counted: Mapping[str, float], subset: str) -> None:
        """Every label of the validation and test rows stands in a training row."""
        unseen = sorted(label for label in counted if label and label not in set(learned.get("labels", [])))
        if unseen and self.problem != "regression":
            rows = int(sum(counted[label] for label in unseen))
            raise CorpusError(
                f"{len(unseen)} label{'' if len(unseen) == 1 else 's'} of '{self.data.label}' in {rows} {subset} rows "
                f"{'is' if len(unseen) == 1 else 'are'} in no training row: {', '.join(unseen[:LABELS_TOLD])}"
                f"{' …' if len(unseen) > LABELS_TOLD else ''}; leave them out "
                "(data.unseen_labels: leave_out), or split otherwise"
            )

    # ------------------------------------------------------------------------------------------------------ training

    def model_options(self, learned: Learned) -> dict[str, Any]:
        """The labels, by number, and the kind of problem."""
        if self.problem == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        labels = learned["labels"]
        return {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: at for at, label in enumerate(labels)},
            "problem_type": self.problem,
        }

    def begin(self, learned: Learned, module: "nn.Module", new: Collection[str]) -> None:
        """A new head begins with what the training rows say before a text is read, as its bias.

        Of hundreds of labels that a few rows have each, a head that begins at one half pushes all scores down first,
        through whatever serves that, and the body's vectors may become one and the same (Lin et al. 2017, section 3.3).
        """
        import torch

        first_D = self._first(learned)
        biases = [
            each
            for name, each in module.named_parameters()
            if name in new and name.endswith("bias") and tuple(each.shape) == first_D.shape
        ]
        if biases:  # a head's last layer comes last
            with torch.no_grad():
                biases[-1].copy_(torch.from_numpy(first_D))

    def _first(self, learned: Learned) -> npt.NDArray[Any]:
        """What a model says that knows no text: the mean, or of each label the (log) odds, as the weights have them."""
        if self.problem == "regression":
            return np.array([learned.get("mean", 0.0)])
        counts_D = np.array(learned["counts"], np.float64) + 0.5
        if self.problem == "multi_label_classification":
            odds_D = counts_D / np.maximum(learned["rows"] + 1 - counts_D, 0.5)
        else:
            weights_D = self._weights_of(learned)
            odds_D = counts_D if weights_D is None else counts_D * weights_D
            odds_D = odds_D / odds_D.sum()
        first_D: npt.NDArray[np.float64] = np.log(np.maximum(odds_D, 1e-6))
        return first_D

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":  # noqa: ARG002
        """Ids, mask, and targets: indices_B, or 0 and 1 for each label, or values_B."""
        import torch

        tensors = self.tensors(examples)
        return tensors | {"target": torch.from_numpy(self._targets(examples, learned))}

    def _targets(self, examples: pa.Table, learned: Learned) -> npt.NDArray[Any]:
        target = examples["target"]
        if self.problem == "regression":
            return np.asarray(target.to_numpy(), np.float32)
        labels = pa.array(learned["labels"], pa.string())
        if self.problem == "single_label_classification":
            return np.asarray(pc.index_in(target, labels).to_numpy(), np.int64)
        lists = target.combine_chunks()
        wanted_BD = np.zeros((len(lists), len(labels)), np.float32)
        rows = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
        wanted_BD[rows, pc.index_in(lists.flatten(), labels).to_numpy(zero_copy_only=False)] = 1
        return wanted_BD

    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":
        """Summed over the rows."""
        return self._loss(_logits(model, batch), batch["target"], learned)

    def _loss(self, logits_BD: "torch.Tensor", target: "torch.Tensor", learned: Learned) -> "torch.Tensor":
        import torch.nn.functional as functional

        if self.problem == "regression":
            return functional.mse_loss(logits_BD[:, 0], target, reduction="sum")
        if self.problem == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(logits_BD, target, reduction="sum") / logits_BD.shape[1]
        weights = self._weights(learned, logits_BD)
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(logits_BD, target, weights, reduction="sum", label_smoothing=smoothing)

    def _weights(self, learned: Learned, like: "torch.Tensor") -> "torch.Tensor | None":
        weights_D = self._weights_of(learned)
        return None if weights_D is None else like.new_tensor(weights_D)

    def _weights_of(self, learned: Learned) -> npt.NDArray[np.float64] | None:
        """Of each label; their mean over the training rows is 1, so that the rate means the same."""
        asked = self.config.class_weights
        if asked is None or not sum(learned["counts"]):
            return None
        counts_D = np.array(learned["counts"], np.float64)
        if isinstance(asked, dict):
            weights_D = np.array([asked.get(label, 1.0) for label in learned["labels"]])
        else:
            weights_D = counts_D ** (-1.0 if asked == "balanced" else -0.5)
        weights_D /= (weights_D * counts_D).sum() / counts_D.sum()
        return weights_D

    def judge(
        self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """What was wanted and what was said, for each row; of several labels, each as 0 or 1."""
        import torch

        logits_BD = _logits(model, batch)
        loss = self._loss(logits_BD, batch["target"], learned)
        if self.problem == "single_label_classification":
            kept = torch.stack([batch["target"], logits_BD.argmax(1)], 1)
        elif self.problem == "multi_label_classification":
            kept = torch.cat([batch["target"].bool(), logits_BD.sigmoid() >= self.config.threshold], 1)
        else:
            kept = torch.stack([batch["target"], logits_BD[:, 0]], 1)
        return loss, kept.cpu().numpy()

    def validation_figures(self) -> Mapping[str, bool]:
        """Of values, the mean absolute error."""
        return {"mae": False} if self.problem == "regression" else self.figures

    def score(self, judged_EK: npt.NDArray[Any], learned: Learned) -> dict[str, float]:
        """Accuracy and macro F1 (over the labels that a row wants or gets); of values, the mean absolute error."""
        if self.problem == "regression":
            return {"mae": float(np.abs(judged_EK[:, 0] - judged_EK[:, 1]).mean())}
        if self.problem == "single_label_classification":
            places = np.arange(len(learned["labels"]))
            wanted_ED, said_ED = judged_EK[:, :1] == places, judged_EK[:, 1:] == places
        else:
            wanted_ED, said_ED = np.split(judged_EK.astype(bool), 2, axis=1)
        both_D, any_D = (wanted_ED & said_ED).sum(0), wanted_ED.sum(0) + said_ED.sum(0)
        f1_D = 2 * both_D[any_D > 0] / any_D[any_D > 0]
        right_E = (wanted_ED == said_ED).all(1)
        return {"macro_f1": float(f1_D.mean()) if len(f1_D) else 0.0, "accuracy": float(right_E.mean())}

    # ------------------------------------------------------------------------------------------------------ promoting

    def prediction(self, name: str) -> Prediction:
        """`classify`, as it stands."""
        annotation: dict[str, Any] = {"name": name, "task": "classify", "text": self.data.text}
        if self.data.text_pair is not None:
            annotation["text_pair"] = self.data.text_pair
        gold = str(self.data.label)
        if self.problem == "regression":
            return Prediction([annotation], "numbers", {"gold": gold, "predicted": f"{name}_score"})
        if self.problem == "single_label_classification":
            columns = {"gold": gold, "predicted": f"{name}_label", "score": f"{name}_score"}
            return Prediction([annotation], "labels", columns)
        annotation |= {"all_scores": True}
        columns = {"gold": gold, "labels": f"{name}_labels", "scores": f"{name}_scores"}
        return Prediction([annotation], "multilabels", columns)

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:  # noqa: ARG002
        """What the training rows say without looking at the text: the commonest label (or labels), or the mean."""
        rows = len(gold)
        if self.problem == "regression":
            return {"mean": pa.table({"predicted": baselines.mean(learned["mean"], rows)})}
        counts = dict(zip(learned["labels"], learned["counts"], strict=True))
        if self.problem == "single_label_classification":
            return {"majority": pa.table({"predicted": baselines.majority(counts, rows)})}
        return {"commonest": pa.table({"predicted": baselines.commonest(counts, learned["rows"], rows)})}


def problem_of(type_: pa.DataType, label: str) -> Problem:
    """What a label column's type makes of a classification; CorpusError for one that nothing can be made of."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    if _is_text(type_):
        return "single_label_classification"
    if (pa.types.is_list(type_) or pa.types.is_large_list(type_)) and _is_text(type_.value_type):
        return "multi_label_classification"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "regression"
    raise CorpusError(
        f"data.label '{label}' is {type_}; classify needs strings (one label), lists of strings (several) or numbers"
    )


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _logits(model: "nn.Module", batch: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """logits_BD in float32."""
    inputs = {name: values for name, values in batch.items() if name != "target"}
    logits_BD: torch.Tensor = model(**inputs).logits
    return logits_BD.float()
