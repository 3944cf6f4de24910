"""Which jobs' workers begin to import before the job is known. Forking itself: `tests/cluster/test_forks.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.ahead import MOST_BYTES, _imports

JOB = """
kind: annotate
corpus: corpus/
annotations: [{name: topic, task: classify, text: title, model: "wheel:some_model/model"}]
output: out
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def test_a_job_with_models_on_this_machine_is_begun(job: Path) -> None:
    assert _imports(str(job), []) == ["pipeline.stream", "torch"]
    assert _imports(str(job), ["annotations.0.dtype=float32", "output.path=other"]) == ["pipeline.stream", "torch"]


@pytest.mark.parametrize("cluster", ["{address: local}", "{actors: 2}", "null", "{}"])
def test_a_cluster_of_its_own_may_be_told(job: Path, cluster: str) -> None:
    job.write_text(f"{JOB}cluster: {cluster}\n")
    assert _imports(str(job), [])


def test_without_models_torch_is_not_needed(job: Path) -> None:
    job.write_text(JOB.replace(', model: "wheel:some_model/model"', ""))
    assert _imports(str(job), []) == ["pipeline.stream"]


def test_an_evaluation_names_one_model(job: Path) -> None:
    job.write_text("kind: evaluate\nmodel: models/sections\n")
    assert _imports(str(job), []) == ["pipeline.stream", "torch"]


@pytest.mark.parametrize(
    "text",
    [
        f"{JOB}cluster: {{address: auto}}",
        f"{JOB}cluster: {{address: 'head:6379'}}",
        f"{JOB}cluster: local",  # wrong, which is told as ever
        JOB.replace("annotate", "finetune"),
        JOB.replace("kind: annotate", ""),
        "kind: [annotate",
        "- kind: annotate",
        "",
        f"{JOB}# {'x' * MOST_BYTES}",
    ],
)
def test_what_needs_no_forked_workers_or_is_not_clear_at_a_glance_is_not_begun(job: Path, text: str) -> None:
    job.write_text(text)
    assert _imports(str(job), []) == []


@pytest.mark.parametrize("override", ["cluster.address=auto", "kind=finetune", "cluster={address: auto}", "no"])
def test_an_override_that_may_change_that_begins_nothing(job: Path, override: str) -> None:
    assert _imports(str(job), [override]) == []


def test_a_file_that_is_not_there_or_no_text_is_for_others_to_tell(tmp_path: Path) -> None:
    assert _imports(str(tmp_path / "missing.yaml"), []) == _imports(str(tmp_path), []) == []
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert _imports(str(tmp_path / "binary.yaml"), []) == []


def test_a_first_look_imports_neither_what_checks_a_job_nor_ray() -> None:
    code = "import sys, jobs.ahead; print({'pydantic', 'pyarrow', 'numpy', 'ray', 'torch'} & sys.modules.keys())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"
