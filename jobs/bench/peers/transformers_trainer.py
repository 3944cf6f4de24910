"""`transformers.Trainer` as its documentation shows it, over the examples that corpusmill learns from."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jobs.bench.peer import Peer
from jobs.bench.workload import Measured
from jobs.bench.workloads.training import Training
from pipeline.errors import JobError

WARM = 5
"""Steps before the clock starts: grouped by length, the longest rows stand among the first."""


class Plain(Peer[Training]):
    """In float32, rows in random order, padded to the longest of a batch."""

    packages = ("accelerate", "datasets")
    one_in = 3
    options: ClassVar[Mapping[str, Any]] = {}

    def measure(self, began: float) -> tuple[Measured, Sequence[Any] | None]:  # noqa: ARG002
        """Steps after the first few."""
        import datasets
        import torch
        import transformers

        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in self.setting.files()])
        if rows.features["target"].dtype != "string":
            raise JobError("bench trains on one label for each row: name a column of strings")
        numbers = {label: at for at, label in enumerate(sorted(set(rows["target"])))}
        datasets.disable_progress_bars()
        rows = rows.map(lambda row: {"labels": numbers[row["target"]]}).select_columns(["input_ids", "labels"])
        torch.manual_seed(0)
        folder, steps = self.setting.folder, max(2 * WARM, self.setting.steps // self.one_in)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(numbers))
        pad = transformers.DataCollatorWithPadding(tokenizer)
        at_step: dict[int, float] = {}
        drawn: list[tuple[int, int]] = []  # tokens of a batch, real ones and all

        def collate(batch: list[dict[str, Any]]) -> Any:
            padded = pad(batch)
            drawn.append((sum(len(row["input_ids"]) for row in batch), padded["input_ids"].numel()))
            return padded

        class Clock(transformers.TrainerCallback):
            """When each step was done."""

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
                at_step[state.global_step] = time.monotonic()

        with tempfile.TemporaryDirectory() as scratch:
            asked = transformers.TrainingArguments(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=self.setting.batch_rows,
                learning_rate=self.setting.learning_rate,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                **self.options,
            )
            transformers.Trainer(
                model=model, args=asked, train_dataset=rows, data_collator=collate, callbacks=[Clock()]
            ).train()
        tokens, padded_tokens = (sum(each) for each in zip(*drawn[WARM:steps], strict=True))
        return Measured(
            rows=(steps - WARM) * self.setting.batch_rows,
            tokens=tokens,
            padded_tokens=padded_tokens,
            seconds=at_step[steps] - at_step[WARM],
            first_row_seconds=None,
            flop=self.setting.flop(tokens),
            one_in=self.one_in,
        ), None


class Grouped(Plain):
    """In bfloat16, rows of like length together."""

    one_in = 1
    options: ClassVar[Mapping[str, Any]] = {"bf16": True, "train_sampling_strategy": "group_by_length"}
