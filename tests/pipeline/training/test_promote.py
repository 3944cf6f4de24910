import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.models.digest import digest_of, file_digests
from pipeline.output.storage import Store
from pipeline.training.promote import CANDIDATE, CARD, FACTS, MODEL, promote


@pytest.fixture
def store(tiny: Callable[..., Path], tmp_path: Path) -> Store:
    """An output whose candidate is ready."""
    model = tiny("bert", "SequenceClassification", labels=["games", "web"])
    found = Store.at(str(tmp_path / "out"))
    folder = found.full(CANDIDATE)
    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return found


def digest(folder: Path) -> str:
    return digest_of(file_digests(folder))


def test_a_candidate_gets_its_name_with_its_card_and_keeps_its_digest(store: Store, facts: dict[str, Any]) -> None:
    before = digest(store.full(CANDIDATE))
    promote(store, facts)
    assert not store.exists(CANDIDATE)
    assert digest(store.full(MODEL)) == before
    assert json.loads(store.read(f"{MODEL}/{FACTS}")) == facts
    assert store.read(f"{MODEL}/{CARD}").decode().startswith("---\n")


def test_the_promoted_folder_loads_as_it_is(store: Store, facts: dict[str, Any]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    promote(store, facts)
    model = AutoModelForSequenceClassification.from_pretrained(store.full(MODEL))
    assert model.config.id2label == {0: "games", 1: "web"}
    assert AutoTokenizer.from_pretrained(store.full(MODEL))("one word")["input_ids"]


def test_what_is_promoted_is_not_promoted_again(store: Store, facts: dict[str, Any]) -> None:
    promote(store, facts)
    before = {file.name: file.stat().st_mtime_ns for file in store.full(MODEL).iterdir()}
    promote(store, {**facts, "name": "another"})
    assert {file.name: file.stat().st_mtime_ns for file in store.full(MODEL).iterdir()} == before


def test_a_killed_promotion_is_made_good(store: Store, facts: dict[str, Any]) -> None:
    store.write(f"{CANDIDATE}/{FACTS}", b"{}")  # a run that was killed had come so far
    promote(store, facts)
    assert json.loads(store.read(f"{MODEL}/{FACTS}")) == facts


def test_a_folder_that_cannot_be_moved_is_told(store: Store, facts: dict[str, Any], monkeypatch: Any) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match=r"could not be moved from metadata/candidate to model in .*"):
        promote(store, facts)
    assert not store.exists(MODEL)
