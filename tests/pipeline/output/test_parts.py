"""A unit's commit: every row in one place, the receipt last, and files that every reader takes."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RunError
from pipeline.output import failpoints
from pipeline.output.epoch import begin
from pipeline.output.failpoints import Armed
from pipeline.output.parts import UnitCommit, commit_unit
from pipeline.output.receipts import load
from pipeline.output.storage import Store
from pipeline.quarantine import Lost, Problem, Reason

UNIT = "ab12"
SCHEMA = pa.schema(
    [
        pa.field("text", pa.string(), metadata={"lang": "en"}),
        pa.field("code", pa.dictionary(pa.int8(), pa.string())),
        pa.field("price", pa.decimal128(10, 2)),
        pa.field("when", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("nested", pa.struct([("a", pa.int32()), ("b", pa.list_(pa.float64()))])),
        pa.field("topic_embedding", pa.list_(pa.float32(), 4)),
        pa.field("topic_tokens", pa.int32()),
        pa.field("_file", pa.string()),
        pa.field("_row", pa.int64()),
    ],
    metadata={"owner": "me", "huggingface": '{"info": {"features": {"text": {"dtype": "string", "_type": "Value"}}}}'},
)


def rows(numbers: Sequence[int], file: str = "a.parquet") -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "text": f"text {number}",
                "code": "even" if number % 2 == 0 else "odd",
                "price": None,
                "when": 1_000_000 * number,
                "tags": ["x", None],
                "nested": {"a": number, "b": [0.5]},
                "topic_embedding": [0.5, 0.25, float(number), 0.0],
                "topic_tokens": 3,
                "_file": file,
                "_row": number,
            }
            for number in numbers
        ],
        schema=SCHEMA,
    )


def commit(table: pa.Table | None = None, **changes: object) -> UnitCommit:
    whole = UnitCommit(
        unit=UNIT,
        folder="section=games",
        epoch=1,
        run_id="r1",
        table=rows(range(10)) if table is None else table,
        schema=SCHEMA,
        columns=tuple(SCHEMA.names),
        problems=[],
        tokens=30,
        padding_tokens=2,
        tokens_by_annotation={"topic": 30},
        token_budget={"topic": 1024},
        seconds=0.5,
        footer={"corpusmill": "0.1.0", "models": {"topic": "53aa"}},
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def blank(row: int, annotation: str | None = "topic") -> Problem:
    return Problem(row, annotation, Reason.BLANK_TEXT, "no visible character")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.at(str(tmp_path / "out"))
    begin(store, "r1", "2026-01-02T03:04:05+00:00")
    return store


def table_of(store: Store, path: str) -> pa.Table:
    return pq.read_table(store.full(path), partitioning=None)


def parts_of(store: Store) -> list[str]:
    return [path for folder in ("data", "quarantine") for path in store.list(folder, recursive=True)]


def test_good_rows_go_to_a_part_unchanged(store: Store) -> None:
    receipt = commit_unit(store, commit())
    assert parts_of(store) == ["data/section=games/part-ab12-1.parquet"]
    written = table_of(store, parts_of(store)[0])
    assert written.remove_column(0).equals(rows(range(10)).remove_column(0))
    assert written.schema.remove_metadata().equals(SCHEMA.remove_metadata(), check_metadata=False)
    assert written.schema.field("text").metadata[b"lang"] == b"en"
    assert (receipt.rows_read, receipt.rows_out, receipt.rows_quarantined, receipt.unit_lost) == (10, 10, 0, False)
    assert [(file.kind, file.rows) for file in receipt.files] == [("data", 10)]
    assert load(store, UNIT) == receipt


def test_the_footer_tells_what_made_it_and_no_stale_feature_list(store: Store) -> None:
    commit_unit(store, commit(problems=[blank(1)]))
    for path in parts_of(store):
        metadata = pq.read_schema(store.full(path)).metadata
        told = json.loads(metadata[b"corpusmill"])
        assert (told["unit"], told["epoch"], told["run_id"], told["models"]) == (UNIT, 1, "r1", {"topic": "53aa"})
        assert b"huggingface" not in metadata
    assert pq.read_schema(store.full(parts_of(store)[0])).metadata[b"owner"] == b"me"


def test_metadata_that_was_dropped_on_the_way_comes_back(store: Store) -> None:
    bare = rows(range(3)).replace_schema_metadata(None).cast(SCHEMA.remove_metadata())
    commit_unit(store, commit(bare))
    schema = pq.read_schema(store.full(parts_of(store)[0]))
    assert schema.metadata[b"owner"] == b"me"
    assert schema.field("text").metadata[b"lang"] == b"en"


def test_only_the_columns_asked_for_go_to_data_but_all_to_the_quarantine(store: Store) -> None:
    commit_unit(store, commit(columns=("_file", "_row", "topic_tokens"), problems=[blank(2)]))
    data, quarantine = (table_of(store, path) for path in parts_of(store))
    assert data.column_names == ["_file", "_row", "topic_tokens"]
    assert quarantine.schema.field("input").type.names == [name for name in SCHEMA.names if name[0] != "_"]


def test_a_failed_row_goes_whole_to_the_quarantine_with_an_entry_for_each_failure(store: Store) -> None:
    problems = [blank(7, "topic"), blank(2, None), Problem(7, "mood", Reason.MODEL_FAILED, "ValueError: x")]
    receipt = commit_unit(store, commit(problems=problems))
    data, quarantine = (table_of(store, path) for path in parts_of(store))
    assert data["_row"].to_pylist() == [0, 1, 3, 4, 5, 6, 8, 9]
    entries = quarantine.to_pylist()
    assert [(entry["_row"], entry["annotation"], entry["reason"]) for entry in entries] == [
        (2, None, "blank_text"),
        (7, "mood", "model_failed"),
        (7, "topic", "blank_text"),
    ]
    assert entries[1]["input"]["topic_embedding"] == [0.5, 0.25, 7.0, 0.0]
    assert entries[1]["detail"] == "ValueError: x"
    assert (receipt.rows_out, receipt.rows_quarantined) == (8, 2)
    assert receipt.reasons == {"blank_text": 2, "model_failed": 1}
    assert [(file.kind, file.rows) for file in receipt.files] == [("data", 8), ("quarantine", 3)]


def test_lost_rows_have_an_entry_each_and_lost_files_one(store: Store) -> None:
    lost = [
        Lost("b.parquet", 100, 3, Reason.DAMAGED_ROW_GROUP, "bad page"),
        Lost("c\udcff.parquet", None, None, Reason.NOT_PARQUET, "no magic \udcfe"),
    ]
    receipt = commit_unit(store, commit(rows(range(2)), problems=[blank(0)], lost=lost, rows_filtered=5))
    entries = table_of(store, parts_of(store)[1]).to_pylist()
    assert [(entry["_file"], entry["_row"]) for entry in entries] == [
        ("a.parquet", 0),
        ("b.parquet", 100),
        ("b.parquet", 101),
        ("b.parquet", 102),
        ("c\N{REPLACEMENT CHARACTER}.parquet", None),
    ]
    assert [entry["input"] is None for entry in entries] == [False, True, True, True, True]
    assert (receipt.rows_read, receipt.rows_filtered, receipt.rows_out, receipt.rows_quarantined) == (10, 5, 1, 4)
    assert receipt.reasons == {"blank_text": 1, "damaged_row_group": 3, "not_parquet": 1}
    assert not receipt.unit_lost


def test_a_unit_that_is_lost_whole_gives_a_receipt_without_data(store: Store) -> None:
    lost = [Lost("c.parquet", None, None, Reason.NOT_PARQUET, "no magic")]
    receipt = commit_unit(store, commit(SCHEMA.empty_table(), lost=lost))
    assert [file.kind for file in receipt.files] == ["quarantine"]
    assert receipt.unit_lost
    assert receipt.rows_read == 0


def test_a_unit_whose_rows_were_all_filtered_out_gives_a_receipt_without_files(store: Store) -> None:
    receipt = commit_unit(store, commit(SCHEMA.empty_table(), rows_filtered=12))
    assert (receipt.files, receipt.rows_read, receipt.unit_lost) == ((), 12, False)
    assert parts_of(store) == []


def spoilt(column: pa.Array) -> pa.Array:
    return pa.Array.from_buffers(column.type, len(column), [*column.buffers()[:2], pa.py_buffer(b"\xff" * 1000)])


def test_the_quarantine_of_many_units_is_read_whole_even_with_bytes_that_are_no_text(store: Store) -> None:
    broken = rows(range(3))
    broken = broken.set_column(0, SCHEMA.field(0), spoilt(broken["text"].combine_chunks()))
    tags = broken["tags"].combine_chunks()
    broken = broken.set_column(4, "tags", pa.ListArray.from_arrays(tags.offsets, spoilt(tags.values)))
    commit_unit(store, commit(broken, problems=[Problem(1, "topic", Reason.NOT_UTF8, "byte 0 is 0xff")], unit="cd"))
    commit_unit(store, commit(problems=[blank(2)], lost=[Lost("b.parquet", 0, 1, Reason.FILE_MISSING, "gone")]))
    lost = [Lost("c.parquet", None, None, Reason.EMPTY_FILE, "0 bytes")]
    commit_unit(store, commit(SCHEMA.empty_table(), lost=lost, unit="ef", folder=""))

    folder = store.full("quarantine")
    arrow = pads.dataset(folder).to_table()
    assert arrow.num_rows == 4
    texts = [row["text"] for row in arrow["input"].to_pylist() if row]
    assert sorted(texts) == ["text 2", "\N{REPLACEMENT CHARACTER}" * 6]
    counted = duckdb.execute(f"select reason, input.text from '{folder}/**/*.parquet' order by reason").fetchall()
    assert [reason for reason, _ in counted] == ["blank_text", "empty_file", "file_missing", "not_utf8"]
    frame = pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=False)
    assert frame["input"].struct.field("tags").to_list().count(["\N{REPLACEMENT CHARACTER}", None]) == 1


def test_data_is_read_by_every_reader(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_unit(store, commit())
    commit_unit(store, commit(unit="cd", folder="section=net"))
    folder = store.full("data")
    assert pads.dataset(folder, partitioning="hive").to_table(filter=pads.field("section") == "net").num_rows == 10
    assert duckdb.execute(f"select sum(topic_embedding[3]) from '{folder}/**/*.parquet'").fetchall() == [(90.0,)]
    assert pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)["section"].value_counts().height == 2
    assert pq.read_table(folder).to_pandas().shape == (20, 11)

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{folder}/section=net/*.parquet", cache_dir=str(tmp_path / "cache")
    )
    assert loaded["train"].num_rows == 10
    assert loaded["train"][3]["topic_embedding"] == [0.5, 0.25, 3.0, 0.0]


def test_a_pandas_index_in_the_metadata_does_no_harm(store: Store) -> None:
    frame = rows(range(4)).to_pandas().set_index("text")
    table = pa.Table.from_pandas(frame.drop(columns=["when"]))
    commit_unit(store, commit(table, schema=table.schema, columns=("_file", "_row", "price")))
    assert pq.read_table(store.full("data")).to_pandas().shape[0] == 4


def test_a_torn_page_is_found_by_its_checksum(store: Store) -> None:
    commit_unit(store, commit(rows(range(5_000))))
    path = store.full(parts_of(store)[0])
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 2_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True, partitioning=None)


def test_vectors_are_packed_as_byte_streams_and_large_parts_cut_into_row_groups(store: Store) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(20_000 * 1_024, np.float32)), 1_024)
    table = pa.table({"e": vectors, "_file": ["a"] * 20_000, "_row": range(20_000)})
    commit_unit(store, commit(table, schema=table.schema, columns=("e", "_file", "_row")))
    metadata = pq.read_metadata(store.full(parts_of(store)[0]))
    assert "BYTE_STREAM_SPLIT" in metadata.row_group(0).column(0).encodings
    assert "RLE_DICTIONARY" in metadata.row_group(0).column(1).encodings
    assert metadata.num_row_groups == 2


def test_the_same_commit_gives_the_same_bytes(store: Store, tmp_path: Path) -> None:
    receipt = commit_unit(store, commit(problems=[blank(1)]))
    other = Store.at(str(tmp_path / "other"))
    assert commit_unit(other, pickle.loads(pickle.dumps(commit(problems=[blank(1)])))) == receipt  # noqa: S301


def test_a_unit_that_has_a_receipt_is_left_alone(store: Store) -> None:
    first = commit_unit(store, commit())
    begin(store, "r2", "later")
    assert commit_unit(store, commit(rows(range(3)), epoch=2, run_id="r2")) == first
    assert parts_of(store) == ["data/section=games/part-ab12-1.parquet"]


def test_who_loses_the_race_for_the_receipt_takes_its_files_away(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(store, "r2", "later")
    mine = commit(epoch=2, run_id="r2", problems=[blank(0)])

    class Racing(Store):
        """Another process commits the unit just before our receipt."""

        def write_new(self, path: str, data: bytes) -> bool:
            winner = Store(self.root)
            winner.write(path, replace(load_or_make(winner), epoch=3).to_bytes())
            return super().write_new(path, data)

    def load_or_make(winner: Store):
        return commit_unit(Store.at(winner.root + "-elsewhere"), commit())

    standing = commit_unit(Racing(store.root), mine)
    assert standing.epoch == 3
    assert parts_of(store) == []


def test_an_earlier_epoch_must_not_write(store: Store) -> None:
    begin(store, "r2", "later")
    with pytest.raises(
        RunError, match=r"a run of epoch 1 must not write to .* any more: a run of epoch 2 has taken over"
    ):
        commit_unit(store, commit())
    assert parts_of(store) == []


def test_an_epoch_that_ends_while_the_part_is_written_takes_its_files_away(store: Store) -> None:
    class Overtaken(Store):
        """Another run begins after the quarantine file was written."""

        def create(self, path: str):
            if path.startswith("quarantine"):
                begin(Store(self.root), "r2", "later")
            return super().create(path)

    with pytest.raises(RunError, match="epoch 2 has taken over"):
        commit_unit(Overtaken(store.root), commit(problems=[blank(1)]))
    assert parts_of(store) == []
    assert load(store, UNIT) is None


COMMIT_POINTS = [name for name in failpoints.NAMES if name.split(".")[0] in ("part", "quarantine", "receipt")]


@pytest.mark.parametrize("name", [name for name in COMMIT_POINTS if "delete" not in name])
def test_a_full_disk_at_any_point_leaves_all_or_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(failpoints, "_armed", Armed(name, 1, "ENOSPC", None))
    with pytest.raises(RunError, match="No space left on device"):
        commit_unit(store, commit(problems=[blank(1)]))
    monkeypatch.setattr(failpoints, "_armed", None)
    receipt = load(store, UNIT)
    assert sorted(parts_of(store)) == sorted(file.path for file in receipt.files) if receipt else parts_of(store) == []
    assert store.list("metadata/tmp") == []
    assert commit_unit(store, commit(problems=[blank(1)])).rows_out == 9


def test_a_retry_adds_what_it_recovers(store: Store) -> None:
    lost = [Lost("a.parquet", 10, 5, Reason.DAMAGED_ROW_GROUP, "bad page")]
    lowered = commit(problems=[blank(1), blank(2)], lost=lost, rows_filtered=3, token_budget={"topic": 512})
    previous = commit_unit(store, lowered)
    assert (previous.rows_read, previous.rows_out, previous.rows_quarantined) == (18, 8, 7)
    begin(store, "r2", "later")
    again = rows([1, 2, 10, 11, 12, 13])  # of the five lost rows the filter drops one
    retry = commit(again, epoch=2, run_id="r2", problems=[blank(0)], rows_filtered=1, previous=previous)
    receipt = commit_unit(store, retry)
    assert (receipt.rows_read, receipt.rows_filtered, receipt.rows_out, receipt.rows_quarantined) == (18, 4, 13, 1)
    assert (receipt.epoch, receipt.tokens, receipt.reasons) == (2, 60, {"blank_text": 1})
    assert receipt.token_budget == {"topic": 512}  # that of most of the rows
    assert sorted(file.path for file in receipt.files) == sorted(parts_of(store))
    assert [path.rpartition("/")[2] for path in parts_of(store)] == [
        "part-ab12-1.parquet",
        "part-ab12-2.parquet",
        "part-ab12-2.parquet",
    ]
    assert commit_unit(store, retry) == receipt  # its task executed twice
    begin(store, "r3", "later")
    last = commit_unit(store, commit(rows([1]), epoch=3, run_id="r3", previous=receipt))
    assert (last.rows_out, last.rows_quarantined, last.reasons) == (14, 0, {})
    assert store.list("quarantine", recursive=True) == []


def test_a_retry_of_a_lost_file_tells_what_it_covers(store: Store) -> None:
    lost = [Lost("a.parquet", None, None, Reason.TRUNCATED_FILE, "no footer")]
    previous = commit_unit(store, commit(SCHEMA.empty_table(), lost=lost))
    begin(store, "r2", "later")
    receipt = commit_unit(
        store, commit(epoch=2, run_id="r2", previous=previous, problems=[blank(0)], spans=(("a.parquet", 0, 10),))
    )
    assert (receipt.rows_read, receipt.rows_out, receipt.rows_quarantined, receipt.unit_lost) == (10, 9, 1, False)
    assert receipt.spans == (("a.parquet", 0, 10),)


@pytest.mark.parametrize("name", [*COMMIT_POINTS])
def test_a_retry_stopped_at_any_point_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    previous = commit_unit(store, commit(problems=[blank(1), blank(2)]))
    begin(store, "r2", "later")
    retry = commit(rows([1, 2]), epoch=2, run_id="r2", problems=[blank(0)], previous=previous)
    monkeypatch.setattr(failpoints, "_armed", Armed(name, 1, "EROFS", None))
    try:
        commit_unit(store, retry)
        assert name in ("part.before_delete", "part.after_delete")  # a retry deletes no part
    except RunError:
        assert name not in ("part.before_delete", "part.after_delete")
    monkeypatch.setattr(failpoints, "_armed", None)
    standing = load(store, UNIT)
    assert standing is not None
    assert {file.path for file in standing.files} <= set(parts_of(store))
    rows_of = [table_of(store, file.path)["_row"].to_pylist() for file in standing.files]
    assert sorted(number for numbers in rows_of for number in numbers) == list(range(10))
