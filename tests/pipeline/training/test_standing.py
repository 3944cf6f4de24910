import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import status, verify
from pipeline.errors import OutputError
from pipeline.models.digest import digest_of, file_digests
from pipeline.output import planfile
from pipeline.output.layout import MANIFEST, PLAN
from pipeline.output.lease import Lease
from pipeline.output.storage import Store
from pipeline.training.promote import CANDIDATE, FACTS, MODEL
from pipeline.training.rows import EXAMPLES
from pipeline.training.standing import PROGRESS, TRAINED, Standing, is_finetuning, proved, standing


def put(store: Store, path: str, value: Any) -> None:
    store.write(path, json.dumps(value).encode())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An output that was begun: two units, nothing done."""
    found = Store.at(str(tmp_path / "out"))
    put(found, PLAN, {"kind": "finetune", "units": ["0-a", "0-b"]})
    return found


@pytest.fixture
def finished(store: Store, tiny: Callable[..., Path]) -> Store:
    """One that came to its end: a model that was promoted, and no test rows."""
    folder = store.full(MODEL)
    folder.mkdir()
    for file in tiny("bert", "SequenceClassification").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    digest = digest_of(file_digests(folder))
    put(store, f"{MODEL}/{FACTS}", {"model": {"digest": digest}})
    put(store, MANIFEST, {"promoted": True, "gate": {"reasons": []}, "model": {"digest": digest}})
    return store


def look(store: Store) -> Standing:
    found = status(store.root)
    assert isinstance(found, Standing)
    return found


def test_each_part_is_told_when_the_one_before_is_done(store: Store) -> None:
    assert (look(store).state, look(store).units_done, look(store).units_total) == ("encoding", 0, 2)
    put(store, f"{EXAMPLES}/0-a.json", {})
    assert (look(store).state, look(store).units_done) == ("encoding", 1)
    put(store, f"{EXAMPLES}/0-b.json", {})
    assert (look(store).state, look(store).step) == ("training", None)
    put(store, PROGRESS, {"step": 7, "steps": 30})
    assert (look(store).step, look(store).steps) == (7, 30)
    put(store, TRAINED, {"steps": 30})
    assert (look(store).state, look(store).step) == ("judging", 30)
    assert (look(store).promoted, look(store).finished) == (None, False)
    put(store, MANIFEST, {"promoted": False, "gate": {"reasons": ["too low"]}, "model": {"digest": "d1"}})
    found = look(store)
    assert (found.state, found.finished, found.promoted, found.reasons, found.model) == (
        *("finished", True, False),
        *(("too low",), None),
    )


def test_who_runs_it_is_told(store: Store) -> None:
    assert look(store).running is None
    with Lease.acquire(store, "run-1"):
        holder = look(store).running
    assert holder is not None
    assert holder.run_id == "run-1"


def test_a_promoted_model_is_told_and_proved(finished: Store) -> None:
    assert look(finished).model == f"{finished.root}/{MODEL}"
    assert verify(finished.root).sound


def test_a_model_that_changed_since_is_a_fault(finished: Store) -> None:
    config = finished.full(f"{MODEL}/config.json")
    config.write_text(config.read_text() + "\n")
    (fault,) = verify(finished.root).faults
    assert fault.startswith(f"{MODEL}: its digest is ")


def test_a_model_that_is_gone_or_cannot_be_read_is_a_fault(finished: Store) -> None:
    finished.full(f"{MODEL}/model.safetensors").unlink()
    (fault,) = proved(finished.root).faults
    assert fault.startswith(f"{MODEL}: ")
    finished.full(MODEL).rename(finished.full("elsewhere"))
    assert proved(finished.root).faults == (f"{MODEL} is not there",)


def test_facts_of_another_model_are_a_fault(finished: Store) -> None:
    put(finished, f"{MODEL}/{FACTS}", {"model": {"digest": "another"}})
    assert proved(finished.root).faults == (f"{MODEL}/{FACTS} is missing, or tells of another model",)


def test_of_a_model_that_was_not_promoted_the_candidate_is_looked_at(finished: Store) -> None:
    manifest = json.loads(finished.read(MANIFEST))
    finished.full(MODEL).rename(finished.full(CANDIDATE))
    put(finished, MANIFEST, {**manifest, "promoted": False})
    assert proved(finished.root).sound


def test_an_unfinished_output_is_no_fault(store: Store) -> None:
    report = verify(store.root)
    assert (report.finished, report.faults) == (False, ())
    assert report.unfinished == (f"there is no {MANIFEST}: the same `corpusmill run` goes on",)


def test_a_fine_tunings_output_is_no_annotate_jobs(store: Store) -> None:
    assert is_finetuning(store)
    with pytest.raises(OutputError, match="is the output of a finetune job, not of an annotate job"):
        planfile.load(store)


def test_an_evaluations_output_is_no_annotate_jobs(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "evaluation"))
    put(store, f"predictions/{PLAN}", {})
    assert not is_finetuning(store)
    with pytest.raises(
        OutputError, match=r"is the output of an evaluate job; its rows are in .*/evaluation/predictions"
    ):
        planfile.load(store)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"kind": 3}', b'{"kind": "annotate"}', b"\xff"])
def test_what_is_no_fine_tuning_is_told(content: bytes, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    store.write(PLAN, content)
    with pytest.raises(OutputError, match="is no output of a finetune job"):
        standing(store.root)
