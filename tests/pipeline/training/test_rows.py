"""Rows are divided, encoded and left out as the job says, the same each time."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorpusError
from pipeline.training import rows as training_rows
from pipeline.training.examples import Counts, Examples, receipt_of
from pipeline.training.rows import EXAMPLES
from tests.pipeline.training.conftest import Encode, MakeJob, names_of

SPLIT = {"group": "group", "validation": 0.2, "test": 0.3}
BY_COLUMN = {"split": {"column": "subset"}}


def _read(work: training_rows.Work, ending: str) -> list[dict[str, object]]:
    paths = [work.store.full(path) for path in work.store.list(EXAMPLES) if path.endswith(ending)]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def _files(work: training_rows.Work) -> dict[str, bytes]:
    return {path: work.store.read(path) for path in work.store.list(EXAMPLES)}


def test_every_row_is_in_one_subset_or_left_out(make_job: MakeJob, encode: Encode) -> None:
    work, counts = encode(make_job(data={"split": SPLIT}))
    assert sum(counts.rows.values()) == 80
    assert set(counts.rows) == {"train", "validation", "test"}
    names = names_of(work.rows)
    for subset in ("train", "validation"):
        assert len(Examples.of(work.store, subset, names)) == counts.rows[subset]
        assert int(Examples.of(work.store, subset, names).lengths_E.sum()) == counts.tokens[subset]
    assert len(_read(work, "-test.parquet")) == counts.rows["test"]
    assert sum(counts.counted["train"].values()) == counts.rows["train"]


def test_no_group_stands_on_two_sides(make_job: MakeJob, encode: Encode, labeled: Path) -> None:
    work, _ = encode(make_job(data={"split": SPLIT}))
    tested = Counter(row["group"] for row in _read(work, "-test.parquet"))
    there = Counter(pq.read_table(labeled / "a.parquet")["group"].to_pylist())
    assert tested
    assert all(there[group] == count for group, count in tested.items())


def test_a_column_says_where_a_row_belongs(make_job: MakeJob, encode: Encode) -> None:
    work, counts = encode(make_job(data=BY_COLUMN))
    assert counts.rows == {"train": 40, "validation": 20, "test": 20}
    assert {row["subset"] for row in _read(work, "-test.parquet")} == {"test"}


def test_files_may_say_it_too(make_job: MakeJob, encode: Encode, tmp_path: Path) -> None:
    for name, rows in (("one", 9), ("two", 4)):
        table = pa.table(
            {
                "text": [f"ak al {row}" for row in range(rows)],
                "label": ["a", "b", "c"] * (rows // 3) + ["a"] * (rows % 3),
            }
        )
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = {"train": str(tmp_path / "one.parquet"), "test": str(tmp_path / "two.parquet")}
    _, counts = encode(make_job(data={"path": None, "split": {"files": files}}))
    assert counts.rows == {"train": 9, "test": 4}


def test_the_same_unit_gives_the_same_files(make_job: MakeJob, encode: Encode) -> None:
    job = make_job(data={"split": SPLIT})
    work, counts = encode(job)
    first = _files(work)
    again, counts_again = encode(job)
    assert _files(again) == first
    assert counts_again == counts


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Rows of every kind that cannot be used, among good ones."""
    folder = tmp_path / "spoilt"
    folder.mkdir()
    texts = ["ak al am", None, "  ", "an ao", "ap", "aq", "ar as", "ak an", "\x01\x02", "al ao"]
    labels = ["a", "a", "b", None, "b", "a", "b", "a", "b", "b"]
    subsets = ["train", "train", "train", "train", "nowhere", None, "train", "test", "test", "train"]
    pq.write_table(pa.table({"text": texts, "label": labels, "subset": subsets}), folder / "a.parquet")
    return folder


def test_what_cannot_be_used_is_left_out_and_counted_with_its_reason(
    make_job: MakeJob, encode: Encode, spoilt: Path
) -> None:
    work, counts = encode(make_job(data={"path": str(spoilt)} | BY_COLUMN))
    reasons = {"null_text": 1, "blank_text": 1, "null_label": 1, "no_subset": 2, "control_characters": 1}
    assert counts.left_out == reasons
    assert counts.rows == {"train": 3, "test": 1}
    assert counts.to_json() == {"train": 3, "validation": 0, "test": 1, "left_out": 6, "reasons": reasons}
    left = sorted(_read(work, "-left_out.parquet"), key=lambda row: str(row["_row"]))
    assert [row["_row"] for row in left] == [1, 2, 3, 4, 5, 8]
    assert {row["reason"]: row["subset"] for row in left}["null_label"] == "train"
    assert all(row["detail"] for row in left)


def test_a_column_that_is_not_there_is_told(make_job: MakeJob) -> None:
    with pytest.raises(CorpusError, match="nolabel"):
        training_rows.plan_rows(make_job(data={"label": "nolabel"}))


# ------------------------------------------------------------------------------------------------------ unseen labels


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """Two labels that train, and others in rows of all other subsets."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    subsets = ["train", "validation", "test"] * 8
    labels = [
        ("a", "b")[row // 3 % 2] if row % 3 == 0 or row % 4 else ("c", "d")[row % 2] for row in range(len(subsets))
    ]
    lists = [[label] if row % 3 == 0 else ["a", label] for row, label in enumerate(labels)]
    texts = [f"ak al am {row}" for row in range(len(subsets))]
    pq.write_table(pa.table({"text": texts, "label": labels, "lists": lists, "subset": subsets}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize("label", ["label", "lists"])
def test_rows_of_labels_that_no_training_row_has_are_left_out_once_the_training_rows_are_known(
    label: str, make_job: MakeJob, encode: Encode, unseen: Path
) -> None:
    job = make_job(data={"path": str(unseen), "label": label, "unseen_labels": "leave_out"} | BY_COLUMN)
    work, before = encode(job)
    objective = training_rows.started(job, work.model, work.max_tokens, work.rows[0].read.schema)
    learned = objective.learned(before.counted["train"])
    assert learned["labels"] == ["a", "b"]
    assert not training_rows.knows(objective, learned, before.counted["test"], "test")

    settled = replace(work, learned=learned)
    after = _encode_again(settled)
    assert after.rows["train"] == before.rows["train"] == 8
    assert after.counted["train"] == before.counted["train"]
    assert after.left_out == {"unseen_label": sum(before.rows.values()) - sum(after.rows.values())}
    assert after.left_out["unseen_label"] == 4
    for subset in ("validation", "test"):
        assert training_rows.knows(objective, learned, after.counted[subset], subset)
    tested = [row[label] for row in _read(work, "-test.parquet")]
    assert {each if isinstance(each, str) else str(each) for each in tested}.isdisjoint({"c", "d", "['a', 'c']"})
    assert len(tested) == after.rows["test"]
    names = names_of(work.rows)
    validation = Examples.of(work.store, "validation", names)
    assert len(validation) == after.rows["validation"]
    assert int(validation.lengths_E.sum()) == after.tokens["validation"]
    assert {row["reason"] for row in _read(work, "-left_out.parquet")} == {"unseen_label"}

    files = _files(work)
    assert _encode_again(settled) == after  # killed half-way, a unit is simply made again
    assert _files(work) == files


def _encode_again(work: training_rows.Work) -> Counts:
    for source, each in enumerate(work.rows):
        for unit in each.units:
            training_rows.encode_unit(training_rows.Order(source, unit), work)
    found = [receipt_of(work.store, name) for name in names_of(work.rows)]
    return Counts.of(each for each in found if each is not None)


def test_a_subset_of_nothing_but_unseen_labels_has_no_rows(make_job: MakeJob, encode: Encode, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    table = pa.table(
        {"text": ["ak", "al", "am", "an"], "label": ["a", "b", "c", "c"], "subset": ["train"] * 2 + ["test"] * 2}
    )
    pq.write_table(table, folder / "a.parquet")
    job = make_job(data={"path": str(folder), "unseen_labels": "leave_out"} | BY_COLUMN)
    work, before = encode(job)
    objective = training_rows.started(job, work.model, work.max_tokens, work.rows[0].read.schema)
    after = _encode_again(replace(work, learned=objective.learned(before.counted["train"])))
    assert after.rows == {"train": 2, "test": 0}
    assert _read(work, "-test.parquet") == []
