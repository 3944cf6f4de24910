import os
import random

import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.fragments import Footers, read_footers
from pipeline.corpus.listing import walk
from pipeline.corpus.plan import RowGroup
from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

LOCAL = fs.LocalFileSystem()
TABLE = pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"]})


def footers(folder) -> Footers:
    files = walk(LOCAL, str(folder)).files
    short = [
        type(file)(os.path.relpath(file.path, folder), file.size, file.fingerprint, file.problem) for file in files
    ]
    return read_footers(LOCAL, str(folder), short)


def problem_of(path, content: bytes) -> tuple[Reason, str]:
    path.write_bytes(content)
    [fragment] = footers(path.parent).fragments
    assert fragment.problem is not None
    assert fragment.row_groups == ()
    return fragment.problem


@pytest.fixture
def whole(tmp_path):
    pq.write_table(TABLE, tmp_path / "whole")
    return (tmp_path / "whole").read_bytes()


def test_a_footer_gives_row_groups_schema_and_partition(tmp_path):
    (tmp_path / "k=1").mkdir()
    pq.write_table(TABLE, tmp_path / "k=1/a.parquet", row_group_size=2)
    [fragment] = footers(tmp_path).fragments
    assert fragment.path == "k=1/a.parquet"
    assert fragment.partition == (("k", "1"),)
    assert [group.rows for group in fragment.row_groups] == [2, 1]
    assert all(group.bytes > 50 for group in fragment.row_groups)
    assert footers(tmp_path).schemas == (("k=1/a.parquet", TABLE.schema),)


def test_zero_rows_and_zero_row_groups_are_no_problem(tmp_path):
    pq.write_table(TABLE.slice(0, 0), tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "b.parquet", TABLE.schema):
        pass
    rows, groups = footers(tmp_path).fragments
    assert (rows.problem, rows.rows) == (None, 0)
    assert (groups.problem, groups.row_groups) == (None, ())


def test_equal_schemas_are_one_object_whatever_pandas_noted_in_them(tmp_path):
    for number in range(5):
        table = TABLE.replace_schema_metadata({"pandas": str(number)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    schemas = {id(schema): schema for _, schema in footers(tmp_path).schemas}
    assert [schema.metadata for schema in schemas.values()] == [{b"pandas": b"0"}]


def test_files_that_are_not_whole_parquet_have_a_reason_of_their_own(tmp_path, whole):
    path = tmp_path / "x.parquet"
    assert problem_of(path, b"") == (Reason.EMPTY_FILE, "it has 0 bytes")
    assert problem_of(path, b"id,text\n1,a\n") == (
        Reason.NOT_PARQUET,
        "it begins with b'id,t' instead of b'PAR1'",
    )
    assert problem_of(path, b"x") == (Reason.NOT_PARQUET, "it begins with b'x' instead of b'PAR1'")
    assert problem_of(path, b"PARE" + whole[4:-4] + b"PARE") == (Reason.NOT_PARQUET, "it is an encrypted Parquet file")
    assert problem_of(path, whole[:-100]) == (
        Reason.TRUNCATED_FILE,
        f"it begins as a Parquet file, but its {len(whole) - 100} bytes do not end as one",
    )
    assert problem_of(path, b"PAR1")[0] == Reason.TRUNCATED_FILE
    reason, detail = problem_of(path, whole[:-8] + b"\xff\xff\xff\x7f" + b"PAR1")
    assert reason == Reason.DAMAGED_FOOTER
    assert "smaller than the size reported by footer" in detail
    assert problem_of(path, whole[:-30] + b"\xff" * 22 + whole[-8:])[0] == Reason.DAMAGED_FOOTER


def test_a_neighbour_of_a_broken_file_is_unharmed(tmp_path, whole):
    (tmp_path / "a.parquet").write_bytes(whole[:-1])
    (tmp_path / "b.parquet").write_bytes(whole)
    broken, good = footers(tmp_path).fragments
    assert broken.problem is not None
    assert good.row_groups == (RowGroup(3, good.row_groups[0].bytes),)


def test_no_damage_to_a_footer_ends_anything(tmp_path, whole):
    chance = random.Random(7)
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(start, len(whole))] = chance.randrange(256)
        (tmp_path / f"{number}.parquet").write_bytes(damaged)
    found = footers(tmp_path)
    assert len(found.fragments) == 200
    assert len(found.schemas) == sum(fragment.problem is None for fragment in found.fragments)


def test_a_doubled_column_is_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 2, names=["id", "id"]), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"^a.parquet has 2 columns named 'id'; rename them, or name the other files"):
        footers(tmp_path)
