"""An objective of one's own with a module of one's own: the RNN of own_task.py, trained to write summaries.

    objective: {name: jobs/configs/own_objective.py, max_target_tokens: 16}
    data: {text: description, label: summary, …}        model: out/rnn
    -> model/config.json, model.safetensors, tokenizer.json, … as jobs/configs/own_task.py reads them

The job's model gives the sizes of the layers and the tokenizer; its weights are not used. What is trained is any
`nn.Module`, whose forward pass gives the loss; the loop around it is transformers' Trainer, as for every objective.

B rows, L tokens of the longest text, T tokens of the longest summary, H hidden numbers.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from pipeline import tasks
from pipeline.metrics import baselines
from pipeline.tasks.base import OWN_MODULE, Input, TextInput
from pipeline.training.examples import Examples
from pipeline.training.job import TrainingSettings
from pipeline.training.objectives.base import (
    Encoded,
    Learned,
    Objective,
    ObjectiveSettings,
    Prediction,
    as_lists,
    needs_label,
    padded,
)

TASK = Path(__file__).with_name("own_task.py")
RnnSummarizer: Any = vars(sys.modules[tasks.find(str(TASK), allow_code=True).__module__])["RnnSummarizer"]

NOTHING = -100  # a target that no loss is taken of


class Taught(RnnSummarizer):
    """The summarizer while it is trained: each next word is asked for after the right ones (teacher forcing)."""

    def forward(
        self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, targets_BT: torch.Tensor
    ) -> torch.Tensor:
        """The cross entropy, summed over the targets."""
        reading, at = self.read(input_ids_BL, attention_mask_BL)
        chosen_by, looked = [], []
        for targets_B in targets_BT.T:
            chosen_by_BX, at = self.step(at, reading)
            chosen_by.append(chosen_by_BX)
            looked.append(at.looked_BL)
            at = at._replace(ids_B=targets_B.clamp(min=0))
        shares_BTV = self.shares(torch.stack(chosen_by, 1), torch.stack(looked, 1), input_ids_BL)
        logs_BVT = shares_BTV.clamp(min=1e-9).log().transpose(1, 2)
        return nn.functional.nll_loss(logs_BVT, targets_BT, ignore_index=NOTHING, reduction="sum")


class RnnObjective(Objective):
    """Cross entropy of each token of the summary, and of its end."""

    needs = OWN_MODULE

    class Config(ObjectiveSettings):
        """How much is written."""

        max_target_tokens: int = Field(default=16, ge=2, le=10_000)
        """Tokens of a summary in training, its end included; longer ones are cut."""

    def __init__(self, config: Any, data: Any) -> None:
        """Raises JobError without a label."""
        super().__init__(config, data)
        needs_label("own_objective.py", data, "the column of the summaries")

    def inputs(self) -> Mapping[str, Input]:
        """The text and its summary."""
        return {"text": TextInput(self.data.text), "label": TextInput(str(self.data.label))}

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """One example a row, which weighs as much as its summary has tokens."""
        texts, summaries = (self.pieces({"text": rows[name]}) for name in ("text", "label"))
        failures = {**summaries.failures, **texts.failures}
        most, end_id = self.config.max_target_tokens, self.model.config["end_id"]
        targets = [
            np.append(ids[: most - 1], end_id) if len(ids) > most else ids  # the tokenizer has set an end already
            for row, ids in zip(summaries.row_P.tolist(), summaries.ids_P, strict=True)
            if row not in failures
        ]
        weights = np.array([len(ids) for ids in targets], np.float32)
        return self.encoded(texts, failures, {"target_ids": as_lists(targets)}, weights)

    def counted(self, examples: pa.Table) -> Learned:
        """Words that a summary has on average, which a beginning of the text is cut to: here, tokens."""
        return {"rows": float(len(examples)), "tokens": float(np.sum(examples["weight"].to_numpy()))}

    def learned(self, counted: Mapping[str, float]) -> Learned:
        """Tokens of a summary, its end left out."""
        return {"mean_tokens": counted["tokens"] / counted["rows"] - 1}

    def build(self, learned: Learned, training: TrainingSettings) -> nn.Module:  # noqa: ARG002
        """Random weights, by the seed."""
        sizes = self.model.config
        torch.manual_seed(training.seed)
        return Taught(sizes["vocab_size"], sizes["hidden_size"], sizes["start_id"], sizes["end_id"])

    def batch(self, examples: pa.Table, learned: Learned, random: np.random.Generator) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Ids and mask of the texts, ids of the summaries."""
        return self.tensors(examples) | {"targets": torch.from_numpy(padded(examples["target_ids"], NOTHING))}

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor], learned: Learned) -> torch.Tensor:  # noqa: ARG002
        """Through `forward`, where several workers meet."""
        found: torch.Tensor = model(batch["input_ids"], batch["attention_mask"], batch["targets"])
        return found

    def save(self, model: nn.Module, folder: str) -> None:
        """What own_task.py reads: the module's own tensors, the sizes, the tokenizer."""
        from safetensors.torch import save_file

        save_file(model.state_dict(), Path(folder, "model.safetensors"))
        Path(folder, "config.json").write_text(json.dumps(dict(self.model.config)))
        self.tokenizer.save_pretrained(folder)

    def prediction(self, name: str) -> Prediction:
        """The task of own_task.py, which is code of one's own too."""
        annotation = {"name": name, "task": str(TASK), "text": self.data.text, "dtype": "float32"}
        annotation["max_new_tokens"] = self.config.max_target_tokens
        columns = {"gold": str(self.data.label), "predicted": f"{name}_summary"}
        return Prediction([annotation], "texts", columns, code=True)

    def baselines(self, learned: Learned, gold: pa.Table, train: Examples) -> dict[str, pa.Table]:  # noqa: ARG002
        """The first words of the text, as many as a summary has tokens."""
        words = max(1, round(learned["mean_tokens"]))
        return {f"lead_{words}": pa.table({"predicted": baselines.lead(gold["text"], words)})}
