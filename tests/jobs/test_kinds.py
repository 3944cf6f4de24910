"""What `kind` may say, and who runs it."""

import re

import pytest

from jobs import kinds
from pipeline.errors import JobError
from pipeline.progress import Silent


@pytest.fixture
def file(tmp_path):
    """Writes a job file."""

    def write(content: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(content)
        return str(path)

    return write


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_kind_has_a_module_that_checks_and_runs_its_jobs(file, kind):
    job = kinds.load(file(f"kind: {kind}\n"))
    assert job.module.__name__ == f"jobs.{kind}"
    assert callable(job.module.run)
    with pytest.raises(JobError, match=f"{'steps' if kind == 'steps' else 'output'}: this key is missing"):
        job.parsed()


@pytest.mark.parametrize(
    "call", [kinds.load, lambda path: kinds.run(path, [], Silent()), lambda path: kinds.plan(path, [])]
)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("corpus: {}\n", "`kind` is missing; known: annotate, evaluate"),
        ("kind: anotate\n", "kind: 'anotate' is not allowed; did you mean 'annotate'?"),
        ("kind: [annotate]\n", r"kind: ['annotate'] is not allowed"),
    ],
)
def test_a_kind_that_there_is_not_is_told_with_those_that_there_are(file, call, content, words):
    with pytest.raises(JobError, match=re.escape(words)):
        call(file(content))


def test_overrides_decide_the_kind_too(file):
    assert kinds.load(file("kind: annotate\n"), ["kind=evaluate"]).kind == "evaluate"


@pytest.mark.parametrize("kind", ["evaluate", "finetune"])
def test_a_kind_that_labels_nothing_has_no_profile(file, kind):
    path = file(f"kind: {kind}\n")
    words = f"{path}: --profile shows where the time of labeling went, and there is none for a job of kind {kind}"
    with pytest.raises(JobError, match=re.escape(words)):
        kinds.run(path, [], Silent(), profile=True)


def test_a_kind_without_a_preview_says_so(file, monkeypatch):
    monkeypatch.delattr("jobs.evaluate.preview")
    with pytest.raises(JobError, match="there is no `corpusmill preview` for a job of kind evaluate; `run` runs it"):
        kinds.preview(file("kind: evaluate\n"), [], 3)
