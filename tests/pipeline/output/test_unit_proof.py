"""Every fault that a hand can make in the parts and the quarantine is named, even where all else was made to agree."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.verify import verify

if TYPE_CHECKING:
    from tests.pipeline.output.conftest import Small

A1 = "data/section=games/part-a1-1.parquet"
A2 = "data/section=games/part-a2-1.parquet"
C1 = "data/section=net/part-c1-1.parquet"
QUARANTINE_A1 = "quarantine/section=games/part-a1-1.parquet"


def numbered(table: pa.Table, changes: dict[int, int]) -> pa.Table:
    """The table with other `_row` at these places."""
    rows = table["_row"].to_numpy().copy()
    for place, row in changes.items():
        rows[place] = row
    return table.set_column(table.column_names.index("_row"), "_row", pa.array(rows))


def lose_one_double_another(small: "Small") -> None:
    small.rewrite(A1, lambda table: table.take([0, 0, *range(2, table.num_rows)]))


def number_one_row_as_another(small: "Small") -> None:
    small.rewrite(A1, lambda table: numbered(table, {10: int(table["_row"][11].as_py())}))


def swap_two_rows(small: "Small") -> None:
    small.rewrite(A1, lambda table: numbered(table, {10: 12, 11: 11}))


def take_a_row_of_another_unit(small: "Small") -> None:
    small.rewrite(A1, lambda table: numbered(table, {table.num_rows - 1: 85}))


def take_a_row_of_another_file(small: "Small") -> None:
    other = "section=games/a.parquet"
    small.rewrite(C1, lambda table: table.set_column(3, "_file", pa.array([other] * table.num_rows)))


def have_no_identity(small: "Small") -> None:
    small.rewrite(C1, lambda table: table.drop_columns(["_row"]))


def lose_the_last_row(small: "Small") -> None:
    small.rewrite(A1, lambda table: table.slice(0, table.num_rows - 1))


def lose_the_footer(small: "Small") -> None:
    small.rewrite(A1, lambda table: table.replace_schema_metadata(None))


def tear_a_page(small: "Small") -> None:
    full = small.store.full(A1)
    start = pq.read_metadata(full).row_group(0).column(2).data_page_offset
    data = bytearray(full.read_bytes())
    data[start + 60 : start + 70] = bytes(10)
    full.write_bytes(data)


def tear_a_page_and_reseal(small: "Small") -> None:
    tear_a_page(small)
    small.reseal(A1)


def flip_a_bit(small: "Small") -> None:
    full = small.store.full(A1)
    data = bytearray(full.read_bytes())
    data[len(data) // 2] ^= 1
    full.write_bytes(data)


def truncate(small: "Small") -> None:
    full = small.store.full(A1)
    full.write_bytes(full.read_bytes()[:-100])


def swap_two_parts(small: "Small") -> None:
    first, second = small.store.full(A1), small.store.full(A2)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def swap_two_parts_and_reseal(small: "Small") -> None:
    swap_two_parts(small)
    for path in (A1, A2):
        small.reseal(path, rows=pq.read_metadata(small.store.full(path)).num_rows)


def remove_a_part(small: "Small") -> None:
    small.store.delete(A2)


def make_a_part_unreadable(small: "Small") -> None:
    small.store.delete(A2)
    small.store.full(A2).mkdir()


def move_a_part(small: "Small") -> None:
    small.store.full(A1).rename(small.store.full(A1.replace("games", "net")))


def move_a_part_and_reseal(small: "Small") -> None:
    move_a_part(small)
    receipt = small.receipt("a1")
    moved = (replace(file, path=file.path.replace("data/section=games", "data/section=net")) for file in receipt.files)
    small.put(replace(receipt, files=tuple(moved)))


def edit_the_counts_and_reseal(small: "Small") -> None:
    receipt = small.receipt("a1")
    small.put(replace(receipt, rows_read=79, rows_filtered=1, rows_out=77, rows_quarantined=1))


def remove_a_quarantine_file(small: "Small") -> None:
    small.store.delete(QUARANTINE_A1)


def remove_a_quarantine_file_and_reseal(small: "Small") -> None:
    remove_a_quarantine_file(small)
    receipt = small.receipt("a1")
    small.put(replace(receipt, files=tuple(file for file in receipt.files if file.kind == "data")))


def remove_a_quarantined_row(small: "Small") -> None:
    small.rewrite(QUARANTINE_A1, lambda table: table.slice(0, 1))


def double_a_quarantined_row(small: "Small") -> None:
    small.rewrite(QUARANTINE_A1, lambda table: table.take([0, 0, 1]))


def change_a_reason(small: "Small") -> None:
    reasons = pa.array(["not_utf8", "blank_text"])
    small.rewrite(QUARANTINE_A1, lambda table: table.set_column(3, "reason", reasons))


def quarantine_a_row_that_stands_in_a_part(small: "Small") -> None:
    small.rewrite(QUARANTINE_A1, lambda table: numbered(table, {0: 4}))


def quarantine_a_strange_row(small: "Small") -> None:
    small.rewrite(QUARANTINE_A1, lambda table: numbered(table, {0: 4_000}))


def forget_a_lost_file(small: "Small") -> None:
    small.rewrite("quarantine/part-d1-1.parquet", lambda table: table.set_column(0, "_file", pa.array(["e.parquet"])))


FAULTS: list[tuple[Callable[["Small"], None], str]] = [
    (lose_one_double_another, f"{A1}: its rows do not stand in the order of the input, or one stands there twice"),
    (lose_one_double_another, "unit a1: 1 rows stand in two places, the first is row 0 of section=games/a.parquet"),
    (lose_one_double_another, "unit a1: 1 rows are missing, the first is row 1 of section=games/a.parquet"),
    (number_one_row_as_another, "unit a1: 1 rows stand in two places, the first is row 12 of section=games/a.parquet"),
    (swap_two_rows, f"{A1}: its rows do not stand in the order of the input"),
    (take_a_row_of_another_unit, f"{A1}: 1 rows are not of its unit, the first is row 85 of section=games/a.parquet"),
    (take_a_row_of_another_file, f"{C1}: 19 rows are not of its unit, the first is row 1 of section=games/a.parquet"),
    (have_no_identity, f"{C1}: it does not decode whole: "),
    (lose_the_last_row, "metadata/receipts/a1.json: 78 rows came out, but its parts have 77"),
    (lose_the_last_row, "unit a1: 1 rows are missing, the first is row 79 of section=games/a.parquet"),
    (lose_the_footer, f"{A1}: its footer says unit None, epoch None"),
    (tear_a_page, f"{A1}: its digest is not the one in its receipt"),
    (tear_a_page_and_reseal, f"{A1}: it does not decode whole: "),
    (flip_a_bit, f"{A1}: its digest is not the one in its receipt"),
    (truncate, f"{A1}: it has "),
    (truncate, f"{A1}: it does not decode whole: "),
    (swap_two_parts, f"{A1}: its footer says unit a2, epoch 1"),
    (swap_two_parts, f"{A2}: its footer says unit a1, epoch 1"),
    (swap_two_parts_and_reseal, f"{A1}: 70 rows are not of its unit"),
    (remove_a_part, f"{A2}: it cannot be read: No such file or directory"),
    (make_a_part_unreadable, f"{A2}: it cannot be read: "),
    (move_a_part, f"{A1}: it cannot be read: No such file"),
    (move_a_part, "data/section=net/part-a1-1.parquet: no receipt names this file"),
    (move_a_part_and_reseal, "data/section=net/part-a1-1.parquet: this is no place for a data file of unit a1 in "
        "section=games"),
    (edit_the_counts_and_reseal, "metadata/receipts/a1.json: it read 79 rows, the plan gave it 80"),
    (edit_the_counts_and_reseal, "metadata/receipts/a1.json: 1 rows were filtered out, but the job has no filter"),
    (edit_the_counts_and_reseal, f"{QUARANTINE_A1}: it holds 2 rows, its receipt says 1"),
    (remove_a_quarantine_file, f"{QUARANTINE_A1}: it cannot be read: No such file"),
    (remove_a_quarantine_file_and_reseal, "metadata/receipts/a1.json: it counts quarantined rows and names no"),
    (remove_a_quarantine_file_and_reseal, "unit a1: 2 rows are missing, the first is row 3 of section=games/a.parquet"),
    (remove_a_quarantined_row, f"{QUARANTINE_A1}: it holds 1 rows, its receipt says 2"),
    (remove_a_quarantined_row, "unit a1: 1 rows are missing, the first is row 70 of section=games/a.parquet"),
    (double_a_quarantined_row, f"{QUARANTINE_A1}: the entry of row 3 of section=games/a.parquet stands there 2 times"),
    (change_a_reason, f"{QUARANTINE_A1}: its reasons are "),
    (quarantine_a_row_that_stands_in_a_part, "unit a1: 1 rows stand in two places, the first is row 4 of"),
    (quarantine_a_strange_row, f"{QUARANTINE_A1}: 1 rows are not of its unit, the first is row 4000 of"),
    (forget_a_lost_file, "unit d1: d.parquet could not be read and has no entry"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "told"), FAULTS, ids=[f"{n}-{make.__name__}" for n, (make, _) in enumerate(FAULTS)])
def test_a_fault_is_named(finished: "Small", make: Callable[["Small"], None], told: str) -> None:
    make(finished)
    found = verify(finished.store.root)
    assert any(fault.startswith(told) for fault in found.faults), "\n".join(found.faults)
    assert not found.sound
