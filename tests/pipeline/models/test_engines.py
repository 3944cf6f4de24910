"""Which engine computes an annotation, and what is said where it cannot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import JobError
from pipeline.job import AnnotateJob
from pipeline.models import engines
from pipeline.models.engines import resolve_engine, why_not_openvino
from pipeline.models.reference import ModelSettings, pin
from pipeline.tasks import find
from pipeline.tasks.base import Task

Make = Callable[..., Path]


def _task(folder: Path, name: str = "embed", engine: str = "openvino", **options: Any) -> Task:
    kind = find(name)
    settings = {"name": "found", "task": name, "text": "body", "model": {"ref": str(folder)}, "engine": engine}
    return kind(kind.Config.model_validate(settings | options), pin(ModelSettings(ref=str(folder))))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is on this machine decides nothing here."""
    monkeypatch.setattr(engines, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("embed", "Model", {}),
        ("zero_shot", "Model", {"labels": ["a", "b"]}),
        ("classify", "ForSequenceClassification", {}),
        ("tag", "ForTokenClassification", {}),
        ("answer", "ForQuestionAnswering", {"question": "what is it"}),
    ],
)
def test_openvino_computes_what_reads(make_encoder: Make, name: str, head: str, options: dict[str, Any]) -> None:
    labels = {0: "O", 1: "B-PER"}
    task = _task(make_encoder("bert", head, id2label=labels), name, **options)
    assert resolve_engine(task, "cpu", "bfloat16") == "openvino"


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_else_it_is_torch(make_encoder: Make, engine: str) -> None:
    assert resolve_engine(_task(make_encoder(), engine=engine), "cpu", "float32") == "torch"


def test_a_task_that_asks_more_of_its_model_than_to_be_called_stays_with_torch(make_encoder: Make) -> None:
    task = _task(make_encoder("bert", "ForMaskedLM"), "score")
    with pytest.raises(JobError, match=r"annotation 'found': engine: openvino .*task 'score' asks more.*engine: torch"):
        resolve_engine(task, "cpu", "float32")


def test_gpus_other_formats_and_other_files_are_refused(make_encoder: Make) -> None:
    task = _task(make_encoder())
    assert task.model is not None
    assert why_not_openvino(task, "cpu", "float32") is None
    assert "would compute on cuda: set `engine: torch`, or gpus_per_actor to 0" in str(
        why_not_openvino(task, "cuda", "bfloat16")
    )
    assert "dtype is float16" in str(why_not_openvino(task, "cpu", "float16"))
    task.model = replace(task.model, gguf_file="a.gguf")
    assert "is a GGUF file" in str(why_not_openvino(task, "cpu", "float32"))
    task.model = replace(task.model, gguf_file=None, allow_remote_code=True)
    assert "code of its own" in str(why_not_openvino(task, "cpu", "float32"))


def test_where_it_is_not_installed_the_message_says_how(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(JobError, match=r"pip install 'corpusmill\[openvino\]', or set `engine: torch`"):
        resolve_engine(_task(make_encoder()), "cpu", "float32")


@pytest.mark.parametrize(("engine", "told"), [("auto", None), ("torch", "torch"), ("openvino", "openvino")])
def test_a_job_that_names_no_engine_pins_what_it_did_before_there_were_several(engine: str, told: str | None) -> None:
    annotation = {"name": "a", "task": "embed", "text": "b", "model": "folder", "engine": engine}
    job = AnnotateJob.model_validate({"corpus": {"path": "c"}, "annotations": [annotation], "output": {"path": "o"}})
    assert job.pinned()["annotations"][0].get("engine") == told
