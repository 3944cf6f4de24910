"""A task of one's own with a module of one's own, as the shipped example shows it: an RNN encoder-decoder."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipeline.annotator import AnnotationSpec
from pipeline.errors import ModelError
from pipeline.models.own import load_own
from pipeline.models.reference import ModelSettings, pin
from pipeline.output.planfile import PinnedAnnotation
from pipeline.tasks.base import Texts

MOST = 12


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that the example's own command writes."""
    made = tmp_path_factory.mktemp("rnn") / "rnn"
    subprocess.run([sys.executable, str(repository / "jobs/configs/own_task.py"), str(made)], check=True, timeout=300)
    return made


@pytest.fixture(scope="module")
def example(repository: Path) -> Any:
    """The example's file as a module, beside the finder's own."""
    spec = importlib.util.spec_from_file_location("own_task_by_hand", repository / "jobs/configs/own_task.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_task_by_hand"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def by_hand(folder: Path, example: Any) -> Callable[..., str]:
    """The summary of one text: the module's own forward, on this row alone, a window at a time."""
    config = json.loads((folder / "config.json").read_text())
    module = example.RnnSummarizer(config["vocab_size"], config["hidden_size"], config["start_id"], config["end_id"])
    module.load_state_dict(load_file(folder / "model.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def summarize(text: str, window: int = 512) -> str:
        pieces = tokenizer(text, truncation=True, max_length=window, return_overflowing_tokens=window < 512)[
            "input_ids"
        ]
        said = []
        for piece in pieces if window < 512 else [pieces]:
            ids = torch.tensor([piece])
            with torch.inference_mode():
                (written,) = module.eval()(ids, torch.ones_like(ids), MOST)
            said.append(str(tokenizer.decode(written, skip_special_tokens=True)))
        return " ".join(said)

    return summarize


def test_the_example_runs_as_its_file_says_and_each_row_has_what_the_module_writes_of_it_alone(
    process: Callable[..., Any], repository: Path, folder: Path, by_hand: Callable[..., str], tmp_path: Path
) -> None:
    answer = process(
        "run",
        "jobs/configs/own_task.yaml",
        "--json",
        "-o",
        f"annotations.0.model={folder}",
        "-o",
        f"output.path={tmp_path}/out",
        "-o",
        "corpus.sample=300",
        cwd=repository,
    )
    assert answer.code == 0, answer.err
    relation = duckdb.sql(f"SELECT description, short_summary FROM '{tmp_path}/out/data/**/*.parquet'")
    assert relation is not None
    rows = relation.fetchall()
    assert len(rows) == 300
    assert [summary for _, summary in rows] == [by_hand(text) for text, _ in rows]
    assert len({summary for _, summary in rows}) > 100


def test_without_the_jobs_word_no_code_is_run(process: Callable[..., Any], repository: Path) -> None:
    answer = process("run", "jobs/configs/own_task.yaml", "-o", "allow_code=false", cwd=repository)
    assert answer.code == 2
    assert "is code of your own: set `allow_code: true` in the job to run it" in answer.err


def test_texts_in_windows_give_their_summaries_one_after_another(
    repository: Path, folder: Path, by_hand: Callable[..., str]
) -> None:
    settings = {
        "name": "short",
        "task": str(repository / "jobs/configs/own_task.py"),
        "text": "text",
        "model": {"ref": str(folder)},
        "dtype": "float32",
        "max_tokens": 9,
        "long_text": "windows",
        "stride": 0,
    }
    pinned = PinnedAnnotation("x", None, "x", "torch", "float32", "cpu", 1, 64)
    task: Any = AnnotationSpec(settings, True, pin(ModelSettings(ref=str(folder))), pinned).task()
    module = task.build()
    task.start(load_own(module, task.model, "float32", "cpu", 1, 64))
    words = "the library and the games for all users of this system"
    (found,) = task.annotate(Texts([words])).columns["summary"].to_pylist()
    assert found == by_hand(words, window=9)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda state: state.pop("head.bias"), r"the folder lacks head\.bias \(1 tensors\)"),
        (lambda state: state.update(other=torch.zeros(2)), r"the module lacks other \(1 tensors\)"),
        (
            lambda state: state.update({"head.bias": torch.zeros(3)}),
            r"head\.bias has shape \(3,\), and RnnSummarizer wants \(\d+,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_module_are_refused(
    folder: Path, example: Any, tmp_path: Path, edit: Callable[[dict[str, torch.Tensor]], Any], words: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    state = load_file(copy / "model.safetensors")
    edit(state)
    save_file(state, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    module = example.RnnSummarizer(config["vocab_size"], config["hidden_size"], config["start_id"], config["end_id"])
    with pytest.raises(ModelError, match=words):
        load_own(module, pin(ModelSettings(ref=str(copy))), "float32", "cpu", 1, 64)


def test_a_gguf_file_does_not_fill_a_module_from_the_safetensors_beside_it(folder: Path, example: Any) -> None:
    beside = replace(pin(ModelSettings(ref=str(folder))), gguf_file="m.gguf")
    config = json.loads((folder / "config.json").read_text())
    module = example.RnnSummarizer(config["vocab_size"], config["hidden_size"], config["start_id"], config["end_id"])
    with pytest.raises(ModelError, match=r"is a GGUF file, and a module of one's own is filled from safetensors"):
        load_own(module, beside, "float32", "cpu", 1, 64)
