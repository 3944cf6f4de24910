"""The workloads by name, and which of them an annotation's task is."""

import importlib
import json
from pathlib import Path

from jobs.bench.workload import TextWorkload, Workload
from pipeline.errors import JobError

_PLACES = {
    "encoding": "encoding:Encoding",
    "classifying": "labeling:Classifying",
    "tagging": "labeling:Tagging",
    "writing": "writing:Writing",
    "training": "training:Training",
}

TASKS = {
    "embed": "encoding",
    "classify": "classifying",
    "tag": "tagging",
    "summarize": "writing",
    "translate": "writing",
}
"""Workloads by the task of an annotation."""


def named(name: str) -> type[Workload]:
    """The class of a workload."""
    module, class_name = _PLACES[name].split(":")
    found: type[Workload] = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return found


def of_task(task: str, annotation: str) -> type[TextWorkload]:
    """The workload that an annotation is. Raises JobError for a task that has no peers here."""
    if task not in TASKS:
        raise JobError(
            f"annotation {annotation!r} is of task {task!r}, which bench cannot hold against peers; it can with "
            f"{', '.join(sorted(TASKS))} as the first annotation, or a job of kind finetune"
        )
    found = named(TASKS[task])
    assert issubclass(found, TextWorkload)
    return found


def read(path: Path) -> Workload:
    """What `Workload.write` wrote."""
    document = json.loads(path.read_text())
    return named(document.pop("workload")).of_json(document)
