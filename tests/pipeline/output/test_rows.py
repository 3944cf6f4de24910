"""The rows of an output in one table: parts and quarantine, every row once, in the order of the corpus."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.column import ColumnPath
from pipeline.errors import RunError
from pipeline.output import manifest
from pipeline.output.rows import SET_ASIDE, OutputRows, Wanted, read_rows
from pipeline.output.storage import Store
from pipeline.quarantine import Problem, Reason

SECTION = [pa.field("section", pa.string())]
LABEL = {"topic_label": ColumnPath(("topic_label",), pa.string())}


def found(small, wanted: Wanted) -> OutputRows:
    return read_rows(small.store, files_of(small), SECTION, wanted)


def files_of(small) -> list[dict[str, Any]]:
    written = manifest.load(small.store)
    assert written is not None
    files: list[dict[str, Any]] = written["files"]
    return files


def test_every_row_that_was_read_stands_once_in_the_order_of_the_corpus(finished):
    rows = found(finished, Wanted(LABEL))
    pairs = list(zip(rows.table["_file"].to_pylist(), rows.table["_row"].to_pylist(), strict=True))
    assert pairs == sorted(pair for unit in finished.plan.units for pair in finished.pairs(unit))
    assert rows.table.column_names == ["_file", "_row", "topic_label", SET_ASIDE]


def test_rows_of_the_quarantine_tell_what_failed_and_those_of_parts_nothing(finished):
    table = found(finished, Wanted(LABEL)).table
    told = {
        (file, row): failed
        for file, row, failed in zip(*(table[name].to_pylist() for name in ("_file", "_row", SET_ASIDE)), strict=True)
        if failed is not None
    }
    set_aside = [
        finished.pairs(unit)[place] for unit in finished.plan.units for place in finished.blank.get(unit.id, [])
    ]
    assert told == {pair: ["topic"] for pair in set_aside}


def test_what_nobody_could_read_is_counted_and_stands_in_no_table(finished):
    # Ten rows of a damaged row group, and a file of unknown length.
    assert found(finished, Wanted(LABEL)).unreadable == 11


def test_a_partition_column_comes_from_the_folder_also_in_the_quarantine(finished):
    wanted = Wanted(LABEL | {"section": ColumnPath(("section",), pa.string())})
    table = found(finished, wanted).table
    for file, section in zip(table["_file"].to_pylist(), table["section"].to_pylist(), strict=True):
        assert file.startswith(f"section={section}/")


def test_rows_without_what_must_be_present_are_counted(finished):
    only = found(finished, Wanted(LABEL, present="topic_label"))
    assert (only.present, only.absent) == ("topic_label", 0)

    def half(table: pa.Table) -> pa.Table:
        labels = [label if label == "games" else None for label in table["topic_label"].to_pylist()]
        return table.set_column(1, "topic_label", pa.array(labels, pa.string()))

    data = [file["path"] for file in files_of(finished) if file["kind"] == "data"]
    for path in data:
        finished.rewrite(path, half)
    rows = found(finished, Wanted(LABEL, present="topic_label"))
    every = found(finished, Wanted(LABEL))
    assert rows.absent > 0
    assert len(rows.table) + rows.absent == len(every.table)
    assert rows.left_out() == {"topic_label is null": rows.absent, "the row could not be read": 11}


def test_a_row_that_failed_twice_stands_once_with_both(small):
    small.blank = {}
    small.lost = {}
    small.run([], finish=False)
    unit = small.plan.units[0]
    why = [Problem(5, name, Reason.BLANK_TEXT, "told") for name in ("topic", None)]
    small.commit(unit, 1, problems=why)
    small.write_manifest()
    table = found(small, Wanted(LABEL)).table
    assert len(table) == 80
    assert [failed for failed in table[SET_ASIDE].to_pylist() if failed] == [["", "topic"]]


def test_a_field_of_a_struct_and_a_name_with_a_dot_are_told_apart(tmp_path):
    store = Store.at(str(tmp_path))
    kind = pa.struct([("lang", pa.string())])
    part = pa.table(
        {
            "meta": pa.array([{"lang": "de"}, None], kind),
            "meta.lang": ["fr", "it"],
            "_file": ["a", "a"],
            "_row": pa.array([1, 0], pa.int64()),
        }
    )
    with store.create("data/part-a1-1.parquet") as sink:
        pq.write_table(part, sink)
    wanted = Wanted(
        {"nested": ColumnPath(("meta", "lang"), pa.string()), "plain": ColumnPath(("meta.lang",), pa.string())}
    )
    table = read_rows(store, [{"path": "data/part-a1-1.parquet", "kind": "data"}], [], wanted).table
    assert table.select(["_row", "nested", "plain"]).to_pylist() == [
        {"_row": 0, "nested": None, "plain": "it"},
        {"_row": 1, "nested": "de", "plain": "fr"},
    ]


def test_an_output_without_files_gives_a_table_without_rows(tmp_path):
    table = read_rows(Store.at(str(tmp_path)), [], SECTION, Wanted(LABEL)).table
    assert (len(table), table.schema.field("topic_label").type) == (0, pa.string())


def test_a_part_that_is_gone_is_told(finished):
    wanted = Wanted(LABEL)
    first = files_of(finished)[0]["path"]
    finished.store.full(first).unlink()
    with pytest.raises(RunError, match=rf"could not read {first} in .*ask `corpusmill verify`"):
        found(finished, wanted)
