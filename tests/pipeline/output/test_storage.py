"""Files of an output are whole or not there, and every refusal of the disk is told in words."""

import errno
import hashlib
import pickle
from pathlib import Path

import pytest

from pipeline.errors import OutputError, RunError
from pipeline.output import failpoints
from pipeline.output.failpoints import Armed
from pipeline.output.storage import Store

PART = "data/section=games/part-ab-1.parquet"
RECEIPT = "metadata/receipts/ab.json"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "out"))


def leftovers(store: Store) -> list[str]:
    return store.list("metadata/tmp")


def test_a_part_is_visible_only_when_whole(store: Store) -> None:
    with store.create(PART) as sink:
        sink.write(b"half")
        sink.flush()
        assert not store.exists(PART)
        sink.write(b" whole")
    assert store.read(PART) == b"half whole"
    assert (sink.bytes, sink.sha256) == (10, hashlib.sha256(b"half whole").hexdigest())
    assert store.size(PART) == 10
    assert leftovers(store) == []


def test_an_exception_in_the_block_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.create(PART) as sink:
        sink.write(b"half" * (1 // len(leftovers(store)[1:])))
    assert not store.exists(PART)
    assert leftovers(store) == []


def test_write_replaces_and_write_new_does_not(store: Store) -> None:
    assert store.write_new(RECEIPT, b"first")
    assert not store.write_new(RECEIPT, b"second")
    assert store.read(RECEIPT) == b"first"
    store.write(RECEIPT, b"third")
    assert store.read(RECEIPT) == b"third"
    assert leftovers(store) == []


def test_write_new_is_exclusive_where_there_are_no_hard_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", Armed("receipt.before_replace", 1, "EPERM", None))
    assert store.write_new(RECEIPT, b"first")
    monkeypatch.setattr(failpoints, "_armed", Armed("receipt.before_replace", 1, "EPERM", None))
    assert not store.write_new(RECEIPT, b"second")
    assert store.read(RECEIPT) == b"first"
    assert leftovers(store) == []


def test_files_are_listed_and_deleted(store: Store) -> None:
    store.write(PART, b"1")
    store.write("data/part-cd-1.parquet", b"2")
    assert store.list("data") == ["data/part-cd-1.parquet"]
    assert store.list("data", recursive=True) == ["data/part-cd-1.parquet", PART]
    store.delete(PART)
    store.delete(PART)
    assert store.list("data", recursive=True) == ["data/part-cd-1.parquet"]
    assert store.list("nowhere") == []


def test_a_missing_file_is_none_or_told(store: Store) -> None:
    assert store.find(RECEIPT) is None
    with pytest.raises(RunError, match=r"could not read metadata/receipts/ab.json in .*: No such file"):
        store.read(RECEIPT)
    with pytest.raises(RunError, match="could not read"):
        store.size(RECEIPT)
    with pytest.raises(RunError, match="could not read"):
        store.open_input(RECEIPT)


def test_open_input_serves_arrow(store: Store) -> None:
    store.write(PART, b"bytes")
    with store.open_input(PART) as file:
        assert file.read() == b"bytes"


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "folder_fsync"])
def test_a_full_disk_is_told_with_the_free_space(store: Store, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(failpoints, "_armed", Armed(f"part.before_{step}", 1, "ENOSPC", None))
    with pytest.raises(
        RunError,
        match=r"could not write data/section=games/part-ab-1.parquet in .*out: No space left on device \([\d,]+ bytes "
        r"free\); what is committed stays: run the same command to go on",
    ):
        store.write(PART, b"data")
    assert leftovers(store) == []


def test_a_folder_made_read_only_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_armed", Armed("receipt.before_replace", 1, "EROFS", None))
    with pytest.raises(RunError, match="Read-only file system; what is committed stays") as caught:
        store.write_new(RECEIPT, b"data")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EROFS
    assert not store.exists(RECEIPT)


def test_a_file_where_a_folder_should_be_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="could not write"):
        store.write(RECEIPT, b"data")


def test_a_store_travels(store: Store) -> None:
    store.write(PART, b"1")
    assert pickle.loads(pickle.dumps(store)).read(PART) == b"1"  # noqa: S301 - our own


def test_object_stores_are_refused_in_words() -> None:
    with pytest.raises(OutputError, match=r"output.path s3://bucket/out: writing to s3:// is not supported"):
        Store.at("s3://bucket/out")


def test_relative_paths_and_file_uris_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.at("out/topics").root == str(Path.cwd() / "out/topics")
    assert Store.at(f"file://{tmp_path}/out").root == f"{tmp_path}/out"
