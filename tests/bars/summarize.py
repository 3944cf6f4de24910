"""How fast `summarize` is, beside a plain loop of `module.generate`, and whether its texts are the same: one table.

    python tests/bars/summarize.py ../shared/data/debian ../shared/models/t5-small-titles --rows 1024 --rounds 2

The plain loop: float32, batches of 8 in the corpus's order, as many threads as there are cores. The job: nothing tuned,
bfloat16 where `dtype: auto` takes it; `marginal` is between that many rows and four times as many. CPU seconds of both
on one thread, without Ray, tell the same on a machine that others use. No test: a script whose figures stand in release
notes until `corpusmill bench` exists.
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

PREFIX = "summarize: "
NEW_TOKENS = 24
WINDOW_TOKENS = 512
PLAIN_ROWS = 256
PLAIN_BATCH_ROWS = 8
NEAR = 1e-4  # two best logits nearer than this are a tie that rounding decides


def write_job(folder: Path, corpus: str, model: str) -> Path:
    """The default job: nothing is tuned."""
    options = {"prefix": PREFIX, "max_new_tokens": NEW_TOKENS, "max_tokens": WINDOW_TOKENS}
    annotation = {"name": "s", "task": "summarize", "text": "description", "model": str(Path(model).resolve())}
    job = {
        "kind": "annotate",
        "corpus": {"path": str(Path(corpus).resolve())},
        "annotations": [annotation | options],
        "output": {"path": "out"},
    }
    path = folder / "summarize.yaml"
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


def summaries(output: Path) -> pa.Table:
    """The rows of an output in the corpus's order."""
    table = pa.concat_tables(pq.read_table(part) for part in sorted((output / "data").glob("*.parquet")))
    return table.sort_by([("_file", "ascending"), ("_row", "ascending")])


def plain(model: str, texts: list[str], threads: int, batch_rows: int, answers: Any) -> None:
    """`module.generate` in float32, batch by batch: texts, least gaps of the two best logits, wall and CPU seconds."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    module = transformers.AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    found: list[str] = []
    gaps: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for at in range(0, len(texts), batch_rows):
            prompts = [PREFIX + text for text in texts[at : at + batch_rows]]
            inputs = tokenizer(prompts, truncation=True, max_length=WINDOW_TOKENS, padding=True, return_tensors="pt")
            alone = batch_rows == 1
            told: Any = module.generate(
                **inputs, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True, output_scores=alone
            )
            found += tokenizer.batch_decode(told.sequences, skip_special_tokens=True)
            if alone:
                gaps.append(min(float(-scores.topk(2).values.diff()) for scores in told.scores))
    answers.put((found, gaps, time.perf_counter() - began, time.process_time() - cpu))


def ours(model: str, texts: list[str], dtype: str, answers: Any) -> None:
    """The task as one actor with one thread holds it: CPU seconds."""
    from pipeline.models.device import default_budget
    from pipeline.models.loading import load
    from pipeline.models.reference import ModelSettings, pin
    from pipeline.tasks.base import Texts
    from pipeline.tasks.summarize import Summarize

    settings: dict[str, Any] = {"name": "s", "task": "summarize", "text": "description", "model": {"ref": model}}
    settings |= {"prefix": PREFIX, "max_new_tokens": NEW_TOKENS, "max_tokens": WINDOW_TOKENS}
    pinned = pin(ModelSettings(ref=model))
    task = Summarize(Summarize.Config.model_validate(settings), pinned)
    assert task.needs is not None
    task.start(load(pinned, task.needs, dtype, "cpu", threads=1, token_budget=default_budget("cpu")))
    cpu = time.process_time()
    task.annotate(Texts(texts))
    answers.put(time.process_time() - cpu)


def apart(work: Any, *arguments: Any) -> Any:
    """What it answers in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=work, args=(*arguments, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def main() -> None:
    """Print a line a round, the medians, and what differs in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        job = write_job(Path(name), options.corpus, model)
        rounds = []
        for _ in range(options.rounds):
            small = command(job, options.rows)
            texts = summaries(job.parent / "out")["description"].to_pylist()
            texts = texts[:: max(1, len(texts) // PLAIN_ROWS)][:PLAIN_ROWS]
            *_, seconds, _ = apart(plain, model, texts, threads, PLAIN_BATCH_ROWS)
            large = command(job, 4 * options.rows)
            *_, plain_cpu = apart(plain, model, texts, 1, PLAIN_BATCH_ROWS)
            loop, marginal = len(texts) / seconds, 3 * options.rows / (large["seconds"] - small["seconds"])
            figures = {
                "plain_docs_per_second": loop,
                "marginal_docs_per_second": marginal,
                "whole_docs_per_second": 4 * options.rows / large["seconds"],
                "times_plain": marginal / loop,
                "whole_times_plain": 4 * options.rows / large["seconds"] / loop,
                "cpu_times_plain": plain_cpu / apart(ours, model, texts, small["annotations"]["s"]["dtype"]),
                "load": os.getloadavg()[0],
            }
            rounds.append(figures)
            print({key: round(value, 2) for key, value in figures.items()}, flush=True)
        print("medians", {key: round(float(np.median([each[key] for each in rounds])), 2) for key in rounds[0]})
        command(job, options.rows, "annotations.0.dtype=float32")
        table = summaries(job.parent / "out")
        mine = table["s_summary"].to_pylist()
        theirs, gaps, *_ = apart(plain, model, table["description"].to_pylist(), threads, 1)
    other = [gap for one, two, gap in zip(mine, theirs, gaps, strict=True) if one != two]
    near = sum(gap < NEAR for gap in other)
    print(f"float32: {len(mine):,} texts, {len(other)} not those of generate row by row, {near} of these at near ties")


if __name__ == "__main__":
    main()
