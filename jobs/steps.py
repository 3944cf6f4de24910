"""Several jobs in one file, one after the other: train, evaluate, label with the result.

    kind: steps
    steps:
      - {kind: finetune, objective: classify, …, output: {path: out/sections}}
      - {kind: annotate, annotations: [{task: classify, model: steps:0, …}], …, output: {path: out/labeled}}

All of them are checked before the first one runs. A step that fails, or whose model does not pass its gate, is the last
one, and the command ends with its exit code. The same command, given again, goes on: a step that is done is not done
again.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jobs import jobfile, kinds
from jobs.complaints import choice
from pipeline.errors import CorpusmillError, JobError
from pipeline.progress import Watcher
from pipeline.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

PROFILES = True
"""A run can tell where the time of its labeling steps went."""

_NAMED = re.compile(r"steps:([0-9]+)")
_NAMES_A_MODEL = {"model", "ref", "not_worse_than", "teacher"}
"""Keys whose value may be `steps:0`."""


class StepsFile(Settings):
    """A whole job file of kind `steps`."""

    kind: Literal["steps"]

    steps: list[dict[str, Any]] = Field(min_length=1)
    """Jobs as files of their own would have them, `kind` first; `model: steps:0` is what the first one trains."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the steps left, each as a job of its own leaves it; the last one decides the exit code."""

    done: Sequence[kinds.Outcome]
    names: Sequence[str]  # of all steps: `finetune -> out/sections`
    seconds: float

    @property
    def summary(self) -> Mapping[str, Any]:
        """What `--json` prints: the object of each step that ran."""
        return {
            "steps": [dict(each.summary) for each in self.done],
            "steps_total": len(self.names),
            "seconds": round(self.seconds, 3),
        }

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifests of the steps that ran."""
        return {"steps": [each.manifest for each in self.done]}

    @property
    def exit_code(self) -> int:
        """Of the last step that ran."""
        return self.done[-1].exit_code

    @property
    def warning(self) -> str | None:
        """Why the last one was the last."""
        if not self.exit_code:
            return None
        left = len(self.names) - len(self.done)
        after = f"; {left} step{'' if left == 1 else 's'} after it did not run" if left else ""
        return f"steps.{len(self.done) - 1}: {self.done[-1].warning}{after}"

    def shown(self, width: int) -> "list[RenderableType]":
        """What each step shows, below its name."""
        from rich.text import Text

        parts: list[RenderableType] = []
        for number, each in enumerate(self.done):
            parts += [Text(f"steps.{number}  {self.names[number]}", style="bold"), *each.shown(width)]
        return parts


def parse(document: Mapping[str, Any], source: str) -> StepsFile:
    """The checked steps, with the models that they name as folders.

    Raises JobError with all that is wrong with any of them.
    """
    job = jobfile.parse(document, StepsFile, source)
    steps, wrong = [], []
    models: list[str | None] = []  # that each step leaves
    outputs: list[str | None] = []
    for number, document_of_step in enumerate(job.steps):
        place = f"{source}: steps.{number}"
        model = output = None
        try:
            step = _resolved(document_of_step, place, models)
            checked: Any = _module(step, place).parse(step, place)
            output = checked.output.path
            model = f"{output.rstrip('/')}/model" if checked.kind == "finetune" else None
            steps.append(step)
        except JobError as error:
            wrong.append(str(error))
            if document_of_step.get("kind") == "finetune":
                model = "unknown"  # what is wrong with this step is no fault of one that names its model
        models.append(model)
        outputs.append(output)
    wrong += _same_outputs(outputs, source)
    if wrong:
        raise JobError("\n".join(wrong))
    return job.model_copy(update={"steps": steps})


def run(document: Mapping[str, Any], source: str, watcher: Watcher, began: float, profile: bool = False) -> Outcome:
    """Run the steps in their order, up to the first that fails; each goes on where an earlier run of it stopped.

    `profile` keeps where the time went of those that can tell. Raises JobError where none can.
    """
    steps = parse(document, source).steps
    profiled = [profile and kinds.can_profile(step["kind"]) for step in steps]
    if profile and not any(profiled):
        raise JobError(f"{source}: --profile shows where the time of labeling went, and no step labels; run it without")
    names = [f"{step['kind']} -> {step['output']['path']}" for step in steps]
    done: list[kinds.Outcome] = []
    for number, step in enumerate(steps):
        watcher.note(f"step {number + 1} of {len(steps)}: {names[number]}")
        place = f"{source}: steps.{number}"
        try:
            options = {"profile": True} if profiled[number] else {}
            begins = time.monotonic() if number else began
            done.append(_module(step, place).run(step, place, watcher, begins, **options))
        except CorpusmillError as error:
            error.add_note(f"this was steps.{number} ({names[number]}) of {source}; the same command goes on with it")
            raise
        if done[-1].exit_code:
            break
    return Outcome(done, names, time.monotonic() - began)


def _module(step: Mapping[str, Any], place: str) -> Any:
    """Who runs a step. Raises JobError: `kind` says nothing, or no kind that a step can be."""
    known = [kind for kind in kinds.KINDS if kind != "steps"]
    kind = step.get("kind")
    if kind is None:
        raise JobError(f"{place}: `kind` is missing; known: {', '.join(known)}")
    if kind not in known:
        raise JobError(f"{place}: {choice(f'kind: {kind!r} is not allowed in a step', str(kind), known)}")
    return kinds.module_of(kind)


def _resolved(node: Any, place: str, models: Sequence[str | None], key: str = "") -> Any:
    """The document with the folder of an earlier step's model in place of `steps:0`. Raises JobError."""
    if isinstance(node, Mapping):
        return {name: _resolved(each, place, models, str(name)) for name, each in node.items()}
    if isinstance(node, list):
        return [_resolved(each, place, models) for each in node]
    named = _NAMED.fullmatch(node) if isinstance(node, str) and key in _NAMES_A_MODEL else None
    if named is None:
        return node
    number = int(named[1])
    trained = [f"steps:{at}" for at, model in enumerate(models) if model is not None]
    known = f"models of earlier steps: {', '.join(trained)}" if trained else "no step before this one trains a model"
    if number >= len(models):
        raise JobError(f"{place}: {key}: {node} is no earlier step; {known}")
    model = models[number]
    if model is None:
        raise JobError(f"{place}: {key}: {node} is no step of kind finetune, so it leaves no model; {known}")
    return model


def _same_outputs(outputs: Sequence[str | None], source: str) -> list[str]:
    """One line for each folder that two steps would write to."""
    folders = [None if each is None else str(Path(each).expanduser().resolve()) for each in outputs]
    doubled = [folder for folder, count in Counter(folders).items() if folder is not None and count > 1]
    return [
        f"{source}: {' and '.join(f'steps.{at}' for at, each in enumerate(folders) if each == folder)} have one "
        f"output.path, {folder}; each needs its own"
        for folder in doubled
    ]
