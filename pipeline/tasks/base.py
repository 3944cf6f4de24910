"""The seam of every task: texts in, columns out. A new task is one new file beside this one.

    class Shout(Task):
        \"\"\"Upper case, to show the seam.\"\"\"

        class Config(AnnotationSettings):
            \"\"\"No options of its own.\"\"\"

        def fields(self) -> list[pa.Field]:
            return [pa.field("text", pa.string())]             # the column is `<name>_text`

        def annotate(self, texts: Texts) -> Annotation:
            return Annotation.of({"text": pa.array([text.upper() for text in texts.values])}, rows=len(texts.values))

Where a file with a single `Task` subclass stands, in this folder or a user's own, `pipeline.tasks.find` finds it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pipeline.models.engines import Engine
from pipeline.models.reference import ModelSettings, PinnedModel
from pipeline.quarantine import Failure
from pipeline.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from pipeline.models.loading import LoadedModel

OWN_MODULE = "own module"
"""What a task `needs` that builds its module itself."""

Built = TypeVar("Built")

INT8_AGREEMENT = 0.99

DType = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def _reference(value: object) -> object:
    """A bare reference stands for `{ref: …}`."""
    return {"ref": value} if isinstance(value, str) else value


def _pool_name(pool: str | None) -> str | None:
    if pool is not None and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", pool) is None:
        raise PydanticCustomError(
            "pool_no_name",
            "{pool} is no name of a pool: a letter, then letters, digits, _ and -, as in large",
            {"pool": repr(pool)},
        )
    return pool


def _column_prefix(name: str) -> str:
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) is None:
        raise PydanticCustomError(
            "name_no_prefix",
            "{name} cannot begin the names of columns: a letter, then letters, digits and _, as in topic_2",
            {"name": repr(name)},
        )
    return name


class AnnotationSettings(Settings):
    """What every annotation has; a task's own `Config` adds to it."""

    name: Annotated[str, Field(max_length=100), AfterValidator(_column_prefix)]
    """Prefix of the columns that the annotation adds: letters, digits and _, at most 100 characters."""

    task: str
    """Name of a task, or the path of a `.py` file with one (needs `allow_code: true`)."""

    where: str | None = Field(default=None, min_length=1)
    """SQL predicate over the corpus's columns and those of earlier annotations; rows that do not match hold nulls."""

    text: str = Field(min_length=1)
    """A column (also one that an earlier annotation adds), a dotted path to a nested field, or a template with {column}
    in it."""

    model: Annotated[ModelSettings | None, BeforeValidator(_reference)] = None
    """The pinned model: a reference, or {ref, sha256, allow_remote_code}."""

    pool: Annotated[str | None, Field(max_length=100), AfterValidator(_pool_name)] = None
    """Annotations of one pool share actors, which hold the models of these alone; `cluster.pools` says how many and how
    large. Default: the job's own actors."""

    dtype: DType = "auto"
    """Number format of the weights and the arithmetic; auto: bfloat16 where the hardware has it; int8: that of an
    encoder's linear layers on CPUs, quantised by rows of the corpus."""

    int8_agreement: float = Field(default=INT8_AGREEMENT, gt=0, le=1)
    """With `dtype: int8`, how far a sample of the rows must agree with float32, else nothing runs: the cosine that 99%
    of the vectors reach, or the share of rows with the same labels, entities or words; up to 1."""

    engine: Engine = "auto"
    """What computes the model: torch, or openvino (encoders on CPUs, `pip install 'corpusmill[openvino]'`); auto: the
    faster one of a trial before a large run, else torch."""

    max_tokens: int | None = Field(default=None, ge=3, le=1_000_000)
    """Tokens of one window, special tokens included; default: the model's own."""

    max_chars: int = Field(default=10_000_000, ge=1)
    """Characters; a longer text is quarantined."""

    gold: str | None = Field(default=None, min_length=1)
    """A column or dotted path that holds what is right: after the run the annotation is measured against it."""

    errors: Literal["quarantine", "keep"] = "quarantine"
    """What happens to a row that cannot be annotated: set aside, or kept with its `<name>_error`."""


@dataclass(frozen=True, slots=True)
class TextInput:
    """What a task reads of a row as text: a column, a dotted path, or a template."""

    expression: str
    may_be_words: bool = False  # with a blank and without braces it is no column, but the same words for every row


@dataclass(frozen=True, slots=True)
class ColumnInput:
    """What a task reads of a row as it is: the Python value of a column or of a nested field."""

    path: str


Input = TextInput | ColumnInput


@dataclass(slots=True)
class Texts:
    """What one annotation reads of one unit: R texts, none of them twice unless the job says `repeats: {once: false}`.
    What is said of a text may depend on nothing else: it stands for all rows that have it, and may be kept for others.

    `values` is the first of the task's inputs, `inputs` are all by name. `shared` lets annotations over the same texts
    reuse what another computed (tokens, forward passes): ask with `once(key, compute)`. `offsets` tells that some
    annotation wants to know where tokens stand. `running`, where it is set, is told the indices of the texts that are
    about to go through a model: the crash journal listens. `ahead` are tokens that the process which read the
    texts has found, by annotation and input; there they are left in `tokenised`.
    """

    values: list[str]
    inputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    shared: dict[Hashable, Any] = field(default_factory=dict)
    offsets: bool = False
    running: Callable[[Sequence[int]], None] | None = None
    ahead: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tokenised: dict[str, Sequence[Any]] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> "Texts":
        """The texts [start, stop), which tell the journal their own places and share nothing."""
        running = self.running
        return Texts(
            self.values[start:stop],
            {name: values[start:stop] for name, values in self.inputs.items()},
            offsets=self.offsets,
            running=None if running is None else lambda indices: running([start + index for index in indices]),
        )

    def once(self, key: Hashable, compute: Callable[[], Built]) -> Built:
        """The value of `compute()`, computed at most once for this key."""
        if key not in self.shared:
            self.shared[key] = compute()
        return self.shared[key]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a task says of R texts: each column has R rows, in the order of the texts."""

    columns: Mapping[str, pa.Array]  # by the field's name without prefix; a failed row holds null
    tokens_R: npt.NDArray[np.int32]  # real tokens that the model saw of each text, special ones included
    truncated_R: npt.NDArray[np.bool_]
    failures: Mapping[int, Failure]  # by index in the texts
    forward_tokens: int = 0  # real tokens that went through the model now; 0 where another annotation's were reused
    padding_tokens: int = 0
    model_seconds: float = 0.0  # in the model; 0 where another annotation's pass was reused

    @classmethod
    def of(cls, columns: Mapping[str, pa.Array], rows: int) -> "Annotation":
        """An annotation that no model made: no tokens, nothing cut, nothing failed."""
        return cls(columns, np.zeros(rows, np.int32), np.zeros(rows, np.bool_), {})


@dataclass(frozen=True, slots=True)
class Comparison:
    """How an annotation is measured against gold: a kind of `pipeline.metrics`, and what it reads.

    `columns` are the kind's names for the task's own fields: `{"predicted": "label", "score": "score"}`.
    """

    kind: str
    columns: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One NLP task of one annotation. Made on the driver (to know its columns) and in every actor."""

    Config: ClassVar[type[AnnotationSettings]] = AnnotationSettings

    needs: str | None = None
    """The transformers auto class of the model that it needs (`AutoModel`, …), or OWN_MODULE; None: the task needs no
    model. Where options or the model decide, an instance says so after `__init__`; the class says whether it needs one.
    """

    auto_dtype: str | None = None
    """What `dtype: auto` means for this task; None: the fastest that the device computes in."""

    only_calls: bool = False
    """Whether it asks nothing of its model but to be called with a micro-batch's inputs, as other engines can be."""

    reads_offsets: bool = False
    """Whether it asks where tokens stand in their text."""

    def __init__(self, config: AnnotationSettings, model: PinnedModel | None) -> None:
        """Keep the settings and what is known of the model without its weights.

        Raises ModelError where the pinned model cannot do this task.
        """
        self.config: Any = config
        self.model = model

    def inputs(self) -> Mapping[str, Input]:
        """What it reads of each row, by names of its own; the first is what `Texts.values` holds."""
        return {"text": TextInput(self.config.text)}

    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """The columns that it adds, named without the annotation's prefix (`label`, `score` …)."""

    def compared(self) -> Comparison | None:
        """How what it says is measured against a column of gold; None: there is no metric for it."""
        return None

    def build(self) -> "nn.Module | None":
        """An empty module of its own, into which the model folder's weights are loaded; None: what `needs` names.

        Called in each actor before `start`; `self.model.folder` and `self.model.config` are known.
        """
        return None

    def start(self, loaded: "LoadedModel") -> None:
        """Called once in each actor with the loaded model, before the first texts."""

    def take_tokenizer(self, tokenizer: Any) -> None:
        """Called once with the model's tokenizer: by `start`, or in a process that tokenises ahead and has no model."""

    def tokenise(self, texts: Texts) -> None:
        """Find the tokens that `annotate` will ask for, into `texts.tokenised`; a task that cannot say leaves it."""

    @abstractmethod
    def annotate(self, texts: Texts) -> Annotation:
        """Annotate the texts of one unit. A text that fails is told in `failures`; it never raises for one text."""
