"""One run at a time, whatever dies and whatever the clock says; and what killed runs left goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import LeaseError, OutputError, RunError
from pipeline.output import epoch, lease
from pipeline.output.lease import Lease, sweep
from pipeline.output.receipts import PartFile, Receipt
from pipeline.output.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "out"))


HOLD = """
import subprocess, sys
from pipeline.output.lease import Lease
from pipeline.output.storage import Store
lease = Lease.acquire(Store.at(sys.argv[1]), "other")
child = subprocess.Popen(["sleep", "30"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(store: Store) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lease and has started a program of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_and_told_who_runs(store: Store, other: tuple[subprocess.Popen[str], int]) -> None:
    with pytest.raises(
        LeaseError,
        match=rf"another run holds {store.root}: process {other[0].pid} on .* \(run other\) since 20.*; wait for",
    ):
        Lease.acquire(store, "mine")
    assert epoch.newest(store) == 1
    standing = lease.holder(store)
    assert standing is not None
    assert (standing.pid, standing.run_id) == (other[0].pid, "other")


def test_the_lease_outlives_no_killed_process_even_when_its_children_live(
    store: Store, other: tuple[subprocess.Popen[str], int]
) -> None:
    other[0].kill()
    other[0].wait()
    os.kill(other[1], 0)  # the child lives
    assert lease.holder(store) is None
    with Lease.acquire(store, "mine") as mine:
        assert mine.epoch == 2


def test_the_same_process_cannot_take_it_twice(store: Store) -> None:
    with Lease.acquire(store, "one"):
        with pytest.raises(LeaseError, match="run one"):
            Lease.acquire(store, "two")
        assert lease.holder(store) is not None
    assert lease.holder(store) is None
    with Lease.acquire(store, "two") as again:
        assert again.epoch == 2


def test_it_is_free_after_an_exception(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), Lease.acquire(store, "one"):
        _ = 1 / 0
    assert lease.holder(store) is None


def test_a_holder_that_wrote_nothing_of_itself_is_told_so(store: Store) -> None:
    with Lease.acquire(store, "one"):
        store.write("metadata/holder.json", b"{")
        with pytest.raises(LeaseError, match="process 0 on an unknown host"):
            Lease.acquire(store, "two")


def test_nobody_holds_what_is_not_there(store: Store) -> None:
    assert lease.holder(store) is None


def test_a_folder_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match=r"could not open metadata/lease in .*; check that output.path can be written"):
        Lease.acquire(store, "one")


def test_epochs_only_grow_and_remember_their_runs(store: Store) -> None:
    for number in (1, 2, 3):
        with Lease.acquire(store, f"r{number}") as held:
            assert held.epoch == number
    assert [(run.epoch, run.run_id) for run in epoch.runs(store)] == [(1, "r1"), (2, "r2"), (3, "r3")]


def test_a_deleted_epoch_file_does_not_set_the_count_back(store: Store) -> None:
    store.write("quarantine/a=b/part-ab-7.parquet", b"")
    with Lease.acquire(store, "one") as held:
        assert held.epoch == 8


def test_an_edited_epoch_file_is_refused(store: Store) -> None:
    with Lease.acquire(store, "one"):
        pass
    store.write("metadata/epoch.json", store.read("metadata/epoch.json").replace(b'"epoch":1', b'"epoch":0'))
    with pytest.raises(
        OutputError, match=r"metadata/epoch.json in .*: it was changed since .*; restore it, or delete it"
    ):
        Lease.acquire(store, "two")
    assert lease.holder(store) is None
    with pytest.raises(OutputError, match="restore it, or delete it"):
        epoch.check_fence(store, 1)


def receipt(*paths: str) -> dict[str, Receipt]:
    files = tuple(PartFile(path, "data", 1, 1, "") for path in paths)
    return {"ab": Receipt("ab", 1, "r", files, 1, 0, 1, 0, False, {}, 0, 0, {}, {}, 0.0)}


def test_orphans_and_temporary_files_go_and_the_rest_stays(store: Store) -> None:
    kept = ["data/a=b/part-ab-1.parquet", "data/report.txt", "metadata/receipts/ab.json", "metadata/plan.json"]
    kept.append("metadata/tmp/attempts-3/ab.read.0")
    gone = [
        "data/a=b/part-ab-2.parquet",
        "data/part-cd-1.parquet",
        "quarantine/part-cd-1.parquet",
        "metadata/tmp/12-ab",
    ]
    gone.append("metadata/tmp/attempts-2/ab.read.0")
    for path in kept + gone:
        store.mark(path, b"x")
    notes = sweep(store, receipt("data/a=b/part-ab-1.parquet"), 3)
    assert all(store.exists(path) for path in kept)
    assert not any(store.exists(path) for path in gone)
    assert not store.exists("metadata/tmp/attempts-2")
    assert notes == [
        "data/report.txt is no file of corpusmill: left alone, but whoever reads the folder meets it",
        "removed 3 files of units that a killed run had not committed: data/a=b/part-ab-2.parquet, "
        "data/part-cd-1.parquet, quarantine/part-cd-1.parquet",
    ]
    assert sweep(store, receipt("data/a=b/part-ab-1.parquet"), 3) == notes[:1]


def test_a_long_list_of_orphans_is_cut(store: Store) -> None:
    for number in range(5):
        store.mark(f"data/part-{number}-1.parquet", b"x")
    assert sweep(store, {}, 2)[0].endswith("data/part-2-1.parquet and 2 more")
