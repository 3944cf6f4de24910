"""Killed at any write and at any moment, the same command goes on, and the output is an undisturbed run's.

`CORPUSMILL_KILLS=100` runs as many kills as a release wants, `CORPUSMILL_SEED` others; the default is what CI has time
for. With `pytest -s` each kill is told.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.output.failpoints import NAMES
from pipeline.output.layout import DATA, QUARANTINE
from pipeline.output.verify import verify

KILLS = int(os.environ.get("CORPUSMILL_KILLS", "4"))
SEED = int(os.environ.get("CORPUSMILL_SEED", "20261121"))
UNITS, ROWS_A_UNIT = 24, 40
FAILING = 5
"""Every such unit has a row for the quarantine."""
IN_FLIGHT = 2 * 2 + 2 + 2  # two units for each of two actors, and those being read and committed
AGENT = r"^\S+ -I -S \S*sleeping_agent\.py"
COUNTING = Path(__file__).with_name("counting.py")


class Job:
    """One job on one output, and the processes that run it."""

    def __init__(self, folder: Path, corpus: Path, pause: float) -> None:
        self.folder, self.output, self.log = folder, folder / "out", folder / "computed.log"
        self.file, self.counter = folder / "job.yaml", folder / "failpoint.counter"
        self.node_died = False  # by a kill of one of the agents that a Ray node does not outlive
        folder.mkdir()
        annotation = {"name": "size", "task": str(COUNTING), "text": "text", "log": str(self.log), "pause": pause}
        job = {
            "kind": "annotate",
            "allow_code": True,
            "corpus": {"path": str(corpus)},
            "annotations": [annotation],
            "output": {"path": str(self.output)},
            "cluster": {"actors": 2},
        }
        self.file.write_text(yaml.safe_dump(job))

    def start(self, failpoint: str | None = None) -> subprocess.Popen[str]:
        self.node_died = False
        environment = dict(os.environ)
        if failpoint is not None:
            self.counter.unlink(missing_ok=True)
            environment |= {"CORPUSMILL_FAILPOINT": failpoint, "CORPUSMILL_FAILPOINT_COUNTER": str(self.counter)}
        command = [str(Path(sys.executable).with_name("corpusmill")), "run", str(self.file), "--json"]
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def receipts(self) -> int:
        return len(list(self.output.glob("metadata/receipts/*.json")))

    def computed(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def computed_shards(self) -> list[int]:
        """The shard of each unit that was computed, in order; a unit is a shard here."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [int(shard) for line in lines for shard in re.findall(r"text 0 of shard (\d+)", line)]

    def committed_shards(self) -> set[int]:
        """The shards whose receipt stands."""
        told = [json.loads(path.read_text()) for path in self.output.glob("metadata/receipts/*.json")]
        return {int(shard) for each in told for shard in re.findall(r"shard=(\d+)", each["files"][0]["path"])}

    def points_to_come(self) -> list[str]:
        """`receipt.before_fsync:3`: each point that the next run passes, and when; elsewhere a kill hits nobody."""
        left = set(range(UNITS)) - self.committed_shards()
        failing = sum(shard % FAILING == 0 for shard in left)
        begun = (self.output / "metadata/plan.json").exists()
        writes = {"part": len(left), "quarantine": failing, "receipt": len(left), "plan": 0 if begun else 1}
        receipts = [json.loads(path.read_text()) for path in self.output.glob("metadata/receipts/*.json")]
        named = {file["path"] for receipt in receipts for file in receipt["files"]}
        deletes = {
            kind: sum(
                str(path.relative_to(self.output)) not in named for path in self.output.glob(f"{folder}/*/part-*")
            )
            for kind, folder in {"part": DATA, "quarantine": QUARANTINE}.items()
        } | {
            "temporary": len(left) + sum(path.is_file() for path in self.output.glob("metadata/tmp/**/*")),
        }
        points = []
        for name in NAMES:
            times = deletes if name.endswith("_delete") else writes
            points += [f"{name}:{nth + 1}" for nth in range(min(12, times.get(name.partition(".")[0], 1)))]
        return points

    def rows(self) -> list[tuple[object, ...]]:
        pattern = f"{self.output}/data/**/*.parquet"
        relation = duckdb.sql(f"SELECT * FROM read_parquet('{pattern}', hive_partitioning=true) ORDER BY _file, _row")
        assert relation is not None
        return relation.fetchall()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for unit in range(UNITS):
        inside = folder / f"shard={unit:02}"
        inside.mkdir()
        texts = [f"text {row} of shard {unit}" + " and more" * (row % 3) for row in range(ROWS_A_UNIT)]
        texts[3] = "please FAIL" if unit % FAILING == 0 else texts[3]
        pq.write_table(pa.table({"text": texts, "number": list(range(ROWS_A_UNIT))}), inside / "a.parquet")
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    job = Job(tmp_path_factory.mktemp("undisturbed") / "job", corpus, pause=0.0)
    process = job.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(job.rows()) == UNITS * ROWS_A_UNIT - 5
    return job.rows()


def test_any_number_of_kills_leaves_the_output_of_an_undisturbed_run(
    corpus: Path, undisturbed: list[tuple[object, ...]], tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    kills = outputs = 0
    while kills < KILLS:
        outputs += 1
        job = Job(tmp_path / f"job-{outputs}", corpus, pause=0.15)
        killed = _run_to_the_end(job, chance, KILLS - kills)
        kills += killed
        assert job.rows() == undisturbed
        assert job.computed() <= UNITS + killed * IN_FLIGHT
        report = verify(str(job.output))
        assert report.sound
        assert report.finished


def _run_to_the_end(job: Job, chance: random.Random, kills_left: int) -> int:
    """Kill run after run of one job until one comes to its end; the kills that hit."""
    kills = before = 0
    while True:
        failpoint, kill = _choose(job, chance) if kills < kills_left else (None, _nobody)
        committed, computed = job.committed_shards(), len(job.computed_shards())
        process = job.start(failpoint)
        hit = kill(job, process, chance)
        kills += hit
        # A worker's death ends no run: as likely as not the next one dies in the same.
        while hit and kills < kills_left and not job.node_died and chance.random() < 0.5:
            hit = _worker(r".")(job, process, chance)
            kills += hit
        output, errors = process.communicate(timeout=180)
        assert "Traceback" not in errors
        assert not committed.intersection(job.computed_shards()[computed:])  # what has a receipt is never done again
        whom = failpoint or getattr(kill, "__name__", "")
        print(f"{whom}: {'hit' if hit else 'missed'}, {job.receipts()} of {UNITS} receipts, exit {process.returncode}")
        if process.returncode == 0:
            assert json.loads(output.splitlines()[-1])["units_skipped"] >= before
            return kills
        # Ray itself ends the driver of an embedded cluster whose node dies, as it does with an agent of the node.
        assert process.returncode == (1 if job.node_died else -signal.SIGKILL), errors
        assert "the same command goes on" in errors
        assert job.receipts() >= before
        before = job.receipts()


Kill = Callable[[Job, subprocess.Popen[str], random.Random], bool]
"""Wait for the moment and kill; whether somebody was hit."""


def _choose(job: Job, chance: random.Random) -> tuple[str | None, Kill]:
    """A point of a write, or a moment and whom to hit."""
    if chance.random() < 0.5:
        point = chance.choice(job.points_to_come())
        return f"{point}:kill", partial(_at_failpoint, int(point.rpartition(":")[2]))
    return None, chance.choice([_driver, _worker(r"Map\(|MapWorker|AnnotateBlocks"), _worker(r".")])


def _nobody(job: Job, process: subprocess.Popen[str], chance: random.Random) -> bool:
    return False


def _at_failpoint(nth: int, job: Job, process: subprocess.Popen[str], chance: random.Random) -> bool:
    while process.poll() is None and (not job.counter.exists() or job.counter.stat().st_size < nth):
        time.sleep(0.02)
    return job.counter.exists() and job.counter.stat().st_size >= nth


def _driver(job: Job, process: subprocess.Popen[str], chance: random.Random) -> bool:
    if not _wait_for_receipts(job, process, chance):
        return False
    process.kill()
    return True


def _worker(name: str) -> Kill:
    def kill(job: Job, process: subprocess.Popen[str], chance: random.Random) -> bool:
        if not _wait_for_receipts(job, process, chance):
            return False
        whom = rf"^ray::.*({name})" + (f"|{AGENT}" if name == "." else "")
        workers = [each for each in _descendants(process.pid) if re.search(whom, each[1])]
        if not workers:
            return False
        pid, title = chance.choice(workers)
        job.node_died = re.search(AGENT, title) is not None
        os.kill(pid, signal.SIGKILL)
        return True

    return kill


def _wait_for_receipts(job: Job, process: subprocess.Popen[str], chance: random.Random) -> bool:
    """Until it has begun, with its child for last words, and some more receipts stand; False where it ended before."""
    wanted = min(UNITS - 1, job.receipts() + chance.randint(0, UNITS // 2))
    while job.receipts() < wanted or not _descendants(process.pid):
        if process.poll() is not None:
            return False
        time.sleep(0.02)
    time.sleep(chance.random() * 0.3)
    return process.poll() is None


def _descendants(root: int) -> list[tuple[int, str]]:
    """(pid, title) of every process below one, by /proc."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    entries = [line.split(None, 2) for line in listed.splitlines()]
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, *title in entries:
        children.setdefault(int(parent), []).append((int(pid), title[0] if title else ""))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [pid for pid, _ in below]
    return found
