"""What a training is told, in a file of its own: Ray Train's controller reads it too, and needs no transformers."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.models.reference import PinnedModel
from pipeline.output.storage import Store
from pipeline.training.objectives.base import Learned
from pipeline.training.schedule import Schedule
from pipeline.workers import Device


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker of a training is told: picklable."""

    store: Store
    job: dict[str, Any]
    model: PinnedModel
    max_tokens: int
    schema: pa.Schema  # of the corpus
    names: tuple[str, ...]  # the encoded units, in order
    learned: Learned
    schedule: Schedule
    device: Device
    threads: int
    micro_batch_tokens: int
    bf16: bool


@dataclass(frozen=True, slots=True)
class Start:
    """Where an attempt begins: the first worker looks, and tells the others."""

    step: int | None  # of the checkpoint; None: at the beginning
    folder: str  # where all of them save, until a checkpoint is whole
