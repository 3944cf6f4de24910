"""A job is checked as a whole before anything is looked at."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.job import AnnotateJob

COUNTING = str(Path(__file__).parent.parent / "chaos/counting.py")


def _job(annotation: dict[str, Any] | None = None, **sections: Any) -> AnnotateJob:
    own = {"name": "size", "task": COUNTING, "text": "text"} | (annotation or {})
    document = {"allow_code": True, "corpus": {"path": "in"}, "annotations": [own], "output": {"path": "out"}}
    return AnnotateJob.model_validate(document | sections)


def _wrong(**sections: Any) -> str:
    with pytest.raises(ValidationError) as told:
        _job(**sections)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in told.value.errors())


def test_options_of_an_annotation_are_its_tasks_own() -> None:
    assert _job(annotation={"pause": 0.5}).annotations[0].pause == 0.5  # type: ignore[attr-defined]
    assert "annotations.0.pauze: Extra inputs are not permitted" in _wrong(annotation={"pauze": 0.5})


def test_a_task_that_is_missing_or_unknown_is_told_with_those_that_are_known() -> None:
    assert "a `task` is missing; known: answer, classify, embed" in _wrong(annotation={"task": None})
    assert "no task named 'clasify'; did you mean 'classify'?" in _wrong(annotation={"task": "clasify"})


def test_code_of_ones_own_has_to_be_allowed() -> None:
    assert "allow_code: true" in _wrong(allow_code=False)


def test_an_annotation_that_is_no_mapping_is_told_by_its_place() -> None:
    assert "annotations.0: " in _wrong(annotations=["classify"])
    assert "annotations: List should have at least 1 item" in _wrong(annotations=[])


def test_two_annotations_of_one_name_are_refused() -> None:
    own = {"name": "size", "task": COUNTING, "text": "text"}
    assert "two annotations are named 'size'" in _wrong(annotations=[own, own])


@pytest.mark.parametrize("name", ["", "1st", "a-b", "_file", "ä", "a" * 101])
def test_a_name_must_do_as_a_prefix_of_columns(name: str) -> None:
    assert "annotations.0.name: " in _wrong(annotation={"name": name})


@pytest.mark.parametrize("pool", ["", "1st", "a.b", "a b", "a" * 101])
def test_a_pool_must_have_a_name_that_a_key_of_the_cluster_can_be(pool: str) -> None:
    assert "annotations.0.pool: " in _wrong(annotation={"pool": pool})
    assert _job(annotation={"pool": "large-1"}).annotations[0].pool == "large-1"


@pytest.mark.parametrize("limit", [-1, -0.1, 1.1, "all", True])
def test_limits_are_rows_or_a_share(limit: object) -> None:
    assert "limits.max_quarantined" in _wrong(limits={"max_quarantined": limit})


def test_what_is_pinned_is_plain_and_leaves_out_where_the_output_lies_and_the_limits() -> None:
    pinned = _job(limits={"max_quarantined": 3}).pinned()
    assert sorted(pinned) == ["allow_code", "annotations", "code", "corpus", "output"]
    assert pinned["output"] == {"columns": "all"}
    assert pinned["annotations"][0] | {"pause": 0.0} == pinned["annotations"][0]
    assert _job(limits={"stop_early": True}, output={"path": "elsewhere"}).pinned() == pinned
    assert _job(output={"path": "out", "columns": "none"}).pinned() != pinned


def test_what_is_pinned_tells_a_users_own_code_that_changed(tmp_path: Path) -> None:
    counting = Path(__file__).parent.parent / "chaos/counting.py"
    own = tmp_path / "own.py"
    own.write_text(counting.read_text())
    job = _job({"task": str(own)})
    before = job.pinned()["code"]
    own.write_text(counting.read_text() + "\n# another word\n")
    assert job.pinned()["code"].keys() == before.keys() == {"size"}
    assert job.pinned()["code"] != before
