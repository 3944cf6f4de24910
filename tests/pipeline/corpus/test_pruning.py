import datetime as dt
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpus.filter import parse_filter
from pipeline.corpus.plan import Span, Unit
from pipeline.corpus.pruning import matching, prune
from pipeline.corpus.reader import ReadPlan, UnitReader
from pipeline.corpus.row_filter import RowFilter
from pipeline.corpus.source import Corpus, CorpusSettings, open_corpus

NAN = float("nan")


def table_of(start: int, drift: bool) -> pa.Table:
    """Twelve rows in three groups, a null in the second; with `drift` of other types, and some columns missing."""
    numbers = [None if row == 5 else start + row for row in range(12)]
    texts = [None if number is None else f"t{number:03}" for number in numbers]
    columns = {
        "n": pa.array(numbers, pa.int16() if drift else pa.int64()),
        "s": pa.array(texts).dictionary_encode() if drift else pa.array(texts),
        "f": pa.array([NAN if row % 4 == 3 else start + row / 2 for row in range(12)]),
    }
    if not drift:
        columns["d"] = pa.array([dt.date(2024, 1, 1) + dt.timedelta(days=start + row) for row in range(12)])
        columns["c"] = pa.array([Decimal(start + row) / 4 for row in range(12)], pa.decimal128(9, 2))
        columns["b"] = pa.array([start > 30] * 12)
        columns["o"] = pa.array([{"x": start + row} for row in range(12)])
    return pa.table(columns)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    for number, (key, drift) in enumerate(
        [("1", False), ("1", True), ("2", False), ("__HIVE_DEFAULT_PARTITION__", False)]
    ):
        path = folder / f"k={key}" / f"{number}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table_of(number * 20, drift), path, row_group_size=4)
    (folder / "k=2/broken.parquet").touch()
    return open_corpus(CorpusSettings(path=str(folder)))


def pruned(corpus: Corpus, row_filter: RowFilter) -> tuple[dict[int, tuple[int, ...]], int]:
    return prune(corpus.filesystem, corpus.root, corpus.fragments, corpus.schema, row_filter)


def oracle(corpus: Corpus, sql: str) -> dict[int, list[int]]:
    """Matching positions by reading everything."""
    plan = ReadPlan(corpus.filesystem, corpus.root, corpus.schema, (), sql, corpus.partition, False)
    reader, found = UnitReader(plan), {}
    for index, fragment in enumerate(corpus.fragments):
        spans = tuple(Span(index, number, 0, group.rows) for number, group in enumerate(fragment.row_groups))
        rows = reader.read(Unit("u", "", spans), {index: fragment}).table["_row"].to_pylist()
        if rows:
            found[index] = rows
    return found


NUMBER = st.integers(-2, 75)
COMPARISON = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])
ATOMS = st.one_of(
    st.builds("{} {} {}".format, st.sampled_from(["n", "f", "c", "o.x"]), COMPARISON, NUMBER),
    st.builds("s {} 't{:03}'".format, COMPARISON, NUMBER),
    st.builds("d {} DATE '2024-02-{:02}'".format, COMPARISON, st.integers(1, 29)),
    st.builds("k {} {}".format, COMPARISON, st.integers(0, 3)),
    st.builds("{} IN ({}, {})".format, st.sampled_from(["n", "k", "f"]), NUMBER, NUMBER),
    st.builds("{} IS {}NULL".format, st.sampled_from("nsfdcbko"), st.sampled_from(["", "NOT "])),
    st.sampled_from(["b", "s LIKE 't00%'"]),
)
FILTERS = st.recursive(
    ATOMS,
    lambda inner: (
        st.builds("({} AND {})".format, inner, inner)
        | st.builds("({} OR {})".format, inner, inner)
        | st.builds("NOT ({})".format, inner)
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(sql=FILTERS)
def test_no_matching_row_is_pruned(corpus, sql):
    row_filter = parse_filter(sql, corpus.schema)
    kept, rows = pruned(corpus, row_filter)
    expected = oracle(corpus, sql)
    for index, positions in expected.items():
        assert {position // 4 for position in positions} <= set(kept[index])
    fragments = [fragment for fragment in corpus.fragments if fragment.problem is None]
    assert rows == sum(fragment.rows for fragment in fragments) - 4 * sum(map(len, kept.values()))
    found = matching(corpus.filesystem, corpus.root, corpus.fragments, corpus.schema, row_filter, kept)
    assert {index: positions.tolist() for index, positions in found.items()} == expected
    assert all(positions.dtype == np.int64 for positions in found.values())


@pytest.mark.parametrize(
    ("sql", "kept", "rows"),
    [
        # Arrow's bounds do not hold for nulls: a row group that has one in the column is kept.
        ("n = 9", {0: (1, 2), 1: (0, 1, 2), 2: (1,), 3: (1,)}, 20),
        ("s = 't041'", {0: (1,), 1: (0, 1, 2), 2: (0, 1), 3: (1,)}, 20),
        ("k = 2", {0: (), 1: (), 2: (0, 1, 2), 3: ()}, 36),
        ("k IS NULL AND n > 68", {0: (), 1: (), 2: (), 3: (1, 2)}, 40),
        ("c < 1", {0: (0,), 1: (0, 1, 2), 2: (), 3: ()}, 32),
        ("d = DATE '2024-01-05'", {0: (1,), 1: (0, 1, 2), 2: (), 3: ()}, 32),
        ("f < 1", {0: (0, 1, 2), 1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}, 0),
    ],
)
def test_folders_and_statistics_prune(corpus, sql, kept, rows):
    files = [index for index, fragment in enumerate(corpus.fragments) if fragment.problem is None]
    found, pruned_rows = pruned(corpus, parse_filter(sql, corpus.schema))
    assert {files.index(index): groups for index, groups in found.items()} == kept
    assert pruned_rows == rows


def test_a_file_that_went_is_kept_for_the_reader_to_tell(tmp_path):
    for name in "ab":
        pq.write_table(table_of(0, drift=False), tmp_path / f"{name}.parquet", row_group_size=4)
    corpus = open_corpus(CorpusSettings(path=str(tmp_path)))
    Path(tmp_path / "a.parquet").unlink()
    row_filter = parse_filter("n = 1", corpus.schema)
    kept, rows = pruned(corpus, row_filter)
    assert (kept, rows) == ({0: (0, 1, 2), 1: (0, 1)}, 4)
    found = matching(corpus.filesystem, corpus.root, corpus.fragments, corpus.schema, row_filter, kept)
    assert {index: positions.tolist() for index, positions in found.items()} == {1: [1]}
