"""The seam of every objective: rows become examples, examples a batch, a batch a loss. A new one is one new file.

    class Classify(Objective):
        needs = "AutoModelForSequenceClassification"

        def encode(self, rows): …          # texts and labels -> token ids and targets, once, on any CPU
        def learned(self, targets_E): …    # what the training rows decide: the labels
        def loss(self, model, batch): …    # a number that is summed over the rows

An example is one row of an Arrow table with `input_ids` (list<int32>), `weight` (float32: how much of the step's loss
is its own; 1 a row, or its target tokens) and whatever else the objective puts there. Examples are made before anybody
knows the labels of the whole corpus, so they hold targets as the corpus has them.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.corpus.column import find_dotted
from pipeline.errors import CorpusError, JobError
from pipeline.models.reference import PinnedModel
from pipeline.quarantine import Failure
from pipeline.settings import Settings
from pipeline.tasks.base import ColumnInput, Input, TextInput
from pipeline.text.pieces import PieceMaker, Pieces
from pipeline.text.tokens import TextTokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.examples import Examples
    from pipeline.training.job import DataSettings, EvaluationData, TrainingSettings

Learned = Mapping[str, Any]
"""What the training rows decide, as JSON can hold it: `{"labels": ["games", "web"], "counts": [812, 90]}`."""


class ObjectiveSettings(Settings):
    """What every objective has; its own `Config` adds to it."""

    name: str
    """Name of an objective, or the path of a `.py` file with one (needs `allow_code: true`)."""

    def portable(self) -> dict[str, Any]:
        """For a process with another current folder: a user's own file is named by its absolute path."""
        name = str(Path(self.name).expanduser().resolve()) if self.name.endswith(".py") else self.name
        return self.model_dump(mode="json") | {"name": name}


@dataclass(frozen=True, slots=True)
class Encoded:
    """The examples of R rows; with packing there may be more or fewer of them than rows."""

    examples: pa.Table
    failures: Mapping[int, Failure] = field(default_factory=dict)  # by row: left out, with the reason
    truncated_rows: int = 0
    tokens: int = 0  # real ones


@dataclass(frozen=True, slots=True)
class Prediction:
    """How an annotate job says what a trained model should: its annotations, and which columns are compared.

    `columns` are the kind's names for them (see `pipeline.metrics`): `{"gold": "section", "label": "predicted_label"}`.
    """

    annotations: Sequence[Mapping[str, Any]]  # as a job file has them, without `model`
    kind: str
    columns: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the kind: `{"unjudged_tokens": 2}`
    code: bool = False  # an annotation is a file of the user's own


class Objective(ABC):
    """What a model is trained for. Made on the driver, in every task that reads rows, and in every worker."""

    Config: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings

    needs: ClassVar[str]
    """The transformers auto class of the model, or `own module` for one that `build` makes."""

    asks_tokenizer: ClassVar[bool] = False
    """Whether `prediction` depends on the model's tokenizer, so that `start` comes before it."""

    whole_batch: ClassVar[bool] = False
    """Whether the rows of a worker's share of a step must be computed together: they are each other's negatives."""

    figures: ClassVar[Mapping[str, bool]] = {}
    """Figures of a validation beside `loss`, the main one first, and whether more of it is better."""

    def __init__(self, config: ObjectiveSettings, data: "DataSettings | EvaluationData") -> None:
        """Keep the settings. Raises JobError where the data section lacks what the objective needs."""
        self.config: Any = config
        self.data = data

    # ------------------------------------------------------------------------------------------------------- reading

    def inputs(self) -> Mapping[str, Input]:
        """What it reads of each row, by names of its own; `text` first."""
        found: dict[str, Input] = {"text": TextInput(self.data.text)}
        if self.data.label is not None:
            found["label"] = ColumnInput(self.data.label)
        return found

    def look_at(self, schema: pa.Schema) -> None:
        """Learn of which type the label is. Raises CorpusError: there is no such column, or nothing is made of it."""
        if isinstance(wanted := self.inputs().get("label"), ColumnInput):
            try:
                found = find_dotted(schema, wanted.path)
            except CorpusError as error:
                raise CorpusError(f"data.label: {error}") from error
            self.check_label(found.type)

    def check_label(self, type_: pa.DataType) -> None:
        """Raise CorpusError where the label column has a type that this objective can make nothing of."""

    def check_model(self, model: PinnedModel) -> None:
        """Raise ModelError for a model that this objective cannot train, told from its files without its weights."""

    # ------------------------------------------------------------------------------------------------------ encoding

    def start(self, tokenizer: Any, model: PinnedModel, max_tokens: int) -> None:
        """Called once in each process that encodes or trains; `max_tokens` is the window, special tokens included."""
        self.tokenizer = tokenizer
        self.model = model
        self.max_tokens = max_tokens
        self._texts = TextTokenizer(tokenizer)
        self._makers: dict[bool, PieceMaker] = {}

    def pieces(self, rows: Mapping[str, Sequence[Any]], first: str = "text", second: str = "text_pair") -> Pieces:
        """The texts of R rows (beside their second ones, where there are such) as one piece each, cut to the window.

        The same tokens as an annotate job with this tokenizer and window makes of them.
        """
        pairs = second in rows
        if pairs not in self._makers:
            self._makers[pairs] = PieceMaker(self._texts, self.max_tokens, pairs=pairs)
        maker = self._makers[pairs]
        if not pairs:
            return maker.pieces(rows[first])
        firsts_R, seconds_R = (list(self._texts.tokens(rows[name], maker.most)) for name in (first, second))
        return maker.pair(firsts_R, seconds_R, rows[first], rows[second])

    def encoded(
        self,
        pieces: Pieces,
        failures: Mapping[int, Failure],
        columns: Mapping[str, pa.Array],
        weights: npt.NDArray[np.float32] | None = None,
    ) -> Encoded:
        """One example for each row without a failure; `columns` and `weights` (1 each by default) have those alone."""
        keep = [piece for piece, row in enumerate(pieces.row_P.tolist()) if row not in failures]
        ids = [pieces.ids_P[piece] for piece in keep]
        made = {
            "input_ids": as_lists(ids),
            "weight": pa.array(np.ones(len(keep), np.float32) if weights is None else weights),
        }
        if pieces.types_P is not None:
            made["token_type_ids"] = as_lists([pieces.types_P[piece] for piece in keep])
        good_R = np.ones(len(pieces.windows_R), bool)
        good_R[list(failures)] = False
        return Encoded(
            pa.table(made | dict(columns)),
            failures,
            truncated_rows=int(pieces.truncated_R[good_R].sum()),
            tokens=sum(map(len, ids)),
        )

    def tensors(self, examples: pa.Table) -> "dict[str, torch.Tensor]":
        """What every model takes of B examples: ids, mask, and types where there are any; padded on the right."""
        import torch

        ids_BL = padded(examples["input_ids"], self.pad_id)
        batch = {"input_ids": ids_BL, "attention_mask": mask_of(examples["input_ids"], ids_BL.shape[1])}
        if "token_type_ids" in examples.column_names:
            batch["token_type_ids"] = padded(examples["token_type_ids"], 0)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    @property
    def pad_id(self) -> int:
        """What fills short rows."""
        stated = (self.model.config.get("pad_token_id"), self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(each) for each in stated if each is not None), 0)

    @abstractmethod
    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """Examples of R rows, whose inputs are good texts (and labels as the column has them). Never raises for one."""

    @property
    def rewrites_rows(self) -> bool:
        """Whether `judged_rows` changes anything."""
        return False

    def judged_rows(self, rows: pa.Table) -> pa.Table:
        """The test rows with what `prediction` reads and compares, where the corpus has it in another form."""
        return rows

    def counted(self, examples: pa.Table) -> Learned:  # noqa: ARG002 - a hook
        """What these examples tell of their targets, to be added up over the corpus: `{"games": 12, "web": 3}`."""
        return {}

    def learned(self, counted: Mapping[str, float]) -> Learned:  # noqa: ARG002 - a hook
        """What the sums over the training rows decide. Raises CorpusError: nothing can be learned from them."""
        return {}

    def check_known(self, learned: Learned, counted: Mapping[str, float], subset: str) -> None:
        """Raise CorpusError where a validation or test row asks for what no training row has, with the list."""

    # ------------------------------------------------------------------------------------------------------ training

    def build(self, learned: Learned, training: "TrainingSettings") -> "nn.Module":
        """The module to be trained, with the pinned model's weights, in float32.

        Raises ModelError: the model is of another kind.
        """
        from pipeline.training.loading import pretrained

        begin = partial(self.begin, learned)
        return pretrained(self.model, self.needs, self.model_options(learned), training, begin)

    def begin(self, learned: Learned, module: "nn.Module", new: Collection[str]) -> None:
        """Give weights that the pinned model does not have (by name) other first numbers than random ones."""

    def model_options(self, learned: Learned) -> dict[str, Any]:  # noqa: ARG002 - a hook
        """What `from_pretrained` is told beside the folder: the labels."""
        return {}

    @abstractmethod
    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> "dict[str, torch.Tensor]":
        """B examples as tensors, padded on the right; `random` is the step's own."""

    @abstractmethod
    def loss(self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned) -> "torch.Tensor":
        """The sum of the examples' losses: over the whole step it is divided by the sum of their weights."""

    def judge(
        self, model: "nn.Module", batch: "dict[str, torch.Tensor]", learned: Learned
    ) -> "tuple[torch.Tensor, npt.NDArray[Any]]":
        """The summed loss of a validation's micro-batch, and B rows of what `score` needs of each example."""
        loss = self.loss(model, batch, learned)
        return loss, np.zeros((0, 0))

    def validation_figures(self) -> Mapping[str, bool]:
        """The figures that `score` finds, the main one first, and whether more of each is better."""
        return self.figures

    def score(self, judged_EK: npt.NDArray[Any], learned: Learned) -> dict[str, float]:  # noqa: ARG002 - a hook
        """The `figures` of a validation, from what `judge` kept of every example."""
        return {}

    # ------------------------------------------------------------------------------------------------------ promoting

    def finish(self, model: "nn.Module", learned: Learned) -> "nn.Module":  # noqa: ARG002 - a hook
        """The module as it is saved: a chance to take apart what only the training needed."""
        return model

    def save(self, model: "nn.Module", folder: str) -> None:
        """Write the model's files: safetensors, config and tokenizer, as `from_pretrained` reads them."""
        from pipeline.training.loading import save

        save(model, self.tokenizer, folder, self.max_tokens)

    @abstractmethod
    def prediction(self, name: str) -> Prediction:
        """How an annotate job with the trained model answers, under annotations named after `name`."""

    def larger(self, model: PinnedModel) -> PinnedModel | None:  # noqa: ARG002 - a hook
        """What teaches the job's `model`, and is larger: what that costs in figures and gains in speed is told."""
        return None

    def baselines(self, learned: Learned, gold: pa.Table, train: "Examples") -> dict[str, pa.Table]:  # noqa: ARG002 - a hook
        """Tables in the prediction's columns, of methods that anybody would think of first: `{"majority": …}`.

        `gold` has the test rows' columns that the prediction compares with, and `text`; `train` is what was trained.
        """
        return {}


def needs_label(objective: str, data: "DataSettings | EvaluationData", what: str) -> str:
    """The label column; JobError where the job names none."""
    if data.label is None:
        raise JobError(f"data.label is missing: {objective} needs {what}")
    return data.label


def padded(ids: pa.Array | pa.ChunkedArray, fill: int, multiple: int = 1) -> npt.NDArray[np.int64]:
    """B lists of numbers as one array of B rows, filled on the right up to the longest; L a multiple of `multiple`."""
    lists = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    lengths_B = lists.value_lengths().to_numpy(zero_copy_only=False)
    longest = -(-max(1, int(lengths_B.max(initial=0))) // multiple) * multiple
    values_BL = np.full((len(lists), longest), fill, np.int64)
    values_BL[np.arange(longest) < lengths_B[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return values_BL


def as_lists(ids_E: Sequence[npt.NDArray[np.int32]]) -> pa.Array:
    """E lists of numbers as an Arrow array."""
    ends = np.cumsum([0, *map(len, ids_E)], dtype=np.int64)
    values = np.concatenate([*ids_E, np.zeros(0, np.int32)]).astype(np.int32)
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))


def mask_of(ids: pa.Array | pa.ChunkedArray, width: int) -> npt.NDArray[np.int64]:
    """1 where one of B lists has a number, 0 where `padded` filled up."""
    lists = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    lengths_B = lists.value_lengths().to_numpy(zero_copy_only=False)
    real_BL: npt.NDArray[np.int64] = (np.arange(width) < lengths_B[:, None]).astype(np.int64)
    return real_BL
