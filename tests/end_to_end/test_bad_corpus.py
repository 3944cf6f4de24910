"""Corpora that cannot be read, whole or in part: refused in words, or set aside as narrowly as possible."""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Command = Callable[..., Any]
Job = Callable[..., str]

BOUND_BY_PERMISSIONS = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def _texts(count: int, first: int = 0) -> pa.Table:
    return pa.table({"text": pa.array([f"text number {row}" for row in range(first, first + count)], pa.string())})


def _put(path: Path, table: pa.Table, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def _spoil(path: Path, start: int, count: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + count] = bytes(byte ^ 0x5A for byte in content[start : start + count])
    path.write_bytes(content)


def _who_is_bound_by_permissions() -> Sequence[str]:
    """What to run a command with, so that a file without permissions cannot be read."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None or subprocess.run([*BOUND_BY_PERMISSIONS, "true"], check=False).returncode != 0:
        pytest.skip("needs setpriv to bind root by permissions")
    return BOUND_BY_PERMISSIONS


def test_one_run_over_every_kind_of_damage_loses_no_good_row(process: Command, job: Job, tmp_path: Path) -> None:
    folder = tmp_path / "corpus/section=games"
    _put(folder / "good.parquet", _texts(40))
    contradicting = _texts(10).append_column("section", pa.array(["games"] * 8 + ["web", None]))
    _put(folder / "contradicting.parquet", contradicting)
    _put(folder / "no_rows.parquet", _texts(0))
    pq.ParquetWriter(folder / "no_row_groups.parquet", _texts(0).schema).close()
    (folder / "not.parquet").write_text("text\nnumber one\n" * 20)
    (folder / "empty.parquet").touch()
    (folder / "dangling.parquet").symlink_to("gone.parquet")
    os.mkfifo(folder / "pipe.parquet")
    truncated = _put(folder / "truncated.parquet", _texts(50))
    truncated.write_bytes(truncated.read_bytes()[:-40])
    footer = _put(folder / "footer.parquet", _texts(50))
    length = int.from_bytes(footer.read_bytes()[-8:-4], "little")
    _spoil(footer, footer.stat().st_size - 8 - length, length)
    page = _put(folder / "page.parquet", _texts(300), row_group_size=100, compression="zstd", use_dictionary=False)
    _spoil(page, pq.read_metadata(page).row_group(1).column(0).data_page_offset + 30, 100)
    _put(folder / "secret.parquet", _texts(20)).chmod(0)

    job(tmp_path / "corpus", limits={"max_quarantined": 1.0})
    answer = process("run", "job.yaml", "--json", before=_who_is_bound_by_permissions())
    assert answer.code == 0, answer.err
    assert "7 files cannot be read and will be quarantined:" in answer.err

    rows = pl.read_parquet(tmp_path / "out/quarantine/**/*.parquet")
    told = Counter((Path(file).name, reason) for file, reason in rows.select("_file", "reason").iter_rows())
    assert told == {
        ("contradicting.parquet", "partition_contradicts"): 1,
        ("dangling.parquet", "file_missing"): 1,
        ("empty.parquet", "empty_file"): 1,
        ("footer.parquet", "damaged_footer"): 1,
        ("not.parquet", "not_parquet"): 1,
        ("page.parquet", "damaged_row_group"): 100,
        ("pipe.parquet", "not_parquet"): 1,
        ("secret.parquet", "permission_denied"): 1,
        ("truncated.parquet", "truncated_file"): 1,
    }
    assert rows["detail"].null_count() == 0
    assert sorted(rows.filter(pl.col("reason") == "damaged_row_group")["_row"]) == list(range(100, 200))
    good = duckdb.sql(
        f"SELECT parse_filename(_file), count(DISTINCT _row), sum(size_chars) = sum(length(text)) "
        f"FROM '{tmp_path}/out/data/**/*.parquet' GROUP BY 1 ORDER BY 1"
    )
    assert good is not None
    assert good.fetchall() == [
        ("contradicting.parquet", 9, True),
        ("good.parquet", 40, True),
        ("page.parquet", 200, True),
    ]
    assert process("verify", "out").code == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "corpus.path 'corpus' is an empty folder"),
        (
            {"a.csv": b"text"},
            "holds no Parquet file (.parquet, .parq, .pq), but 1 file of another kind, for example a.csv",
        ),
        (
            {"a.parquet": b"text", "b.parquet": b"", "c.parquet": b"PAR1 and no end"},
            "no file of the corpus can be read:\n  a.parquet: not_parquet: it begins with b'text' instead of b'PAR1'\n"
            "  b.parquet: empty_file: it has 0 bytes\n  c.parquet: truncated_file",
        ),
        ({"a.parquet": pa.table({"title": ["a"]})}, "annotation 'size': no column 'text'; columns: title"),
        ({"a.parquet": pa.table({"text": [1]})}, "text 'text' is int64, not a string; a template can use numbers"),
        ({"a.parquet": pa.table({"text": [b"a"]})}, "text 'text' is binary, not a string"),
        (
            {"a.parquet": pa.table({"text": ["a"], "n": [1]}), "b.parquet": pa.table({"text": ["a"], "n": ["1"]})},
            "column 'n': int64 in a.parquet (1 file), string in b.parquet (1 file)",
        ),
        (
            {"a.parquet": pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])},
            "a.parquet has 2 columns named 'text'",
        ),
        (
            {"a.parquet": pa.table({"text": ["a"], "size_label": ["x"]})},
            "the corpus has a column 'size_label' already, and an annotation would add one of that name",
        ),
        ({"size_label=x/a.parquet": _texts(1)}, "the corpus has a column 'size_label' already"),
        ({"s=1/a.parquet": _texts(1), "b.parquet": _texts(1)}, "the files differ in their hive folders: b.parquet has"),
        (
            {"a.parquet": pa.table({"text": ["a"], "_row": [7]})},
            "the corpus has a column '_row', but its '_file' is not there instead of string",
        ),
    ],
)
def test_a_corpus_that_cannot_be_planned_is_refused(
    here: Command, job: Job, tmp_path: Path, files: dict[str, bytes | pa.Table], words: str
) -> None:
    (tmp_path / "corpus").mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / "corpus" / name).write_bytes(content)
        else:
            _put(tmp_path / "corpus" / name, content)
    answer = here("run", job("corpus"))
    assert answer.code == 2, answer.err
    assert words in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("groups", [True, False])
def test_a_corpus_without_rows_is_done_at_once(here: Command, job: Job, tmp_path: Path, groups: bool) -> None:
    (tmp_path / "corpus").mkdir()
    with pq.ParquetWriter(tmp_path / "corpus/a.parquet", _texts(0).schema) as writer:
        if groups:
            writer.write_table(_texts(0))
    assert pq.read_metadata(tmp_path / "corpus/a.parquet").num_row_groups == int(groups)
    answer = here("run", job("corpus"), "--json")
    assert (answer.code, answer.summary["rows_in"], answer.summary["units_total"]) == (0, 0, 0), answer.err
    assert here("verify", "out").code == 0


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("corpus", 60),
        ("corpus/a.parquet", 10),
        ("corpus/*.parquet", 30),
        ("corpus/**/c*.parquet", 30),
        (["corpus/a.parquet", "corpus/deeper", "corpus/deeper/*.parquet"], 40),
        ("file://{here}/corpus", 60),
        ("file://{here}/corpus/?.parquet", 30),
        (["file://{here}/corpus/a.parquet", "file://{here}/corpus/b.parquet"], 30),
    ],
)
def test_files_folders_globs_lists_and_uris_are_read_alike(
    here: Command, job: Job, tmp_path: Path, path: str | list[str], rows: int
) -> None:
    for number, name in enumerate(("a", "b", "deeper/c"), 1):
        _put(tmp_path / f"corpus/{name}.parquet", _texts(10 * number, first=100 * number))
    asked = [path] if isinstance(path, str) else path
    paths = [each.format(here=tmp_path) for each in asked]
    job("corpus", corpus={"path": paths if isinstance(path, list) else paths[0]})
    assert json.loads(here("plan", "job.yaml", "--json").out)["rows"] == rows
    filtered = here("preview", "job.yaml", "-n", "3", "-o", "corpus.filter=text LIKE '%9'", "-o", "corpus.sample=2")
    assert filtered.code == 0, filtered.err
    assert filtered.out.count("text number ") == min(2, rows // 10)
