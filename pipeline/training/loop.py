"""What one worker of a training does: `transformers.Trainer` over steps whose rows, micro-batches and seeds are known.

    train(work, rank, ranks, device, start)        # called by Ray Train in every worker; see `pipeline.training.fit`

A step's rows are the same whatever the number of workers, and its loss is the sum over them all divided by the sum of
their weights: so gradients do not depend on how the rows were divided into micro-batches, and a worker that comes back
goes on with the very next step. Dropout and masks are seeded by the step, so no generator's state has to be kept.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pipeline.batching import micro_batches, padding
from pipeline.errors import RunError
from pipeline.models.attention import use_plain_attention
from pipeline.models.device import settle
from pipeline.models.first_token import read_first_token
from pipeline.training import checkpoints
from pipeline.training.dropout import use_byte_dropout
from pipeline.training.examples import Examples
from pipeline.training.job import FinetuneJob
from pipeline.training.loading import without_adapters
from pipeline.training.masters import MasterAdamW, in_bfloat16
from pipeline.training.objectives.base import Objective
from pipeline.training.order import Order, shared_out
from pipeline.training.rows import started
from pipeline.training.standing import PROGRESS
from pipeline.training.work import Start, Work

STEPS = "metadata/steps.jsonl"
"""A line for each step that was computed, as the first worker began it: {"attempt": "4711-9f0c", "step": 17, "rows":
"b7e1…"}, the rows by a digest of their numbers. A step that stands there twice was computed again after a death."""

_NEVER = 2**62
"""A step that no training reaches."""


@dataclass(frozen=True, slots=True)
class Micro:
    """One forward pass."""

    tensors: dict[str, torch.Tensor]
    scale: float  # of its summed loss; 0 for a rank that has no row of a step, and must not miss it


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank computes of one optimizer step."""

    micros: list[Micro]
    tokens: int  # of all ranks
    padding_tokens: int  # of this one


class _Numbers(Dataset[int]):
    """The numbers of E examples: the loader's sampler chooses them, and `collate` fetches their rows."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, number: int) -> int:
        return number


class _Steps:
    """A batch sampler: the rows of each step of the epoch that the trainer is in, for all ranks."""

    def __init__(self, order: Order, trainer: "_Trainer") -> None:
        self._order = order
        self._trainer = trainer

    def __len__(self) -> int:
        return self._order.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self._trainer.state.global_step // len(self)
        for rows_B in self._order.steps(epoch):
            yield rows_B.tolist()


class _Trainer(transformers.Trainer):
    """transformers' loop, optimizer, schedule, clipping, logs and checkpoints, over our steps and losses."""

    def __init__(self, loop: "_Loop", **keywords: Any) -> None:
        self.loop = loop
        super().__init__(**keywords)

    def get_train_dataloader(self) -> DataLoader[Any]:
        steps = _Steps(self.loop.order, self)
        return DataLoader(_Numbers(len(self.loop.train)), batch_sampler=steps, collate_fn=self._collate)

    def _collate(self, numbers: list[int]) -> list[int]:
        return numbers

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ARG002
        """Forward and backward of this rank's share; the gradients are summed over ranks with the last micro-batch."""
        model.train()
        step = self.loop.step(np.array(inputs), self.state.global_step)
        self.loop.note(self.state.global_step, inputs)
        total = torch.zeros((), device=self.args.device)
        for at, micro in enumerate(step.micros):
            last = at == len(step.micros) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.loop.objective.loss(model, micro.tensors, self.loop.work.learned) * micro.scale
                self.accelerator.backward(loss)
            total += loss.detach()
        self.loop.look_at(total, self.state.global_step + 1)
        self.loop.tokens += step.tokens
        self.loop.padding_tokens += step.padding_tokens
        return total

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW; with float32 masters where the model computes in bfloat16."""
        if not self.loop.masters:
            return super().create_optimizer(model)  # type: ignore[no-any-return]
        decayed = set(self.get_decay_parameter_names(self.model))
        groups = [
            {
                "params": [
                    each
                    for name, each in self.model.named_parameters()
                    if each.requires_grad and (name in decayed) == decays
                ],
                "weight_decay": self.args.weight_decay if decays else 0.0,
            }
            for decays in (True, False)
        ]
        optimizer = MasterAdamW(groups, lr=self.args.learning_rate)
        self.optimizer = optimizer
        return optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The validation's loss and the objective's figures, over all ranks."""
        metrics = {f"eval_{name}": value for name, value in self.loop.validate(self.model_wrapped).items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint counts when every rank has written its part, and the first one gives it its name."""
        loop, step = self.loop, self.state.global_step
        loop.check_weights(self.model, step)
        super()._save_checkpoint(model, trial)
        loop.wait_for_all()
        if loop.rank == 0:
            folder = Path(self.args.output_dir, f"checkpoint-{step}")
            Path(folder, "training_args.bin").unlink(missing_ok=True)
            Path(folder, checkpoints.SUMS).write_text(json.dumps(loop.sums()))
            checkpoints.commit(loop.work.store, folder, step)
            shutil.rmtree(folder, ignore_errors=True)
            schedule = loop.work.schedule
            checkpoints.prune(loop.work.store, schedule.scores(self.state.log_history), loop.keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.loop.masters:  # peft makes its adapters float32 as it loads them
            in_bfloat16(self.model)

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        return 0

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:  # noqa: ARG002
        return None

    def _save_rng_state(self, output_dir: str) -> None:
        """There is none to be kept: every step is seeded by its number."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        pass

    def _load_best_model(self) -> None:
        """The best checkpoint is chosen when all is done, not here."""


class _Loop:
    """One worker's training."""

    def __init__(self, work: Work, rank: int, ranks: int, device: torch.device) -> None:
        self.work, self.rank, self.ranks, self.device = work, rank, ranks, device
        self.job = FinetuneJob.model_validate(work.job)
        self.objective: Objective = started(self.job, work.model, work.max_tokens, work.schema)
        self.train = Examples.of(work.store, "train", work.names)
        self.validation = Examples.of(work.store, "validation", work.names)
        settings = self.job.training
        self.order = Order(self.train.lengths_E, settings.batch_rows, settings.seed, settings.group_by_length)
        self.tokens = self.padding_tokens = 0
        self.before: dict[str, float] = {}  # what the attempts before came to
        self.keep = settings.keep_checkpoints
        self._diverged_at = torch.full((), _NEVER, device=device)  # asked for now and then: a GPU must not wait for it
        self.attempt = f"{os.getpid()}-{secrets.token_hex(2)}"
        self.began = time.monotonic()

    def step(self, rows_B: npt.NDArray[np.intp], number: int) -> Step:
        """This rank's micro-batches of a step."""
        torch.manual_seed(_mixed(self.job.training.seed, number, self.rank))
        random = np.random.default_rng([self.job.training.seed, number, self.rank])
        weight = float(self.train.weights_E[rows_B].sum())
        shares = shared_out(rows_B, self.train.lengths_E, self.ranks)
        mine = shares[self.rank]
        lengths = self.train.lengths_E[mine]
        batches = self._cut(lengths)
        scale = self.ranks / weight  # the ranks' gradients are averaged, and a step's loss is their sum
        micros = [Micro(self._tensors(self.train, mine[batch], random), scale) for batch in batches]
        passes = max(1, self._passes([self._cut(self.train.lengths_E[each]) for each in shares]))
        for _ in range(passes - len(micros)):
            micros.insert(0, Micro(self._tensors(self.train, rows_B[:1], random), 0.0))
        return Step(micros, int(self.train.lengths_E[rows_B].sum()), padding(lengths, batches) if batches else 0)

    def _cut(self, lengths_B: npt.NDArray[np.int64]) -> list[npt.NDArray[np.intp]]:
        """The micro-batches of a rank's share."""
        if not len(lengths_B):
            return []
        return (
            [np.arange(len(lengths_B))]
            if self.objective.whole_batch
            else micro_batches(lengths_B, self.work.micro_batch_tokens)
        )

    def _passes(self, cuts: Sequence[Sequence[Any]]) -> int:
        """Forward passes that a rank makes at least: where they share the weights, as many as any other.

        With FSDP a pass gathers weights from all ranks: who left one out would let the others wait for ever.
        """
        return max(map(len, cuts)) if self.job.training.sharded else 0

    def note(self, number: int, rows: list[int]) -> None:
        """Write down that a step begins."""
        if self.rank == 0:
            digest = hashlib.sha256(np.array(rows, np.int64).tobytes()).hexdigest()[:16]
            line = json.dumps({"attempt": self.attempt, "step": number, "rows": digest})
            with self.work.store.full(STEPS).open("a") as file:
                file.write(line + "\n")

    def look_at(self, loss: torch.Tensor, step: int) -> None:
        """Remember the first step whose loss is no finite number; told where the step is logged or saved."""
        here = torch.where(torch.isfinite(loss), _NEVER, step)
        self._diverged_at = torch.minimum(self._diverged_at, here)
        schedule = self.work.schedule
        if step % schedule.log_every == 0 or schedule.saves(step) or schedule.validates(step):
            at = int(self._diverged_at.item())
            if at != _NEVER:
                raise self._diverged(f"the loss of step {at:,}")

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raise RunError where a weight is no finite number: such a checkpoint is worth nothing."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"'{name}' after step {step:,}")

    def _diverged(self, what: str) -> RunError:
        settings = self.job.training
        instead = "" if settings.dtype == "float32" else ", or training.dtype: float32"
        return RunError(
            f"{what} is not finite: the training diverged; try a training.learning_rate smaller than "
            f"{settings.learning_rate:g}, a longer training.warmup than {settings.warmup:g}{instead}"
        )

    def wait_for_all(self) -> None:
        """Until every rank is here; an error where one of them is no more."""
        if self.ranks > 1:
            dist.barrier()

    def sums(self) -> dict[str, float]:
        """What all steps came to, those of earlier attempts too; of padding the ranks have like shares."""
        now = {
            "tokens": self.tokens,
            "padding_tokens": self.padding_tokens * self.ranks,
            "seconds": time.monotonic() - self.began,
        }
        return {name: value + self.before.get(name, 0) for name, value in now.items()}

    def _tensors(
        self, examples: Examples, rows_B: npt.NDArray[np.intp], random: np.random.Generator
    ) -> dict[str, torch.Tensor]:
        batch = self.objective.batch(examples.rows(rows_B), self.work.learned, random)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss and figures over all validation examples; every rank computes its share and learns the whole."""
        model.eval()
        shares = [np.arange(len(self.validation))[rank :: self.ranks] for rank in range(self.ranks)]
        mine, budget = shares[self.rank], 2 * self.work.micro_batch_tokens
        cuts = [micro_batches(self.validation.lengths_E[each], budget) if len(each) else [] for each in shares]
        random = np.random.default_rng(self.job.training.seed)
        loss, judged = 0.0, []
        with torch.no_grad():
            for batch in cuts[self.rank]:
                tensors = self._tensors(self.validation, mine[batch], random)
                summed, kept = self.objective.judge(_bare(model), tensors, self.work.learned)
                loss += float(summed)
                judged.append(kept)
            for _ in range(self._passes(cuts) - len(judged)):
                tensors = self._tensors(self.validation, shares[0][:1], random)
                self.objective.judge(_bare(model), tensors, self.work.learned)
        parts: list[Any] = [(loss, judged)]
        if self.ranks > 1:
            parts = [None] * self.ranks
            dist.all_gather_object(parts, (loss, judged))
        kept_EK = np.concatenate([kept for _, each in parts for kept in each])
        found = {"loss": sum(part[0] for part in parts) / float(self.validation.weights_E.sum())}
        if not np.isfinite(found["loss"]):
            raise self._diverged("the loss of the validation rows")
        return found | self.objective.score(kept_EK, self.work.learned)

    def run(self, start: Start) -> None:
        """Train to the end of the schedule."""
        model = self.objective.build(self.work.learned, self.job.training)
        inner = without_adapters(model)
        read_first_token(inner)
        if self.work.device == "cpu":
            use_byte_dropout(model)
            use_plain_attention(model)
        if getattr(inner, "_weight_conversions", None):
            inner._weight_conversions = []  # a checkpoint has the module's own names, not those of the file it is from
        if self.masters:
            in_bfloat16(model)
        resumed = None if start.step is None else checkpoints.folder_of(self.work.store, start.step)
        if resumed is not None:
            self.before = checkpoints.sums(resumed)
        trainer = _Trainer(self, model=model, args=self._arguments(start.folder), callbacks=[_Calls(self)])
        trainer.remove_callback(transformers.PrinterCallback)
        self.began = time.monotonic()
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))

    @property
    def masters(self) -> bool:
        """Whether the model is in bfloat16, and the optimizer keeps the float32 weights; FSDP casts by itself."""
        return self.work.bf16 and not self.job.training.sharded

    def _arguments(self, folder: str) -> transformers.TrainingArguments:
        settings, schedule = self.job.training, self.work.schedule
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.work.store.full("logs"))
        kinds = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
        return transformers.TrainingArguments(
            output_dir=folder,
            max_steps=schedule.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=kinds[settings.schedule],
            warmup_steps=schedule.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.clip,
            optim="adamw_torch_fused",
            per_device_train_batch_size=1,  # a step is a batch of ours
            seed=settings.seed,
            bf16=self.work.bf16 and not self.masters,
            use_cpu=self.work.device == "cpu",
            ddp_find_unused_parameters=False,
            ddp_backend=("gloo" if self.work.device == "cpu" else "nccl") if self.ranks > 1 else None,
            fsdp=["full_shard", "auto_wrap"] if settings.sharded else None,
            logging_steps=schedule.log_every,
            logging_nan_inf_filter=False,
            save_strategy="no",  # `_Calls` says when
            eval_strategy="no",
            report_to=[] if settings.log is None or self.rank else [settings.log],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )


class _Calls(transformers.TrainerCallback):
    """When the trainer validates, saves, reports and stops."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """What the schedule says of this step."""
        schedule = self._loop.work.schedule
        control.should_evaluate = schedule.validates(state.global_step) and len(self._loop.validation) > 0
        control.should_save = schedule.saves(state.global_step)
        # The log's means begin anew at each checkpoint, so that a run that goes on has the same ones.
        control.should_log = control.should_log or control.should_save
        if state.global_step >= schedule.steps:
            control.should_training_stop = True
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002
        """End where the validation no longer gets better."""
        if self._loop.work.schedule.ended(state.log_history):
            control.should_training_stop = True
            control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Say how far it is."""
        loop = self._loop
        if loop.rank:
            return
        told = {
            "step": state.global_step,
            "steps": loop.work.schedule.steps,
            "loss": (logs or {}).get("loss"),
            "tokens_per_second": loop.tokens / max(1e-9, time.monotonic() - loop.began),
        }
        loop.work.store.mark(PROGRESS, json.dumps(told).encode())


def _bare(model: nn.Module) -> nn.Module:
    """The module inside DDP's wrapper: a validation has no gradients to share."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        bare: nn.Module = model.module
        return bare
    return model


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def train(work: Work, rank: int, ranks: int, device: torch.device, start: Start) -> None:
    """Train in this process, one of `ranks`, until the schedule ends."""
    settle(work.device, work.threads)
    _Loop(work, rank, ranks, device).run(start)
