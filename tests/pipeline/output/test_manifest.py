"""The manifest says what was read, used and written, and when it was changed since."""

import hashlib
from typing import TYPE_CHECKING

import pytest

from pipeline.errors import OutputError
from pipeline.output import manifest

if TYPE_CHECKING:
    from tests.pipeline.output.conftest import Small


def test_it_says_what_was_read_used_and_written(finished: "Small") -> None:
    value = manifest.load(finished.store)
    assert value is not None
    assert value["epoch"] == 1
    assert [(run["epoch"], run["run_id"]) for run in value["runs"]] == [(1, "r")]
    assert value["corpus"]["root"] == "/corpus"
    assert value["corpus"]["files"][0] == {"path": "section=games/a.parquet", "fingerprint": "900-1", "rows": 100}
    assert value["corpus"]["files"][3]["rows"] is None
    assert value["models"]["topic"]["digest"] == "53aa"
    assert {"python", "pyarrow", "ray", "torch", "transformers"} <= set(value["versions"])
    assert value["totals"]["rows_out"] == 167
    assert value["totals"]["reasons"] == {"blank_text": 3, "damaged_row_group": 10, "not_parquet": 1}
    on_disk = [path for folder in ("data", "quarantine") for path in finished.store.list(folder, recursive=True)]
    assert [file["path"] for file in value["files"]] == on_disk
    assert {file["kind"] for file in value["files"]} == {"data", "quarantine"}
    assert value["plan"] == hashlib.sha256(finished.store.read("metadata/plan.json")).hexdigest()
    assert value["receipts"]["a1"] == hashlib.sha256(finished.store.read("metadata/receipts/a1.json")).hexdigest()


def test_there_is_none_before_the_end(small: "Small") -> None:
    assert manifest.load(small.store) is None


def test_an_edited_one_is_refused(finished: "Small") -> None:
    data = finished.store.read("metadata/manifest.json")
    finished.store.write("metadata/manifest.json", data.replace(b'"rows_out":167', b'"rows_out":168'))
    with pytest.raises(
        OutputError, match=r"metadata/manifest.json in .*: it was changed .*run the same command to have"
    ):
        manifest.load(finished.store)
