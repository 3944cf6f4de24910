import re

import pyarrow as pa
import pytest

from pipeline.corpus.hive import NULL, partition_fields, partition_of, scalar_of, value_of
from pipeline.errors import CorpusError


def fields_of(*paths: str):
    return partition_fields([(path, partition_of(path)) for path in paths])


def test_only_folders_with_a_key_and_an_equals_sign_are_partitions():
    assert partition_of("a=1/raw/b=x/c=2.parquet") == (("a", "1"), ("b", "x"))
    assert partition_of("=1/part.parquet") == ()
    assert partition_of("part.parquet") == ()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-20", "0"], pa.int64()),
        (["1", NULL], pa.int64()),
        (["01", "2"], pa.string()),
        (["1", "x"], pa.string()),
        (["-0"], pa.string()),
        ([str(2**63 - 1)], pa.int64()),
        ([str(2**63)], pa.string()),
        ([NULL], pa.string()),
        ([""], pa.string()),
    ],
)
def test_a_partition_column_is_an_integer_only_where_every_value_is_one_and_written_the_one_way(values, kind):
    assert fields_of(*[f"k={value}/a.parquet" for value in values]) == (pa.field("k", kind),)


def test_values_are_unquoted_and_hives_null_is_null():
    partition = partition_of(f"na%20me=a%2Fb%3D/k={NULL}/bad=%FF/a.parquet")
    assert value_of(partition, "na me") == "a/b="
    assert value_of(partition, "k") is None
    assert value_of(partition, "bad") == "%FF"
    assert value_of(partition, "absent") is None
    assert scalar_of(partition_of("k=7/a.parquet"), pa.field("k", pa.int64())) == pa.scalar(7)
    assert scalar_of(partition_of("k=7/a.parquet"), pa.field("k", pa.string())) == pa.scalar("7")


def test_keys_may_come_in_any_order():
    assert [field.name for field in fields_of("a=1/b=2/x.parquet", "b=1/a=2/x.parquet")] == ["a", "b"]


def test_files_of_other_keys_are_refused_and_both_are_named():
    message = "the files differ in their hive folders: a=1/x.parquet has a=, y.parquet has none; put every file under"
    with pytest.raises(CorpusError, match=re.escape(message)):
        fields_of("a=1/x.parquet", "y.parquet")


def test_a_key_that_stands_twice_is_refused():
    with pytest.raises(CorpusError, match=r"the hive key 'a' stands twice in the path of a=1/a=2/x.parquet"):
        fields_of("a=1/a=2/x.parquet")


def test_no_files_have_no_partition():
    assert partition_fields([]) == ()
