import datetime as dt
import os
import pickle
import uuid
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus import reader
from pipeline.corpus.plan import Span, Unit
from pipeline.corpus.reader import ReadPlan, ReadUnit, UnitReader
from pipeline.corpus.source import Corpus, CorpusSettings, open_corpus
from pipeline.quarantine import Lost, Reason

ROWS = 100
TABLE = pa.table({"id": range(ROWS), "text": [f"text {number}" for number in range(ROWS)]})


@pytest.fixture(autouse=True)
def _no_footers():
    reader._footers.clear()


def put(path: Path, table: pa.Table = TABLE, group_rows: int = 40, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group_rows, **options)


def opened(folder: Path) -> Corpus:
    return open_corpus(CorpusSettings(path=str(folder)))


def whole(corpus: Corpus) -> Unit:
    """Every row of a corpus as one unit."""
    spans = [
        Span(index, number, 0, group.rows)
        for index, fragment in enumerate(corpus.fragments)
        for number, group in enumerate(fragment.row_groups)
    ]
    broken = [Span(index, None, 0, 0) for index, each in enumerate(corpus.fragments) if each.problem is not None]
    return Unit("u", "", (*spans, *broken))


def read(
    corpus: Corpus,
    unit: Unit | None = None,
    columns: tuple[str, ...] | None = None,
    sql: str | None = None,
    accept_changed: bool = False,
    carried: bool = False,
) -> ReadUnit:
    names = tuple(corpus.schema.names) if columns is None else columns
    plan = ReadPlan(corpus.filesystem, corpus.root, corpus.schema, names, sql, corpus.partition, carried)
    travelled = pickle.loads(pickle.dumps(plan))  # noqa: S301 - our own
    unit = unit or whole(corpus)
    found = UnitReader(travelled).read(unit, dict(enumerate(corpus.fragments)), accept_changed)
    found.table.validate(full=True)
    lost = sum(lost.rows or 0 for lost in found.lost)
    assert found.rows_read == found.rows_filtered + found.table.num_rows + lost
    if not accept_changed:
        assert found.rows_read == unit.rows
    return found


def identities(found: ReadUnit) -> list[tuple[str, int]]:
    return list(zip(found.table["_file"].to_pylist(), found.table["_row"].to_pylist(), strict=True))


# ------------------------------------------------------------------------------------------------------------ good


def test_rows_come_in_input_order_with_their_file_and_position(tmp_path):
    put(tmp_path / "a.parquet")
    put(tmp_path / "b.parquet", TABLE.slice(0, 3))
    found = read(opened(tmp_path))
    assert found.table.schema == pa.schema([*TABLE.schema, ("_file", pa.string()), ("_row", pa.int64())])
    assert identities(found) == [("a.parquet", row) for row in range(ROWS)] + [("b.parquet", row) for row in range(3)]
    assert found.table["id"].to_pylist() == [*range(ROWS), 0, 1, 2]
    assert (found.problems, found.lost, found.spans) == ([], [], None)


def test_a_unit_without_rows_has_the_same_schema(tmp_path):
    put(tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    plan = ReadPlan(corpus.filesystem, corpus.root, corpus.schema, ("text",), None, (), False)
    assert read(corpus, Unit("u", "", ()), ("text",)).table.schema == UnitReader(plan).empty().schema
    assert UnitReader(plan).empty().schema.names == ["text", "_file", "_row"]


def test_only_the_columns_asked_for_are_there_and_a_name_with_dots_is_itself(tmp_path):
    table = pa.table({"a": [{"b": 1}], "a.b": [2], "c": [3]})
    put(tmp_path / "a.parquet", table)
    corpus = opened(tmp_path)
    assert read(corpus, columns=("a.b",)).table.to_pylist() == [{"a.b": 2, "_file": "a.parquet", "_row": 0}]
    assert read(corpus, columns=("c", "a")).table.select(["c", "a"]).to_pylist() == [{"c": 3, "a": {"b": 1}}]
    assert identities(read(corpus, columns=())) == [("a.parquet", 0)]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_part_of_a_row_group_is_those_rows(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "parts"
    if not folder.exists():
        put(folder / "a.parquet", group_rows=60)
    corpus = opened(folder)
    group = data.draw(st.sampled_from([0, 1]))
    first, rows = group * 60, (60, 40)[group]
    start = data.draw(st.integers(0, rows - 1))
    stop = data.draw(st.integers(start + 1, rows))
    expected = list(range(first + start, first + stop))
    selected = None
    if data.draw(st.booleans()):
        expected = sorted(data.draw(st.sets(st.sampled_from(expected), min_size=1)))
        selected = tuple(expected)
    found = read(corpus, Unit("u", "", (Span(0, group, start, stop, selected),)))
    assert found.table["_row"].to_pylist() == expected
    assert found.table["id"].to_pylist() == expected


def test_a_divided_row_group_is_decoded_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.rowgroup._BATCH_ROWS", 7)
    table = TABLE.append_column("kind", pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode())
    put(tmp_path / "a.parquet", table, group_rows=ROWS)
    corpus = opened(tmp_path)
    found = read(corpus, Unit("u", "", (Span(0, 0, 5, 61), Span(0, 0, 70, 99, (70, 71, 90, 98)))))
    assert found.table["id"].to_pylist() == [*range(5, 61), 70, 71, 90, 98]
    assert found.table.select(table.column_names).equals(table.take([*range(5, 61), 70, 71, 90, 98]))
    pq.write_table(found.table, tmp_path / "part")


def test_types_and_metadata_of_carried_columns_are_unchanged(tmp_path):
    when = dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC)
    columns = {
        "list": pa.array([[1, None], None, []]),
        "large_list": pa.array([["a"], None, []], pa.large_list(pa.large_string())),
        "vector": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float16(), 2)),
        "struct": pa.array([{"a": [{"b": "x"}]}, None, {"a": None}]),
        "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
        "decimal": pa.array([Decimal("1.20"), None, Decimal("-3.00")], pa.decimal128(20, 2)),
        "wide": pa.array([Decimal("1.20"), None, None], pa.decimal256(60, 2)),
        "at": pa.array([when, None, when], pa.timestamp("ns", "Europe/Rome")),
        "day": pa.array([dt.date(2024, 1, 2), None, None]),
        "time": pa.array([1, None, 2], pa.time64("us")),
        "took": pa.array([1, None, 2], pa.duration("us")),
        "bytes": pa.array([b"\xff\x00", None, b""]),
        "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "small_kind": pa.array(["a", None, "a"]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string())),
        "large": pa.array(["a", None, "b"], pa.large_string()),
        "view": pa.array(["a" * 20, None, "b"], pa.string_view()),
        "views": pa.array([["a" * 20], None, ["b", None]], pa.list_(pa.string_view())),
        "bytes_view": pa.array([b"a" * 20, None, b"b"], pa.binary_view()),
        "list_view": pa.array([[1], None, [2, 3]], pa.list_view(pa.int64())),
        "id": pa.array([uuid.UUID(int=7).bytes, None, uuid.UUID(int=8).bytes], pa.uuid()),
        "json": pa.array(["{}", None, "[]"], pa.json_()),
        "nothing": pa.nulls(3),
        "small": pa.array([1, None, 2], pa.uint8()),
        "flag": pa.array([True, None, False]),
        "not_utf8": pa.array([b"\xff", None, b"a"]).view(pa.string()),
    }
    schema = pa.schema([pa.field(name, each.type, metadata={"unit": name}) for name, each in columns.items()])
    table = pa.table(columns, schema=schema.with_metadata({"made": "by hand"}))
    put(tmp_path / "a.parquet", table)
    put(tmp_path / "b.parquet", table.slice(0, 1))
    corpus = opened(tmp_path)
    plan = ReadPlan(corpus.filesystem, corpus.root, corpus.schema, tuple(table.column_names), None, (), False)
    first = Unit("u", "", (Span(0, 0, 0, 3),))
    for unit, rows in ((first, [0, 1, 2]), (Unit("u", "", (Span(0, 0, 0, 3, (0, 2)),)), [0, 2])):
        found = UnitReader(plan).read(unit, dict(enumerate(corpus.fragments))).table
        for name, column in columns.items():
            assert found.schema.field(name).type == column.type, name
            assert found.schema.field(name).metadata == {b"unit": name.encode()}
            expected = column.view(pa.binary()) if name == "not_utf8" else column
            got = found[name].combine_chunks().view(pa.binary()) if name == "not_utf8" else found[name]
            assert [got[row].as_py() for row in range(len(rows))] == [expected[row].as_py() for row in rows], name
        assert found.schema.metadata == {b"made": b"by hand"}


def test_files_that_drift_become_one_type(tmp_path):
    put(tmp_path / "a.parquet", pa.table({"id": pa.array([1], pa.int8()), "text": pa.array(["x"], pa.string_view())}))
    put(tmp_path / "b.parquet", pa.table({"text": pa.array(["y"]).dictionary_encode(), "extra": [[1.5]]}))
    found = read(opened(tmp_path)).table
    assert found.drop_columns(["_file", "_row"]).to_pylist() == [
        {"id": 1, "text": "x", "extra": None},
        {"id": None, "text": "y", "extra": [1.5]},
    ]


def test_a_value_that_the_common_type_cannot_hold_is_one_rows_problem(tmp_path):
    late = pa.array([0, 10**16, 5, -(10**16), 7], pa.timestamp("ms"))  # nanoseconds end in 2262
    put(tmp_path / "a.parquet", pa.table({"at": late, "n": range(5)}))
    put(tmp_path / "b.parquet", pa.table({"at": pa.array([1], pa.timestamp("ns")), "n": [1]}))
    corpus = opened(tmp_path)
    found = read(corpus)
    assert [(each.row, each.annotation, each.reason) for each in found.problems] == [
        (1, None, Reason.CAST_FAILED),
        (3, None, Reason.CAST_FAILED),
    ]
    assert found.problems[0].detail.startswith(
        "column 'at': Casting from timestamp[ms] to timestamp[ns] would result in"
    )
    assert found.table["at"].is_null().to_pylist() == [False, True, False, True, False, False]
    filtered = read(corpus, sql="n = 1 OR at < TIMESTAMP '1970-01-01 00:00:00.006'", columns=("n",))
    assert filtered.table["n"].to_pylist() == [0, 1, 2, 3, 1], "who cannot be judged is not left out"
    assert [each.row for each in filtered.problems] == [1, 3]


def test_partition_columns_are_constants_of_their_folder(tmp_path):
    put(tmp_path / "k=1/s=a%20b/a.parquet", TABLE.slice(0, 2))
    put(tmp_path / "k=2/s=__HIVE_DEFAULT_PARTITION__/b.parquet", TABLE.slice(0, 1))
    found = read(opened(tmp_path), columns=("s", "id", "k")).table
    assert found.schema.names == ["s", "id", "k", "_file", "_row"]
    assert found["k"].to_pylist() == [1, 1, 2]
    assert found["s"].to_pylist() == ["a b", "a b", None]
    assert found["_file"][0].as_py() == "k=1/s=a%20b/a.parquet"


def test_a_row_that_contradicts_its_path_is_a_problem(tmp_path):
    put(tmp_path / "k=1/a.parquet", pa.table({"k": pa.array([1, 2, None], pa.int32()), "id": [1, 2, 3]}))
    put(tmp_path / "k=2/b.parquet", pa.table({"k": pa.array([2, 7, 2], pa.int32()), "id": [4, 5, 6]}))
    corpus = opened(tmp_path)
    found = read(corpus, columns=("id",))
    assert [(each.row, each.reason, each.detail) for each in found.problems] == [
        (1, Reason.PARTITION_CONTRADICTS, "the path says k=1, the row says 2"),
        (4, Reason.PARTITION_CONTRADICTS, "the path says k=2, the row says 7"),
    ]
    assert found.table["id"].to_pylist() == [1, 2, 3, 4, 5, 6]
    assert [each.row for each in read(corpus, columns=("id",), sql="id IN (3, 5)").problems] == [1]


def test_an_output_of_ours_keeps_its_own_identity(tmp_path):
    own = pa.table({"_row": [7, 8], "id": [1, 2], "_file": ["first/a.parquet", "first/b.parquet"]})
    put(tmp_path / "part.parquet", own)
    found = read(opened(tmp_path), columns=("_file", "id"), carried=True)
    assert found.table.schema.names == ["id", "_file", "_row"]
    assert identities(found) == [("first/a.parquet", 7), ("first/b.parquet", 8)]


# ---------------------------------------------------------------------------------------------------------- filter


@pytest.mark.parametrize("sql", ["id >= 95 OR id = 3", "text = 'text 3'", "id < 0", "id >= 0", "k = 1 AND id = 7"])
@pytest.mark.parametrize("columns", [("text",), ("id", "text"), ("k",)])
def test_the_filter_keeps_matching_rows_and_counts_the_others(tmp_path, sql, columns):
    put(tmp_path / "k=1/a.parquet")
    expected = {
        "id >= 95 OR id = 3": [3, 95, 96, 97, 98, 99],
        "text = 'text 3'": [3],
        "id < 0": [],
        "id >= 0": list(range(ROWS)),
        "k = 1 AND id = 7": [7],
    }[sql]
    found = read(opened(tmp_path), columns=columns, sql=sql)
    assert found.table["_row"].to_pylist() == expected
    assert found.rows_filtered == ROWS - len(expected)
    if "text" in columns:
        assert found.table["text"].to_pylist() == [f"text {row}" for row in expected]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"], ids=str)
def test_nulls_are_filtered_out_and_every_kind_of_text_can_be_asked(tmp_path, kind):
    texts = pa.array(["a", None, "b"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    put(tmp_path / "a.parquet", pa.table({"text": texts}))
    found = read(opened(tmp_path), sql="text <> 'a'")
    assert found.table["text"].to_pylist() == ["b"]
    assert found.table["_row"].to_pylist() == [2]
    assert found.rows_filtered == 2


def test_columns_are_not_decoded_where_no_row_matches(tmp_path):
    put(tmp_path / "a.parquet", group_rows=ROWS, compression="none", use_dictionary=False)
    damage(tmp_path / "a.parquet", column=1)
    corpus = opened(tmp_path)
    assert read(corpus, sql="id < 0").lost == []
    assert read(corpus, sql="id = 0").lost != []


# --------------------------------------------------------------------------------------------------------- damaged


def damage(path: Path, column: int, group: int = 0) -> None:
    """Overwrite the beginning of a column's pages, with the file's fingerprint as it was."""
    info, chunk = path.stat(), pq.read_metadata(path).row_group(group).column(column)
    content = bytearray(path.read_bytes())
    place = chunk.dictionary_page_offset or chunk.data_page_offset
    content[place : place + 20] = b"\xff" * 20
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def test_a_damaged_row_group_is_lost_alone_and_exactly(tmp_path):
    put(tmp_path / "a.parquet")
    damage(tmp_path / "a.parquet", column=1, group=1)
    corpus = opened(tmp_path)
    found = read(corpus)
    [lost] = found.lost
    assert (lost.file, lost.first_row, lost.rows, lost.reason) == ("a.parquet", 40, 40, Reason.DAMAGED_ROW_GROUP)
    assert lost.detail.startswith("row group 1: ")
    assert found.table["_row"].to_pylist() == [*range(40), *range(80, 100)]
    assert read(corpus, columns=("id",)).lost == [], "the damaged column is not asked for"
    parts = Unit("u", "", (Span(0, 1, 10, 20), Span(0, 1, 20, 30, (61, 62, 69))))
    assert [(lost.first_row, lost.rows) for lost in read(corpus, parts).lost] == [(50, 10), (61, 2), (69, 1)]


def test_a_page_whose_checksum_differs_is_damage(tmp_path):
    path = tmp_path / "a.parquet"
    put(path, pa.table({"id": np.arange(50)}), compression="none", use_dictionary=False, write_page_checksum=True)
    info, content = path.stat(), bytearray(path.read_bytes())
    content[content.index(np.arange(20, 30).tobytes())] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    [lost] = read(opened(tmp_path)).lost
    assert (lost.first_row, lost.rows) == (0, 40)
    assert "CRC" in lost.detail


def test_no_damage_ends_a_read(tmp_path):
    chance = np.random.default_rng(7)
    table = TABLE.append_column("list", pa.array([[row] * (row % 3) for row in range(ROWS)]))
    put(tmp_path / "a.parquet", table, column_encoding={"text": "DELTA_BYTE_ARRAY"}, use_dictionary=["id"])
    corpus, good = opened(tmp_path), (tmp_path / "a.parquet").read_bytes()
    info = (tmp_path / "a.parquet").stat()
    for _ in range(150):
        bad = bytearray(good)
        for place in chance.integers(4, len(good), size=chance.choice([1, 5, 50])):
            bad[place] = chance.integers(256)
        (tmp_path / "a.parquet").write_bytes(bad)
        os.utime(tmp_path / "a.parquet", ns=(info.st_atime_ns, info.st_mtime_ns))
        plan = ReadPlan(corpus.filesystem, corpus.root, corpus.schema, tuple(table.column_names), None, (), False)
        reader._footers.clear()
        found = UnitReader(plan).read(whole(corpus), dict(enumerate(corpus.fragments)))
        assert found.rows_read == ROWS


# ---------------------------------------------------------------------------------------------------- after the plan


def test_a_file_that_is_gone_or_rewritten_is_lost_and_its_neighbour_is_not(tmp_path):
    for name in "abc":
        put(tmp_path / f"{name}.parquet", TABLE.slice(0, 3))
    corpus = opened(tmp_path)
    (tmp_path / "a.parquet").unlink()
    put(tmp_path / "b.parquet", TABLE)
    found = read(corpus)
    gone, changed = found.lost
    assert gone == Lost("a.parquet", 0, 3, Reason.FILE_MISSING, "No such file or directory")
    sizes = corpus.fragments[1].size, (tmp_path / "b.parquet").stat().st_size
    assert changed == Lost(
        "b.parquet", 0, 3, Reason.FILE_CHANGED, f"it had {sizes[0]} bytes when it was planned, and has {sizes[1]} now"
    )
    assert identities(found) == [("c.parquet", row) for row in range(3)]


def test_a_file_that_was_touched_counts_as_changed(tmp_path):
    put(tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    os.utime(tmp_path / "a.parquet", ns=(1, 1))
    assert "written again since it was planned" in read(corpus).lost[0].detail


def test_a_file_that_could_not_be_planned_is_told_as_a_whole(tmp_path):
    put(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").touch()
    corpus = opened(tmp_path)
    assert read(corpus).lost == [Lost("b.parquet", None, None, Reason.EMPTY_FILE, "it has 0 bytes")]


def test_a_footer_that_was_damaged_since_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    put(path)
    corpus, info = opened(tmp_path), path.stat()
    path.write_bytes(b"x" * info.st_size)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert {lost.reason for lost in read(corpus).lost} == {Reason.NOT_PARQUET}


def test_retry_reads_a_changed_file_by_positions_and_loses_what_is_beyond_its_end(tmp_path):
    put(tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    put(tmp_path / "a.parquet", TABLE.slice(0, 50), group_rows=15)
    found = read(corpus, accept_changed=True)
    assert found.table["_row"].to_pylist() == list(range(50))
    assert [(lost.first_row, lost.rows, lost.detail) for lost in found.lost] == [
        (50, 30, "the file has only 50 rows now"),
        (80, 20, "the file has only 50 rows now"),
    ]
    some = Unit("u", "", (Span(0, 1, 0, 40, (41, 44, 46, 60, 61)),))
    found = read(corpus, some, accept_changed=True)
    assert found.table["id"].to_pylist() == [41, 44, 46]
    assert [(lost.first_row, lost.rows) for lost in found.lost] == [(60, 2)]
    assert found.spans is None


def test_retry_reads_a_repaired_file_whole_and_tells_what_it_covered(tmp_path):
    put(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    corpus = opened(tmp_path)
    unit = Unit("u", "", (Span(1, None, 0, 0),))
    [lost] = read(corpus, unit, accept_changed=True).lost
    assert (lost.rows, lost.reason) == (None, Reason.TRUNCATED_FILE)
    put(tmp_path / "b.parquet")
    found = read(corpus, unit, accept_changed=True)
    assert identities(found) == [("b.parquet", row) for row in range(ROWS)]
    assert (found.lost, found.spans, found.rows_read) == ([], [("b.parquet", 0, ROWS)], ROWS)


def test_retry_tells_a_repaired_file_whose_columns_do_not_fit(tmp_path):
    put(tmp_path / "a.parquet")
    corpus = opened(tmp_path)
    put(tmp_path / "a.parquet", pa.table({"id": [[1]], "text": ["x"]}))
    assert {lost.reason for lost in read(corpus, accept_changed=True).lost} == {Reason.FILE_CHANGED}
    put(tmp_path / "a.parquet", pa.Table.from_arrays([pa.array([1])] * 2, names=["id", "id"]))
    [lost, *_] = read(corpus, accept_changed=True).lost
    assert (lost.reason, "has 2 columns named 'id'" in lost.detail) == (Reason.FILE_CHANGED, True)


def test_footers_are_parsed_once_and_few_are_kept(tmp_path):
    for name in "abcdef":
        put(tmp_path / f"{name}.parquet", TABLE.slice(0, 2))
    corpus = opened(tmp_path)
    read(corpus)
    assert len(reader._footers) == reader.FOOTERS_KEPT
    kept = list(reader._footers.values())
    read(corpus, Unit("u", "", (Span(5, 0, 0, 2),)))
    assert list(reader._footers.values())[-1] is kept[-1]
