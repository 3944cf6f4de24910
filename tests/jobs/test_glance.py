"""What people see of an output: some rows with what was added, and how many rows each label got."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import glance as module
from jobs.glance import ROWS_SHOWN, glance
from pipeline.job import AnnotateJob
from pipeline.output import planfile
from pipeline.output.planfile import Plan
from pipeline.output.storage import Store

COUNTING = str(Path(__file__).parent.parent / "chaos/counting.py")
CORPUS = pa.schema([("id", pa.int64()), ("title", pa.string()), ("text", pa.string()), ("section", pa.string())])


def _job(*names: str, text: str = "text") -> AnnotateJob:
    annotations = [{"name": name, "task": COUNTING, "text": text} for name in names]
    document = {"allow_code": True, "corpus": {"path": "in"}, "annotations": annotations, "output": {"path": "out"}}
    return AnnotateJob.model_validate(document)


def _output(folder: Path, *parts: pa.Table) -> tuple[Store, dict[str, Any]]:
    store = Store.at(str(folder / "out"))
    planfile.save(store, Plan(1, "0", {}, "/", CORPUS, ("section",), False, {}, (), (), 0))
    files = []
    for number, part in enumerate(parts):
        path = f"data/section=a/part-{number}-1.parquet"
        with store.create(path) as sink:
            pq.write_table(part, sink)
        files.append({"path": path, "kind": "data", "rows": part.num_rows})
    files.append({"path": "quarantine/part-0-1.parquet", "kind": "quarantine", "rows": 3})
    return store, {"files": files}


def _part(labels: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    rows = range(len(labels))
    return pa.table(
        {
            "id": list(rows),
            "title": [f"title {row}" for row in rows],
            "text": [f"text {row}" for row in rows],
            "size_chars": [6 for _ in rows],
            "size_label": pa.array(labels, kind),
            "size_tokens": [1 for _ in rows],
            "size_truncated": [False for _ in rows],
            "_file": ["a" for _ in rows],
            "_row": list(rows),
        }
    )


def test_texts_stand_before_what_was_added_and_machine_columns_are_left_out(tmp_path: Path) -> None:
    store, manifest = _output(tmp_path, _part(["short"] * 20))
    table, _ = glance(store, manifest, _job("size", text="{section}: {title}: {text}"))
    assert table is not None
    assert (table.column_names, table.num_rows) == (["title", "text", "size_chars", "size_label"], ROWS_SHOWN)


def test_a_text_that_another_annotation_added_stands_where_it_was_added_and_once(tmp_path: Path) -> None:
    again = pa.array(["a label"] * 20)
    store, manifest = _output(tmp_path, _part(["short"] * 20).append_column("again_label", again))
    table, _ = glance(store, manifest, _job("size", "again", text="{size_label} {text}"))
    assert table is not None
    assert table.column_names == ["text", "size_chars", "size_label", "again_label"]


def test_labels_are_counted_over_all_parts_the_most_frequent_first(tmp_path: Path) -> None:
    store, manifest = _output(tmp_path, _part(["b", "a", None]), _part(["a", "c", "c", "a"], pa.large_string()))
    _, counts = glance(store, manifest, _job("size"))
    assert list(counts["size"].items()) == [("a", 3), ("c", 2), ("(none)", 1), ("b", 1)]


def test_an_annotation_without_labels_has_no_counts(tmp_path: Path) -> None:
    store, manifest = _output(tmp_path, _part(["a"]).drop_columns(["size_label"]))
    assert glance(store, manifest, _job("size"))[1] == {}


def test_labels_that_are_lists_are_not_counted(tmp_path: Path) -> None:
    store, manifest = _output(tmp_path, _part([["a"], []], pa.list_(pa.string())))
    table, counts = glance(store, manifest, _job("size"))
    assert table is not None
    assert counts == {}


def test_a_sidecar_shows_what_was_added_alone(tmp_path: Path) -> None:
    store, manifest = _output(tmp_path, _part(["a"]).drop_columns(["id", "title", "text"]))
    table, _ = glance(store, manifest, _job("size"))
    assert table is not None
    assert table.column_names == ["size_chars", "size_label"]


def test_an_output_without_parts_has_nothing_to_show(tmp_path: Path) -> None:
    assert glance(*_output(tmp_path), _job("size")) == (None, {})


def test_a_large_output_shows_rows_and_counts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_COUNTED", 1)
    store, manifest = _output(tmp_path, _part(["a", "b"]))
    table, counts = glance(store, manifest, _job("size"))
    assert table is not None
    assert counts == {}
