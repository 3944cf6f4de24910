"""Examples are read as they were written, in any order, and receipts add up."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.output.storage import Store
from pipeline.training.examples import Counts, Examples, receipt_of
from pipeline.training.rows import EXAMPLES

LENGTHS = [3, 1, 7, 2, 5]


def _write(path: Path, lengths: list[int], first: int) -> None:
    ids = [[first + row] * length for row, length in enumerate(lengths)]
    table = pa.table(
        {
            "input_ids": pa.array(ids, pa.large_list(pa.int32())),
            "weight": pa.array([row + 0.5 for row in range(len(ids))], pa.float32()),
            "target": [f"label {first + row}" for row in range(len(ids))],
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.at(str(tmp_path))
    store.full(EXAMPLES).mkdir(parents=True)
    _write(store.full(f"{EXAMPLES}/0-b-train.arrow"), LENGTHS, 100)
    _write(store.full(f"{EXAMPLES}/0-a-train.arrow"), LENGTHS[::-1], 200)
    return store


def test_the_units_order_is_the_examples_order(store: Store) -> None:
    examples = Examples.of(store, "train", ["0-b", "0-missing", "0-a"])
    assert examples.lengths_E.tolist() == LENGTHS + LENGTHS[::-1]
    assert examples.weights_E.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] * 2
    assert len(examples) == 10
    assert examples.rows([0, 5])["target"].to_pylist() == ["label 100", "label 200"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_any_rows_come_in_the_order_in_which_they_are_asked_for(store: Store, rows: list[int]) -> None:
    examples = Examples.of(store, "train", ["0-b", "0-a"])
    found = examples.rows(np.array(rows, np.intp))
    wanted = [100 + row if row < 5 else 195 + row for row in rows]
    assert [ids[0] for ids in found["input_ids"].to_pylist()] == wanted
    assert [len(ids) for ids in found["input_ids"].to_pylist()] == examples.lengths_E[rows].tolist()


def test_ids_are_counted_over_all_units(store: Store) -> None:
    counts = Examples.of(store, "train", ["0-a", "0-b"]).counts(150)
    assert {token: count for token, count in enumerate(counts.tolist()) if count} == {
        100 + row: length for row, length in enumerate(LENGTHS)
    }


def test_a_subset_without_files_has_no_examples(store: Store) -> None:
    examples = Examples.of(store, "validation", ["0-b", "0-a"])
    assert len(examples) == 0
    assert examples.weights_E.shape == (0,)


def test_a_file_without_examples_is_none_either(store: Store) -> None:
    _write(store.full(f"{EXAMPLES}/0-c-train.arrow"), [], 300)
    assert len(Examples.of(store, "train", ["0-b", "0-c"])) == 5
    assert len(Examples.of(store, "train", ["0-c"])) == 0


def test_a_file_that_cannot_be_read_is_told_with_what_to_do(store: Store) -> None:
    store.full(f"{EXAMPLES}/0-b-train.arrow").write_bytes(b"nonsense")
    with pytest.raises(RunError, match=f"remove {EXAMPLES} and run the same command"):
        Examples.of(store, "train", ["0-b"])


def test_a_receipt_that_cannot_be_read_is_none(store: Store) -> None:
    assert receipt_of(store, "0-b") is None
    store.mark(f"{EXAMPLES}/0-b.json", b'{"rows": ')
    assert receipt_of(store, "0-b") is None
    store.mark(f"{EXAMPLES}/0-b.json", b'{"rows": {}}')
    assert receipt_of(store, "0-b") == {"rows": {}}


counts_by_name = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 100))
receipts = st.lists(
    st.fixed_dictionaries(
        {
            "rows": st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(0, 100)),
            "tokens": st.dictionaries(st.sampled_from(["train", "test"]), st.integers(0, 100)),
            "counted": st.dictionaries(st.sampled_from(["train", "test"]), counts_by_name),
            "left_out": counts_by_name,
            "unreadable": st.integers(0, 9),
            "rows_filtered": st.integers(0, 9),
            "truncated_rows": st.integers(0, 9),
        }
    ),
    max_size=6,
)


@given(receipts, st.randoms(use_true_random=False))
def test_sums_do_not_hang_on_the_order_of_units(made: list[dict[str, object]], chance: object) -> None:
    counts = Counts.of(made)
    shuffled = list(made)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Counts.of(shuffled) == counts
    told = counts.to_json()
    assert told["left_out"] == sum(told["reasons"].values())
    assert told["train"] == sum(each["rows"].get("train", 0) for each in made)  # type: ignore[attr-defined]
