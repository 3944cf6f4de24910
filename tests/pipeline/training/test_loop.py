"""Neither micro-batches nor ranks change what a step does, and a training goes on bit by bit where it stopped."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.multiprocessing.spawn import spawn

from pipeline.errors import RunError
from pipeline.training import checkpoints, loop
from pipeline.training import rows as training_rows
from pipeline.training.job import FinetuneJob
from pipeline.training.loading import load_checkpoint
from pipeline.training.loop import STEPS
from pipeline.training.standing import PROGRESS
from pipeline.training.work import Start, Work
from tests.pipeline.training.conftest import MakeWork

Move = Callable[[Work, str], Work]
CPU = torch.device("cpu")


def _train(work: Work, start: int | None = None) -> None:
    folder = work.store.full(f"saving-{start}")
    folder.mkdir()
    loop.train(work, 0, 1, CPU, Start(start, str(folder)))


def _weights(work: Work, step: int | None = None) -> dict[str, torch.Tensor]:
    last = checkpoints.latest(work.store) if step is None else step
    assert last is not None
    return safetensors.torch.load_file(checkpoints.folder_of(work.store, last) / "model.safetensors")


def _history(work: Work) -> list[dict[str, Any]]:
    last = checkpoints.latest(work.store)
    assert last is not None
    return list(checkpoints.state(work.store, last)["log_history"])


def _steps(work: Work) -> list[tuple[int, str]]:
    lines = work.store.full(STEPS).read_text().splitlines()
    return [(told["step"], told["rows"]) for told in map(json.loads, lines)]


def _assert_alike(first: Work, second: Work) -> None:
    """The same losses, figures and weights but for the rounding of sums."""
    for before, after in zip(_history(first), _history(second), strict=True):
        assert before == pytest.approx(after, rel=1e-3, abs=1e-6)
    others = _weights(second)
    for name, weights in _weights(first).items():
        if "key.bias" not in name:  # its gradient is nothing but rounding: softmax does not see a shift of all scores
            torch.testing.assert_close(weights, others[name], rtol=1e-3, atol=2e-5, msg=name)


def test_micro_batches_do_not_change_a_step(make_work: MakeWork, at_another_place: Move) -> None:
    work = make_work(training={"steps": 6, "dropout": 0.0}, micro_batch_tokens=100_000)
    small = replace(at_another_place(work, "small"), micro_batch_tokens=70)
    _train(work)
    _train(small)
    _assert_alike(work, small)


def _of_ranks(rank: int, ranks: int, port: int, work: Work, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(ranks)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    loop.train(work, rank, ranks, CPU, Start(None, folder))
    torch.distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort a process that takes down its interpreter


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def test_ranks_do_not_change_a_step(make_work: MakeWork, at_another_place: Move) -> None:
    # 15 rows in steps of 7 and 8 rows, and in the end more ranks than a step would need
    work = make_work(training={"steps": 5, "dropout": 0.0, "batch_rows": 7})
    both = at_another_place(work, "both")
    _train(work)
    folder = both.store.full("saving")
    folder.mkdir()
    spawn(_of_ranks, args=(2, _free_port(), both, str(folder)), nprocs=2)
    _assert_alike(work, both)
    assert _steps(work) == _steps(both)
    sums = [checkpoints.sums(checkpoints.folder_of(each.store, 5)) for each in (work, both)]
    assert sums[1]["tokens"] == pytest.approx(sums[0]["tokens"], rel=0.2)  # the ranks' shares are alike, no more


class _Killed(BaseException):
    """Stands for a kill: no Exception, so nobody writes it down."""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dies_at", [4, 9])
def test_what_goes_on_is_what_would_have_been(
    dtype: str, dies_at: int, make_work: MakeWork, at_another_place: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"steps": 12, "checkpoint_every": 3, "dropout": 0.3, "dtype": dtype, "schedule": "cosine"}
    work = make_work(training=training)
    other = at_another_place(work, "other")
    _train(work)
    step = loop._Loop.step

    def dying(self: loop._Loop, rows_B: Any, number: int) -> loop.Step:
        if number == dies_at:
            raise _Killed
        return step(self, rows_B, number)

    monkeypatch.setattr(loop._Loop, "step", dying)
    with pytest.raises(_Killed):
        _train(other)
    monkeypatch.undo()
    begun = checkpoints.latest(other.store)
    assert begun is not None
    assert dies_at - 3 < begun <= dies_at
    _train(other, begun)
    assert _history(other) == _history(work)
    for name, weights in _weights(work).items():
        torch.testing.assert_close(_weights(other)[name], weights, rtol=0, atol=0)
    assert _steps(other) == _steps(work)[:dies_at] + _steps(work)[begun:]
    assert checkpoints.steps(other.store) == checkpoints.steps(work.store)
    both = [checkpoints.sums(checkpoints.folder_of(each.store, 12)) for each in (work, other)]
    assert both[0]["tokens"] == both[1]["tokens"]
    assert both[0]["padding_tokens"] == both[1]["padding_tokens"]


def test_weights_whose_file_had_other_names_are_found_again(
    make_work: MakeWork, make_encoder: Callable[..., Path], at_another_place: Move, tmp_path: Path
) -> None:
    # bert-base-uncased has LayerNorm.gamma and LayerNorm.beta; what transformers saves of it has these names too
    old = tmp_path / "old"
    shutil.copytree(make_encoder(), old)
    weights = safetensors.torch.load_file(old / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert set(renamed) != set(weights)
    safetensors.torch.save_file(renamed, old / "model.safetensors", {"format": "pt"})
    work = make_work(model=str(old), training={"steps": 4, "checkpoint_every": 2, "dropout": 0.0})
    on = at_another_place(work, "on")
    _train(work)
    shutil.copytree(checkpoints.folder_of(work.store, 2), checkpoints.folder_of(on.store, 2))
    _train(on, 2)
    for name, tensor in _weights(work).items():
        torch.testing.assert_close(_weights(on)[name], tensor, rtol=0, atol=0)
    job = FinetuneJob.model_validate(work.job)
    objective = training_rows.started(job, work.model, work.max_tokens, work.schema)
    module = load_checkpoint(objective, work.learned, job.training, str(checkpoints.folder_of(work.store, 4)))
    trained = dict(module.named_parameters())
    for name, tensor in _weights(work).items():
        torch.testing.assert_close(trained[name].detach(), tensor, rtol=0, atol=0, check_dtype=False)


def test_where_weights_are_shared_out_every_rank_makes_as_many_passes(make_work: MakeWork) -> None:
    work = make_work(training={"steps": 1}, micro_batch_tokens=60)
    rows_B = np.arange(7, dtype=np.intp)
    job = FinetuneJob.model_validate(work.job)
    sharded = job.model_copy(update={"training": job.training.model_copy(update={"sharded": True})})
    steps = {}
    for name, each in (("whole", job), ("sharded", sharded)):
        told = replace(work, job=each.model_dump(mode="json"))
        steps[name] = [loop._Loop(told, rank, 3, CPU).step(rows_B, 0) for rank in range(3)]
    counts = {name: [len(step.micros) for step in found] for name, found in steps.items()}
    assert len(set(counts["whole"])) > 1
    assert counts["sharded"] == [max(counts["whole"])] * 3
    for whole, padded in zip(steps["whole"], steps["sharded"], strict=True):
        scales = [micro.scale for micro in padded.micros]
        assert scales == [0.0] * (len(scales) - len(whole.micros)) + [micro.scale for micro in whole.micros]


def test_adapters_go_on_in_bfloat16_as_they_were(make_work: MakeWork, at_another_place: Move) -> None:
    training = {"steps": 4, "checkpoint_every": 2, "dropout": 0.0, "dtype": "bfloat16", "lora": {"rank": 4}}
    work = make_work(training=training)
    on = at_another_place(work, "on")
    _train(work)
    shutil.copytree(checkpoints.folder_of(work.store, 2), checkpoints.folder_of(on.store, 2))
    _train(on, 2)
    whole, resumed = (
        safetensors.torch.load_file(checkpoints.folder_of(each.store, 4) / "adapter_model.safetensors")
        for each in (work, on)
    )
    assert whole.keys() == resumed.keys()
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=0)
    assert _history(on) == _history(work)


def test_each_epoch_sees_every_row_once_and_each_in_another_order(make_work: MakeWork) -> None:
    work = make_work(training={"epochs": 2})
    seen: list[list[int]] = []
    begun = loop._Loop.note

    def note(self: loop._Loop, number: int, rows: list[int]) -> None:
        seen.append(rows)
        begun(self, number, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Loop, "note", note)
        _train(work)
    per_epoch = work.schedule.steps_per_epoch
    epochs = [[row for rows in seen[at : at + per_epoch] for row in rows] for at in (0, per_epoch)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(epochs[0])))
    assert epochs[0] != epochs[1]


def test_it_ends_early_where_nothing_gets_better(make_work: MakeWork) -> None:
    stopping = {"patience": 2, "at_least": 1.0}  # no figure ever rises by as much
    work = make_work(training={"steps": 20, "validate_every": 2, "early_stopping": stopping})
    _train(work)
    assert checkpoints.latest(work.store) == 6
    assert work.schedule.done(6, _history(work))


def test_the_best_checkpoint_is_kept_beside_the_latest(make_work: MakeWork) -> None:
    work = make_work(training={"steps": 12, "validate_every": 2, "checkpoint_every": 1, "keep_checkpoints": 2})
    _train(work)
    scores = work.schedule.scores(_history(work))
    best = checkpoints.best(scores, scores)
    kept = checkpoints.steps(work.store)
    assert best in kept
    assert 12 in kept
    assert len(kept) == 2


def test_nothing_but_checkpoints_is_left(make_work: MakeWork) -> None:
    work = make_work(training={"steps": 3})
    _train(work)
    assert list(work.store.full("saving-None").iterdir()) == []
    assert list(work.store.full("metadata/tmp").glob("checkpoint-*")) == []
    assert list(work.store.full("checkpoints").rglob("*.bin")) == []


# --------------------------------------------------------------------------------------------------- what is not finite


def test_a_loss_that_is_not_finite_ends_the_training(make_work: MakeWork) -> None:
    work = make_work(data={"label": "huge"}, training={"steps": 5, "learning_rate": 0.5})
    with pytest.raises(
        RunError, match=r"the loss of step 1 is not finite: the training diverged; try a training\.lear"
    ):
        _train(work)
    assert checkpoints.steps(work.store) == []


def test_where_gradients_alone_overflow_no_checkpoint_is_kept(
    make_work: MakeWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(training={"steps": 5, "checkpoint_every": 1})
    computed = loop._Trainer.training_step

    def steep(self: loop._Trainer, model: torch.nn.Module, *inputs: Any) -> torch.Tensor:
        loss = computed(self, model, *inputs)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(loop._Trainer, "training_step", steep)
    with pytest.raises(RunError, match=r"'.+' after step 1 is not finite: the training diverged"):
        _train(work)
    assert checkpoints.steps(work.store) == []


def test_what_could_help_is_said_of_bfloat16_too(make_work: MakeWork) -> None:
    work = make_work(data={"label": "huge"}, training={"steps": 5, "dtype": "bfloat16"})
    with pytest.raises(RunError, match=r"or training\.dtype: float32"):
        _train(work)


# ---------------------------------------------------------------------------------------------------------- shares


def test_a_rank_without_rows_computes_a_step_of_no_weight(make_work: MakeWork) -> None:
    work = make_work(training={"steps": 1})
    rank = loop._Loop(work, 2, 3, CPU)
    step = rank.step(rows_B := np.array([0, 1], np.intp), 0)
    assert [micro.scale for micro in step.micros] == [0.0]
    assert step.tokens == rank.train.lengths_E[rows_B].sum()  # of all ranks
    assert step.padding_tokens == 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_scales_make_up_the_mean_over_the_step(ranks: int, make_work: MakeWork) -> None:
    work = make_work(training={"steps": 1}, micro_batch_tokens=80)
    rows_B = np.arange(9, dtype=np.intp)
    steps = [loop._Loop(work, rank, ranks, CPU).step(rows_B, 0) for rank in range(ranks)]
    weights = [micro.scale * len(micro.tensors["input_ids"]) for step in steps for micro in step.micros]
    assert sum(weights) / ranks == pytest.approx(1)
    assert sum(len(step.micros) for step in steps) > ranks


def test_where_the_run_is_goes_to_one_small_file(make_work: MakeWork, tmp_path: Path) -> None:
    work = make_work(training={"steps": 3})
    _train(work)
    told = json.loads(work.store.full(PROGRESS).read_text())
    assert told["step"] == told["steps"] == 3
    assert told["tokens_per_second"] > 0
