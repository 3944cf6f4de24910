"""A run that is killed at any write, fsync, replace or delete is taken up by the next one, and the proof holds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.output import failpoints

POINTS = [
    name
    for name in failpoints.NAMES
    if name.endswith(("before_write", "before_replace", "after_replace", "_delete"))  # the rest leave the same files
]

# One process without threads forks, for each point: a killed run, the next run and its proof, and a retry likewise.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

import pandas  # pyarrow looks for it at its first table: once here, not in each fork
sys.path.insert(0, sys.argv[1])
from conftest import PLAN, Small, NET, BROKEN
from pipeline.output import failpoints, planfile
from pipeline.output.failpoints import Armed
from pipeline.output.lease import Lease, sweep
from pipeline.output.receipts import load_all
from pipeline.output.storage import Store
from pipeline.output.verify import verify
from pipeline.quarantine import Lost, Reason


def in_child(work):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    os.close(writer)
    told = os.fdopen(reader).read()
    return told and json.loads(told), os.waitpid(child, 0)[1]


def run(small, retry):
    with Lease.acquire(small.store, "r") as lease:
        if not planfile.exists(small.store):
            planfile.save(small.store, small.plan)
        receipts, _ = load_all(small.store)
        sweep(small.store, receipts, lease.epoch)
        for unit in small.plan.units:
            if unit.id not in receipts:
                small.commit(unit, lease.epoch)
            elif retry and receipts[unit.id].reasons == {"blank_text": 2}:
                pairs = [small.pairs(unit)[row] for row in (3, 70)]
                small.blank = {"a1": [1]}
                small.commit(unit, lease.epoch, pairs, previous=receipts["a1"])
        small.write_manifest()


def armed(name, work):
    def killed():
        failpoints._armed = Armed(name, 1, "kill", None)
        return work()
    return killed


def ended(small, retry):
    run(small, retry)
    report = verify(small.store.root)
    return [report.sound, *report.faults, *report.unfinished]


for name in json.loads(sys.argv[3]):
    lost = {"c1": [Lost(NET, 20, 10, Reason.DAMAGED_ROW_GROUP, "bad page")],
            "d1": [Lost(BROKEN, None, None, Reason.NOT_PARQUET, "no magic")]}
    small = Small(Store.at(f"{sys.argv[2]}/{name}"), lost=lost, blank={"a1": [3, 70], "c1": [0]})
    for orphan in ("data/part-ff-1.parquet", "quarantine/part-ff-1.parquet", "metadata/tmp/1-2"):
        small.store.mark(orphan, b"left by a killed run")
    result = {"name": name, "killed": [], "proofs": [], "lost": []}
    for retry in (False, True):
        result["killed"].append(in_child(armed(name, lambda: run(small, retry)))[1] == signal.SIGKILL)
        before = {path: small.store.read(path) for path in small.store.list("metadata/receipts")}
        result["proofs"].append(in_child(lambda: ended(small, retry))[0])
        result["lost"] += [] if retry else [path for path in before if small.store.read(path) != before[path]]
    print(json.dumps(result), flush=True)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    here, root = str(Path(__file__).parent), str(tmp_path_factory.mktemp("kills"))
    command = [sys.executable, "-c", SCRIPT, here, root, json.dumps(POINTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_point_killed_a_run_or_its_retry(results: list[dict[str, Any]]) -> None:
    assert [result["name"] for result in results if any(result["killed"])] == POINTS


def test_what_was_committed_stayed_as_it_was(results: list[dict[str, Any]]) -> None:
    assert [result for result in results if result["lost"]] == []


def test_the_next_run_ends_well_and_proves_it(results: list[dict[str, Any]]) -> None:
    assert [result for result in results if result["proofs"] != [[True], [True]]] == []
