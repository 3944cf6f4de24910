"""Objectives that have their tokenizer, and a training without Ray."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.models.pretrained import prepared_tokenizer
from pipeline.models.reference import ModelSettings, pin
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives.base import Learned, Objective


@pytest.fixture
def prepare() -> Callable[..., Objective]:
    """An objective as a process that encodes or trains holds it: settings, the label's type, the tokenizer."""

    def make(
        kind: type[Objective],
        folder: Path,
        label_type: pa.DataType | None = None,
        max_tokens: int = 64,
        data: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Objective:
        columns = {"text": "body"} | ({} if label_type is None else {"label": "wanted"}) | dict(data or {})
        settings = DataSettings(path="corpus", **columns)
        made = kind(kind.Config.model_validate({"name": kind.__name__.lower(), **options}), settings)
        if label_type is not None:
            made.check_label(label_type)
        pinned = pin(ModelSettings(ref=str(folder)))
        made.start(prepared_tokenizer(pinned, 1), pinned, max_tokens)
        return made

    return make


@pytest.fixture
def batch_of() -> Callable[..., dict[str, torch.Tensor]]:
    """The examples of some rows as one batch."""

    def make(objective: Objective, examples: pa.Table, learned: Learned, seed: int = 0) -> dict[str, torch.Tensor]:
        return objective.batch(examples, learned, np.random.default_rng(seed))

    return make


@pytest.fixture
def trained() -> Callable[..., tuple[torch.nn.Module, list[float]]]:
    """A module after some steps of AdamW over all rows at once, and the loss of a unit of weight before each."""

    def train(
        objective: Objective,
        rows: Mapping[str, Sequence[Any]],
        steps: int = 60,
        learning_rate: float = 5e-3,
        freeze: Sequence[str] = (),
    ) -> tuple[torch.nn.Module, list[float]]:
        encoded = objective.encode(rows)
        assert not encoded.failures
        learned = objective.learned(objective.counted(encoded.examples))
        module = objective.build(learned, TrainingSettings(seed=3, dropout=0.0, freeze=list(freeze))).train()
        optimizer = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], learning_rate)
        weight = float(np.sum(encoded.examples["weight"].to_numpy()))
        losses = []
        for step in range(steps):
            batch = objective.batch(encoded.examples, learned, np.random.default_rng([3, step]))
            loss = objective.loss(module, batch, learned) / weight
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return module.eval(), losses

    return train
