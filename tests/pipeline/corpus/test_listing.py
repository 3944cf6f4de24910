import os
import socket

import pyarrow.fs as fs
import pytest

from pipeline.corpus.listing import ListedFile, file_system, fingerprint_of, first_line, look, matching_pattern, walk
from pipeline.errors import CorpusError
from pipeline.quarantine import Reason

LOCAL = fs.LocalFileSystem()


def put(folder, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def names(folder, filesystem=LOCAL, at: str | None = None) -> list[str]:
    root = str(folder) if at is None else at
    return [os.path.relpath(file.path, root) for file in walk(filesystem, root).files]


def test_parquet_endings_in_any_case_are_found_at_any_depth(tmp_path):
    put(tmp_path, "b.parquet", "a/deep/x.PQ", "a/y.Parq", "README.md", "a/notes.txt")
    assert names(tmp_path) == ["a/deep/x.PQ", "a/y.Parq", "b.parquet"]
    assert sorted(walk(LOCAL, str(tmp_path)).others) == [f"{tmp_path}/README.md", f"{tmp_path}/a/notes.txt"]


def test_names_that_begin_with_underscore_or_dot_are_ignored(tmp_path):
    put(tmp_path, "_tmp/a.parquet", ".hidden.parquet", "a/_x.parquet", "a/.git/b.parquet", "a/b.parquet")
    assert names(tmp_path) == ["a/b.parquet"]
    assert walk(LOCAL, str(tmp_path)).hidden == 4


def test_any_file_system_is_walked_alike(tmp_path):
    put(tmp_path, "a/b.parquet", "a/_x/c.parquet", ".d.parquet", "e.txt")
    through_arrow = fs.SubTreeFileSystem(str(tmp_path), LOCAL)
    found = walk(through_arrow, "a")
    assert [file.path for file in found.files] == ["a/b.parquet"]
    assert found.hidden == 1
    local = look(LOCAL, str(tmp_path / "a/b.parquet"))
    assert found.files[0].fingerprint == local.fingerprint == look(through_arrow, "a/b.parquet").fingerprint
    assert fingerprint_of(LOCAL.get_file_info(local.path)) == local.fingerprint
    assert look(through_arrow, "gone").problem == (Reason.FILE_MISSING, "there is no such file")


def test_a_dangling_link_is_a_file_with_a_problem(tmp_path):
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("nowhere")
    (tmp_path / "c.parquet").symlink_to("c.parquet")
    good, dangling, circle = walk(LOCAL, str(tmp_path)).files
    assert good.problem is None
    assert dangling == ListedFile(
        str(tmp_path / "b.parquet"), 0, "", (Reason.FILE_MISSING, "it is a link to nowhere, which cannot be reached")
    )
    assert circle.problem is not None
    assert circle.problem[0] == Reason.FILE_MISSING


def test_links_to_folders_are_followed_but_not_round_in_a_circle(tmp_path):
    put(tmp_path, "real/a.parquet")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/up").symlink_to("..")
    assert names(tmp_path) == ["link/a.parquet", "real/a.parquet"]


def test_an_empty_file_and_what_is_no_file_have_a_problem_each(tmp_path):
    (tmp_path / "a.parquet").touch()
    os.mkfifo(tmp_path / "b.parquet")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "c.parquet"))
        found = walk(LOCAL, str(tmp_path)).files
    assert [file.problem for file in found] == [
        (Reason.EMPTY_FILE, "it has 0 bytes"),
        (Reason.NOT_PARQUET, "it is a pipe, a socket or a device, not a file"),
        (Reason.NOT_PARQUET, "it is a pipe, a socket or a device, not a file"),
    ]


def test_the_fingerprint_tells_a_rewritten_file(tmp_path):
    put(tmp_path, "a.parquet")
    path = tmp_path / "a.parquet"
    before = look(LOCAL, str(path))
    os.utime(path, ns=(1, 1))
    assert before.fingerprint != look(LOCAL, str(path)).fingerprint == "1-1"


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.parquet")).touch()
    with pytest.raises(CorpusError, match=r"the name of a file is not UTF-8: b'.*\\xff.parquet'; rename it"):
        walk(LOCAL, str(tmp_path))


def test_a_folder_that_went_meanwhile_holds_nothing(tmp_path):
    assert walk(LOCAL, str(tmp_path / "gone")).files == []


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.parquet", ["a.parquet", ".parquet"], ["a/b.parquet", "a.parquet2"]),
        ("a/?.pq", ["a/b.pq"], ["a/bb.pq", "a/.pq"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("**/b", ["b", "a/b"], ["ab"]),
        ("[a-c]1", ["a1"], ["d1"]),
        ("[!a]1", ["b1"], ["a1"]),
        ("part[", ["part["], ["part"]),
        ("a.b+c", ["a.b+c"], ["axb+c"]),
    ],
)
def test_globs(pattern, yes, no):
    match = matching_pattern(pattern)
    assert [text for text in yes + no if match.fullmatch(text)] == yes


def test_paths_are_relative_to_the_current_folder_and_uris_name_their_file_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert file_system("data/../x") == (LOCAL, str(tmp_path / "x"))
    assert file_system(f"file://{tmp_path}/x/") == (LOCAL, str(tmp_path / "x"))
    assert file_system(f"file://{tmp_path}/a%20b/part-?.parquet") == (LOCAL, str(tmp_path / "a b/part-?.parquet"))
    with pytest.raises(CorpusError, match=r"corpus.path 'ftp://x/y' names no file system that can be read: .*ftp"):
        file_system("ftp://x/y")


def test_only_what_an_error_says_is_kept():
    assert first_line(ValueError("\nit is broken\n/src/arrow.cc:17")) == "it is broken"
    assert first_line(ValueError()) == "ValueError"
