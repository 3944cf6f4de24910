"""A job of kind `finetune`, its objective `classify`: so many steps on examples of one label each, and their rate."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from jobs.bench.arithmetic import encoder_flop
from jobs.bench.workload import Measured, Workload
from pipeline.errors import JobError

_NEVER = 1_000_000
"""Steps between two validations or checkpoints: what is measured is steps."""

_BACKWARD = 3
"""A step is worth so many forward passes: its gradients are two products for each one."""


@dataclass(frozen=True, slots=True)
class Training(Workload):
    """Optimizer steps from the same model on the same examples, in an order of each contender's own."""

    name = "training"
    peers: ClassVar[Mapping[str, str]] = {
        "transformers.Trainer": "transformers_trainer:Plain",
        "transformers.Trainer bf16": "transformers_trainer:Grouped",
    }

    examples: str  # a folder, which our first run fills
    batch_rows: int
    learning_rate: float

    @classmethod
    def of(cls, job: Any, folder: str, rows: int, examples: str, max_tokens: int, cores: int) -> Self:
        """Raises JobError: another objective, or fewer rows than a few steps take."""
        if job.objective.name != "classify":
            raise JobError(
                f"objective {job.objective.name!r} is nothing that bench can hold against its peers: name a job that "
                "learns to classify"
            )
        further = {"lora": job.training.lora, "freeze": job.training.freeze, "text_pair": job.data.text_pair}
        if named := [option for option, value in further.items() if value]:
            raise JobError(f"peers have no word for {', '.join(named)}: leave it out")
        batch = job.training.batch_rows
        steps = rows // batch
        if steps < (least := LEAST_STEPS):
            raise JobError(f"{rows} rows are {steps} steps of {batch}, and at least {least} tell something: -n more")
        return cls(folder, steps * batch, max_tokens, cores, examples, batch, job.training.learning_rate)

    @property
    def steps(self) -> int:
        """Of our own run; a slow peer takes fewer."""
        return self.rows // self.batch_rows

    def ours(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The job with so many steps, no gate, and nothing held back to judge by."""
        found = {key: value for key, value in document.items() if key not in ("gate", "output")}
        training = {key: value for key, value in (found.get("training") or {}).items() if key != "epochs"}
        training |= {"steps": self.steps, "checkpoint_every": _NEVER, "validate_every": _NEVER}
        data, split = dict(found["data"]), dict(found["data"].get("split") or {})
        if "files" not in split and "column" not in split:
            data["split"] = {**split, "validation": 0.0, "test": 0.0}
        return {**found, "training": training, "data": data}

    def our_run(self, told: Mapping[str, Any], output: Path) -> tuple[Measured, list[Any] | None]:
        """As metrics.json has it; the first run leaves its examples to the peers."""
        if not Path(self.examples).exists():
            shutil.copytree(output / "metadata/examples", self.examples)
        trained = json.loads((output / "metrics.json").read_text())["training"]
        return Measured(
            rows=told["steps"] * self.batch_rows,
            tokens=trained["tokens"],
            padded_tokens=trained["tokens"] + trained["padding_tokens"],
            seconds=trained["seconds"],
            first_row_seconds=None,  # no run tells when its first step was done
            flop=self.flop(trained["tokens"]),
        ), None

    def flop(self, tokens: int) -> float | None:
        """Multiplications and additions for so many tokens of the examples, as they are on average."""
        from datasets import Dataset

        lengths_E: npt.NDArray[np.int64] = np.concatenate(
            [[len(ids) for ids in Dataset.from_file(file)["input_ids"]] for file in self.files()]
        ).astype(np.int64)
        forward = encoder_flop(self.config(), lengths_E)
        return None if forward is None else _BACKWARD * forward * tokens / float(lengths_E.sum())

    def files(self) -> list[str]:
        """Arrow files of the examples that train."""
        return sorted(str(path) for path in Path(self.examples).glob("*-train.arrow"))


LEAST_STEPS = 10
"""A warm-up of a few steps is left out of a peer's rate."""
