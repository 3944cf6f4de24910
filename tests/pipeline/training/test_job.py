"""What a training's settings and its workers say together."""

import pytest

from pipeline.errors import JobError
from pipeline.training.job import FinetuneJob, check_sharding
from pipeline.workers import TrainWorkers


def _job(sharded: bool) -> FinetuneJob:
    return FinetuneJob.model_validate(
        {
            "objective": "classify",
            "model": "a-folder",
            "data": {"path": "corpus", "text": "text", "label": "label", "split": {"seed": 0}},
            "training": {"epochs": 1, "sharded": sharded},
            "output": {"path": "out"},
        }
    )


def _workers(count: int, least: int, gpus: float) -> TrainWorkers:
    return TrainWorkers(count, least, cpus=1, gpus=gpus, memory_bytes=None)


def test_a_model_is_divided_among_several_gpus_and_nothing_else() -> None:
    with pytest.raises(JobError, match=r"training\.sharded divides a model among GPUs, and these workers have none"):
        check_sharding(_job(sharded=True), _workers(2, 2, gpus=0))
    for count in (1, 4):
        with pytest.raises(JobError, match=rf"there may be one alone here \({count} at most\): .* cluster\.workers"):
            check_sharding(_job(sharded=True), _workers(count, 1, gpus=1))
    check_sharding(_job(sharded=True), _workers(4, 2, gpus=1))
    check_sharding(_job(sharded=False), _workers(1, 1, gpus=0))
