"""Tasks that have their model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.models.reference import ModelSettings, pin
from pipeline.tasks.base import Task


@pytest.fixture
def prepare() -> Callable[..., Task]:
    """A task as the driver makes it: settings and a pinned model, no weights."""

    def make(kind: type[Task], folder: Path, name: str = "found", **options: Any) -> Task:
        model = ModelSettings(ref=str(folder))
        settings = {"name": name, "task": kind.__name__.lower(), "text": "body", "model": model, **options}
        return kind(kind.Config.model_validate(settings), pin(model))

    return make


@pytest.fixture
def start(prepare: Callable[..., Task]) -> Callable[..., Task]:
    """A task as an actor holds it; `dtype` and `token_budget` are those of the plan."""

    def make(
        kind: type[Task],
        folder: Path,
        dtype: str = "float32",
        token_budget: int = 256,
        edit: Any = None,
        **options: Any,
    ) -> Task:
        from pipeline.models.loading import load

        task = prepare(kind, folder, **options)
        assert task.model is not None
        assert task.needs is not None
        loaded = load(task.model, task.needs, dtype=dtype, device="cpu", threads=1, token_budget=token_budget)
        task.start(loaded)
        if edit is not None:
            task.loaded.module.register_forward_pre_hook(edit, with_kwargs=True)  # type: ignore[attr-defined]
        return task

    return make
