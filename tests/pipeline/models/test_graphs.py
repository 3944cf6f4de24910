"""Graphs are made once on a node, are whole or are made anew, and never stand in each other's way."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelError
from pipeline.models import graphs
from pipeline.models.graphs import Said, kept

SAID = Said({"input_ids": np.array([[5, 6], [7, 0]])}, {"logits": np.array([[0.5], [0.25]], np.float32)})
HOUR = 3600


class Made:
    """Who converts, and counts how often."""

    def __init__(self, weights: bytes = b"weights") -> None:
        self.times, self.weights = 0, weights

    def __call__(self, folder: Path) -> None:
        self.times += 1
        assert list(folder.iterdir()) == []
        (folder / "graph.xml").write_text(f"<net number='{self.times}'/>")
        (folder / "graph.bin").write_bytes(self.weights)
        graphs.write(folder, "BertModel", {"__module.module.a": "a"}, SAID)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path))
    return tmp_path / "graphs"


def folder_of(make: Callable[[Path], None], digest: str = "d" * 64, auto_class: str = "AutoModel") -> Path:
    with kept(digest, auto_class, make) as graph:
        assert graph.made_of == "BertModel"
        assert graph.layers == {"__module.module.a": "a"}
        assert graph.xml.is_file()
        return graph.folder


@settings(deadline=None)  # it writes to a disk
@given(
    st.lists(st.integers(-(2**60), 2**60), min_size=4, max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6),
)
def test_what_torch_said_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int], said: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    for name in ("graph.xml", "graph.bin"):
        (folder / name).write_bytes(b"")
    logits = np.array(said, np.float32).reshape(2, 3)
    graphs.write(folder, "BertModel", {}, Said({"input_ids": np.array(ids).reshape(2, 2)}, {"logits": logits}))
    graph = graphs.read(folder)
    assert graph is not None
    found = graph.said()
    assert found.inputs["input_ids"].tolist() == [ids[:2], ids[2:]]
    assert list(found.outputs) == ["logits"]
    assert np.array_equal(found.outputs["logits"], logits)


def test_it_is_made_once_for_a_model_and_a_class(cache: Path) -> None:
    make = Made()
    first = folder_of(make)
    assert first.parent == cache
    assert folder_of(make) == first
    assert make.times == 1
    assert folder_of(make, digest="e" * 64) != first
    assert folder_of(make, auto_class="AutoModelForTokenClassification") != first
    assert make.times == 3


def test_another_version_makes_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Made()
    first = folder_of(make)
    monkeypatch.setattr(graphs, "installed", lambda *names: dict.fromkeys(names, "0.0.1"))
    assert folder_of(make).parent == cache
    assert make.times == 2
    assert (first / "graph.json").is_file()


@pytest.mark.parametrize("file", ["graph.xml", "graph.bin", "said.safetensors", "graph.json"])
@pytest.mark.parametrize("damage", ["lost", "cut"])
@pytest.mark.usefixtures("cache")
def test_what_is_not_whole_is_made_anew(file: str, damage: str) -> None:
    make = Made()
    folder = folder_of(make)
    if damage == "lost":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    assert graphs.read(folder) is None
    assert folder_of(make) == folder
    assert make.times == 2
    assert graphs.read(folder) is not None


def test_what_cannot_be_made_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    def refuse(folder: Path) -> None:
        (folder / "graph.xml").write_text("half")
        raise ModelError("no rule for aten::odd")

    with pytest.raises(ModelError, match="no rule"):
        folder_of(refuse)
    assert [each for each in cache.iterdir() if each.is_dir()] == []
    assert folder_of(Made()).is_dir()


def test_who_asks_meanwhile_waits_and_makes_no_second_one(cache: Path) -> None:
    make = Made()

    def slowly(folder: Path) -> None:
        time.sleep(0.3)
        make(folder)

    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(folder_of(slowly))) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert found[0].parent == cache
    assert make.times == 1


def test_where_nothing_can_be_kept_it_is_there_for_the_block(tmp_path: Path, cache: Path) -> None:
    cache.parent.rmdir()
    tmp_path.write_text("a file where the cache would be")
    make = Made()
    with kept("d" * 64, "AutoModel", make) as graph:
        assert graph.xml.is_file()
    assert not graph.folder.exists()
    with pytest.raises(ModelError, match="no rule"), kept("d" * 64, "AutoModel", _refuse):
        raise AssertionError("there is no graph")


def test_a_cache_that_is_full_is_done_without_and_a_full_disk_is_told_in_words(cache: Path, tmp_path: Path) -> None:
    make = Made()

    def full(folder: Path) -> None:
        if folder.parent == cache:
            raise OSError(28, "No space left on device")
        make(folder)

    folder_of(full)
    assert make.times == 1
    assert list(cache.glob("*/")) == []
    whole = OSError(28, "No space left on device")

    def nowhere(_: Path) -> None:
        raise whole

    with pytest.raises(ModelError, match=r"its graph for OpenVINO can be kept nowhere: .* No space .*; make room in /"):
        folder_of(nowhere)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("umask", "others_may"), [(0o022, 0o055), (0o077, 0)])
def test_others_may_read_it_where_the_user_lets_them(umask: int, others_may: int) -> None:
    before = os.umask(umask)
    try:
        folder = folder_of(Made())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o077 == others_may
    assert all(each.stat().st_mode & 0o077 == others_may & 0o044 for each in folder.iterdir())


@pytest.mark.usefixtures("cache")
def test_a_graph_of_another_users_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    make = Made()
    folder = folder_of(make)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("it is another user's")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(graphs, "lock", refused)
    assert folder_of(make) == folder
    assert make.times == 1


@pytest.mark.usefixtures("cache")
def test_the_folder_is_told_by_its_real_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    make = Made()
    monkeypatch.setenv("CORPUSMILL_CACHE", str(tmp_path / "link"))
    first = folder_of(make)
    assert first.parent == (tmp_path / "real" / "graphs").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORPUSMILL_CACHE", "real")
    assert folder_of(make) == first
    monkeypatch.delenv("CORPUSMILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder_of(make).parent == (tmp_path / "xdg/corpusmill/graphs").resolve()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user whom the system does not know
    alone = folder_of(make)
    assert alone.name.startswith("corpusmill-graph-")
    assert not Path("~").exists()
    monkeypatch.undo()
    monkeypatch.delenv("CORPUSMILL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder_of(make).parent == (tmp_path / "home/.cache/corpusmill/graphs").resolve()


def _refuse(folder: Path) -> None:
    raise ModelError("no rule")


@pytest.mark.usefixtures("cache")
def test_room_is_made_by_what_was_not_used_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    make, now = Made(bytes(10_000)), time.time()
    old, used, lately = (folder_of(make, digest) for digest in ("a", "b", "c"))
    for folder, hours in ((old, 300), (used, 200), (lately, 100)):
        os.utime(folder / "graph.json", (now - hours * HOUR,) * 2)
    assert folder_of(make, "b") == used  # and so it is younger than all
    abandoned, begun = used.parent / "new-abandoned", used.parent / "new-begun"
    for folder, hours in ((abandoned, 30), (begun, 2)):
        folder.mkdir()
        os.utime(folder, (now - hours * HOUR,) * 2)
    monkeypatch.setattr(graphs, "KEPT_BYTES", 5_000)
    folder_of(make, "d")
    assert not old.exists()
    assert used.exists(), "who used it a moment ago may have it open"
    assert lately.exists()
    assert not abandoned.exists()
    assert begun.exists()
