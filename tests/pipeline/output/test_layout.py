"""Names are said once, and a folder that is not ours is refused."""

from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.output import layout


def test_names_come_back_from_paths() -> None:
    path = layout.part_path("data", "section=games", "0f1c", 3)
    assert path == "data/section=games/part-0f1c-3.parquet"
    assert layout.part_owner(path) == ("0f1c", 3)
    assert layout.part_path("quarantine", "", "0f1c", 3) == "quarantine/part-0f1c-3.parquet"
    assert layout.part_owner("data/report.parquet") is None
    assert layout.receipt_path("0f1c") == "metadata/receipts/0f1c.json"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("data/a/part-1-1.parquet", "part"),
        ("quarantine/part-1-1.parquet", "quarantine"),
        ("metadata/receipts/1.json", "receipt"),
        ("metadata/plan.json", "plan"),
        ("metadata/tmp/1-2", "temporary"),
    ],
)
def test_a_path_tells_its_kind(path: str, kind: str) -> None:
    assert layout.kind_of(path) == kind


def test_a_folder_that_is_not_there_or_empty_is_accepted(tmp_path: Path) -> None:
    layout.check_output(str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    layout.check_output(str(tmp_path / "out"))


def test_an_output_of_ours_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/plan.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/anything").write_text("verify tells this one")
    layout.check_output(str(tmp_path))


def test_what_a_run_killed_before_its_plan_left_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "metadata/tmp").mkdir(parents=True)
    (tmp_path / "metadata/receipts").mkdir()
    (tmp_path / "data").mkdir()
    for name in ("lease", "holder.json", "epoch.json", "tmp/12-ab"):
        (tmp_path / "metadata" / name).write_text("")
    layout.check_output(str(tmp_path))


@pytest.mark.parametrize("foreign", ["photo.jpg", "data/part-ab-1.parquet", "metadata/notes.txt", "src/"])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, foreign: str) -> None:
    path = tmp_path / foreign
    if foreign.endswith("/"):
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    with pytest.raises(OutputError, match=rf"holds something else \({foreign}\) and no metadata/plan.json"):
        layout.check_output(str(tmp_path))


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is a file; name a folder"):
        layout.check_output(str(tmp_path / "out"))


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(OutputError, match=r"out cannot be made: .*notes.txt is no folder"):
        layout.check_output(str(tmp_path / "notes.txt/deeper/out"))
