"""Verify passes on what the modules write, and names every fault in what stands beside the parts."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.plan import Span, Unit
from pipeline.errors import OutputError
from pipeline.output import manifest, planfile
from pipeline.output.epoch import begin
from pipeline.output.receipts import load
from pipeline.output.storage import Store
from pipeline.output.verify import Report, verify

if TYPE_CHECKING:
    from tests.pipeline.output.conftest import Small

A1 = "data/section=games/part-a1-1.parquet"
RECEIPT_A1 = "metadata/receipts/a1.json"


def report(small: "Small") -> Report:
    return verify(small.store.root)


def test_a_finished_output_is_sound(finished: "Small") -> None:
    found = report(finished)
    assert (found.faults, found.unfinished) == ((), ())
    assert found.sound
    assert (found.units_done, found.units_total, found.files) == (4, 4, 6)
    assert (found.rows_read, found.rows_filtered, found.rows_out, found.rows_quarantined) == (180, 0, 167, 13)


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no output of corpusmill"):
        verify(str(tmp_path))


def test_an_interrupted_output_is_unfinished_without_a_fault(small: "Small") -> None:
    small.run(small.plan.units[:2], finish=False)
    small.store.delete(RECEIPT_A1.replace("a1", "gone"))
    with small.store.create("data/section=net/part-c1-1.parquet") as sink:
        sink.write(b"an orphan of the unit that ran when the process was killed")
    found = report(small)
    assert found.faults == ()
    assert found.unfinished == (
        "2 of 4 units have no receipt: metadata/receipts/c1.json, metadata/receipts/d1.json",
        "1 files are of units without a receipt, and do not count: data/section=net/part-c1-1.parquet",
        "there is no metadata/manifest.json: the run did not come to its end",
    )
    assert not found.finished


def test_a_run_that_began_after_the_manifest_leaves_it_unfinished(finished: "Small") -> None:
    begin(finished.store, "r2", "later")
    found = report(finished)
    assert found.faults == ()
    assert found.unfinished == ("metadata/manifest.json is of run 1, and run 2 did not come to its end",)


def test_a_retried_output_is_sound(finished: "Small") -> None:
    begin(finished.store, "r2", "later")
    units = {unit.id: unit for unit in finished.plan.units}
    finished.blank, finished.lost = {"a1": [1]}, {}
    games, net, broken = (finished.plan.fragments[number].path for number in (0, 2, 3))
    finished.commit(units["a1"], 2, [(games, 3), (games, 70)], previous=load(finished.store, "a1"))
    lost_rows = [(net, row) for row in (0, *range(20, 30))]
    finished.commit(units["c1"], 2, lost_rows, previous=load(finished.store, "c1"))
    repaired = [(broken, row) for row in range(5)]
    finished.commit(units["d1"], 2, repaired, previous=load(finished.store, "d1"), spans=((broken, 0, 5),))
    finished.write_manifest()
    found = report(finished)
    assert (found.faults, found.unfinished) == ((), ())
    assert (found.rows_read, found.rows_out, found.rows_quarantined) == (185, 184, 1)


def test_rows_that_a_filter_dropped_are_not_missed(small: "Small") -> None:
    small.plan = replace(small.plan, job={**small.plan.job, "corpus": {"path": "in", "filter": "section = 'games'"}})
    small.run(small.plan.units[1:])
    unit = small.plan.units[0]
    small.commit(unit, 1, small.pairs(unit)[:50], rows_filtered=30)
    small.write_manifest()
    found = report(small)
    assert (found.faults, found.rows_filtered) == ((), 30)


def test_a_sample_is_gapless_in_what_was_selected(small: "Small") -> None:
    unit = Unit("e1", "section=games", (Span(0, 0, 5, 58, (5, 17, 57)), Span(0, 1, 3, 31, (63, 90))))
    small.plan = replace(small.plan, units=(unit,))
    small.blank = {"e1": [1]}
    small.run()
    found = report(small)
    assert (found.faults, found.rows_read, found.rows_quarantined) == ((), 5, 1)
    small.store.delete("metadata/receipts/e1.json")
    small.commit(unit, 1, [pair for pair in small.pairs(unit) if pair[1] != 57])
    assert "unit e1: 1 rows are missing, the first is row 57 of section=games/a.parquet" in report(small).faults


def test_rows_that_brought_their_identity_are_unique_over_the_output(small: "Small") -> None:
    small.plan = replace(small.plan, identity_carried=True, units=small.plan.units[:2])
    small.blank = {"a1": [0]}
    begin(small.store, "r1", "now")
    planfile.save(small.store, small.plan)
    first = [("x.parquet", 10 * row) for row in range(80)]
    second = [("x.parquet", 10 * row) for row in range(10_000, 10_070)]
    small.commit(small.plan.units[0], 1, first)
    small.commit(small.plan.units[1], 1, second)
    small.write_manifest()
    assert report(small).sound
    small.store.delete("metadata/receipts/a2.json")
    small.commit(small.plan.units[1], 1, [("x.parquet", 0), *second[1:-1], ("x.parquet", 790)])
    told = [re.search(r"(\d+) rows stand in two places", fault) for fault in report(small).faults]
    # One stands in the other part, one in its quarantine; a file that is read later tells of all that it doubles.
    assert sum(int(found[1]) for found in told if found) == 2


def test_bytes_that_are_no_utf8_in_a_carried_column_are_no_fault(small: "Small") -> None:
    raw = pa.array([b"\xff"] * 80).cast(pa.binary())
    spoilt = pa.Array.from_buffers(pa.string(), 80, raw.buffers())
    small.run(small.plan.units[1:], finish=False)
    unit = small.plan.units[0]
    import_rows = small_rows(small, unit).set_column(0, "text", spoilt)
    small.commit(unit, 1, table=import_rows)
    small.write_manifest()
    assert report(small).sound


def small_rows(small: "Small", unit: Unit) -> pa.Table:
    """The unit's rows as a commit of them wrote them elsewhere."""
    elsewhere = replace(small, store=Store.at(small.store.root + "-elsewhere"), blank={})
    elsewhere.commit(unit, 1)
    return pq.read_table(elsewhere.store.full(A1), partitioning=None)


def add_a_part(small: "Small") -> None:
    small.store.full("data/section=games/part-a1-9.parquet").write_bytes(small.store.read(A1))


def add_a_part_of_no_unit(small: "Small") -> None:
    small.store.full("data/part-ff-1.parquet").write_bytes(small.store.read(A1))


def add_a_stray_file(small: "Small") -> None:
    small.store.full("data/section=games/.notes.txt").write_text("mine")


def remove_a_receipt(small: "Small") -> None:
    small.store.full(RECEIPT_A1).unlink()


def remove_a_receipt_and_reseal(small: "Small") -> None:
    remove_a_receipt(small)
    small.write_manifest()


def edit_a_receipt(small: "Small") -> None:
    full = small.store.full(RECEIPT_A1)
    full.write_bytes(full.read_bytes().replace(b'"rows_out":78', b'"rows_out":79'))


def edit_a_receipt_and_seal_it(small: "Small") -> None:
    receipt = small.receipt("a1")
    small.store.write(RECEIPT_A1, replace(receipt, rows_out=79).to_bytes())


def copy_a_receipt(small: "Small") -> None:
    small.store.full(RECEIPT_A1).write_bytes(small.store.read("metadata/receipts/a2.json"))


def add_a_receipt_of_no_unit(small: "Small") -> None:
    receipt = small.receipt("a1")
    small.put(replace(receipt, unit="ff", files=()))


def set_a_receipt_to_a_later_run(small: "Small") -> None:
    receipt = small.receipt("a1")
    small.put(replace(receipt, epoch=5))


def edit_the_plan(small: "Small") -> None:
    small.store.write("metadata/plan.json", small.store.read("metadata/plan.json").replace(b'"in"', b'"on"'))


def remove_a_unit_from_the_plan(small: "Small") -> None:
    planfile.save(small.store, replace(small.plan, units=small.plan.units[1:]))


def let_units_overlap(small: "Small") -> None:
    units = (small.plan.units[0], replace(small.plan.units[1], spans=(Span(0, 1, 19, 40), Span(1, 0, 0, 50))))
    planfile.save(small.store, replace(small.plan, units=(*units, *small.plan.units[2:])))


def remove_the_manifest(small: "Small") -> None:
    small.store.full("metadata/manifest.json").unlink()


def edit_the_manifest(small: "Small") -> None:
    full = small.store.full("metadata/manifest.json")
    full.write_bytes(full.read_bytes().replace(b'"rows_out":167', b'"rows_out":168'))


def edit_the_manifest_and_seal_it(small: "Small") -> None:
    value = manifest.load(small.store)
    assert value is not None
    value["totals"]["rows_out"] = 168
    manifest.save(small.store, value)


def forget_a_receipt_in_the_manifest(small: "Small") -> None:
    value = manifest.load(small.store)
    assert value is not None
    del value["receipts"]["a1"]
    manifest.save(small.store, value)


def edit_the_epoch(small: "Small") -> None:
    small.store.write(
        "metadata/epoch.json", small.store.read("metadata/epoch.json").replace(b'"epoch":1', b'"epoch":2')
    )


FAULTS: list[tuple[Callable[["Small"], None], str]] = [
    (add_a_part, "data/section=games/part-a1-9.parquet: no receipt names this file"),
    (add_a_part_of_no_unit, "data/part-ff-1.parquet: no receipt names this file"),
    (add_a_stray_file, "data/section=games/.notes.txt: no receipt names this file"),
    (remove_a_receipt, "metadata/receipts/a1.json: it is gone, metadata/manifest.json names it"),
    (edit_a_receipt, "metadata/receipts/a1.json: it was changed since it was written"),
    (edit_a_receipt_and_seal_it, "metadata/receipts/a1.json: its digest is not the one in metadata/manifest.json"),
    (edit_a_receipt_and_seal_it, "metadata/receipts/a1.json: it read 80 rows, but filtered, out and quarantined are "
        "81"),
    (edit_a_receipt_and_seal_it, "metadata/receipts/a1.json: 79 rows came out, but its parts have 78"),
    (copy_a_receipt, "metadata/receipts/a1.json: it is the receipt of unit a2"),
    (add_a_receipt_of_no_unit, "metadata/receipts/ff.json: the plan has no such unit"),
    (set_a_receipt_to_a_later_run, "metadata/epoch.json: the last run is 1, but a receipt is of run 5"),
    (edit_the_plan, "metadata/plan.json in "),
    (remove_a_unit_from_the_plan, "metadata/receipts/a1.json: the plan has no such unit"),
    (remove_a_unit_from_the_plan, "metadata/plan.json: its digest is not the one in metadata/manifest.json"),
    (let_units_overlap, "metadata/plan.json: two units claim the same rows of section=games/a.parquet"),
    (edit_the_manifest, "metadata/manifest.json in "),
    (edit_the_manifest_and_seal_it, "metadata/manifest.json: what it says of totals is not what the plan"),
    (forget_a_receipt_in_the_manifest, "metadata/receipts/a1.json: metadata/manifest.json does not name it"),
    (edit_the_epoch, "metadata/epoch.json in "),
]  # fmt: skip


@pytest.mark.parametrize(("make", "told"), FAULTS, ids=[f"{n}-{make.__name__}" for n, (make, _) in enumerate(FAULTS)])
def test_a_fault_is_named(finished: "Small", make: Callable[["Small"], None], told: str) -> None:
    make(finished)
    found = report(finished)
    assert any(fault.startswith(told) for fault in found.faults), "\n".join(found.faults)
    assert not found.sound


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (remove_a_receipt_and_reseal, "1 of 4 units have no receipt: metadata/receipts/a1.json"),
        (remove_the_manifest, "there is no metadata/manifest.json: the run did not come to its end"),
    ],
)
def test_what_is_missing_makes_it_unfinished(finished: "Small", make: Callable[["Small"], None], told: str) -> None:
    make(finished)
    found = report(finished)
    assert told in found.unfinished
    assert not found.sound
