"""Job files, command lines and outputs that cannot be: exit code 2 before Ray starts, in words, and nothing is left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Here = Callable[..., Any]
Job = Callable[..., str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two rows; a column of each kind that a mistake may name."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    table = pa.table({"text": ["a", "b"], "number": [1, 2], "topic_label": ["x", "y"], "tags": [["a"], ["b"]]})
    pq.write_table(table, folder / "a.parquet")
    return folder


def _refused(here: Here, tmp_path: Path, message: str, *overrides: str) -> None:
    answer = here("run", "job.yaml", *(word for each in overrides for word in ("-o", each)))
    assert answer.code == 2, answer.err
    assert message in answer.err
    assert answer.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [annotate\n", "job.yaml: line 2, column 1: expected ',' or ']'"),
        ("kind: annotate\n\tcorpus: x\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("kind: !!python/object/apply:os.mkdir [out]\n", "the tag !!python/object/apply:os.mkdir is refused"),
        ("kind: annotate\ncorpus: !!python/object:os.path {}\n", "line 2, column 9: the tag !!python/object:os.path"),
        ("[annotate]\n", "keys and values are wanted, `kind:` first"),
        ("kind: anotate\n", "kind: 'anotate' is not allowed; did you mean 'annotate'? known: annotate"),
    ],
)
def test_what_is_no_job_file_is_refused_and_builds_nothing(here: Here, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    _refused(here, tmp_path, message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.pth=x", "corpus.pth: there is no such key; did you mean 'path'? known: path, filter, sample, seed"),
        ("lmits={}", "lmits: there is no such key; did you mean 'limits'?"),
        ("corpus.path=3", "corpus.path: 3 is a whole number; a text or a list is wanted"),
        ("cluster.actors=many", "cluster.actors: 'many' is a text; a whole number is wanted"),
        ("limits.max_quarantined=1.5", "limits.max_quarantined: 1.5 is too large; at most 1"),
        ("cluster.actors=0", "cluster.actors: 0 is too small; at least 1"),
        ("annotations.0.name=my topic", "annotations.0.name: 'my topic' cannot begin the names of columns: a letter,"),
        ("annotations.0.name=1st", "'1st' cannot begin the names of columns"),
        (
            "annotations.0.task=clasify",
            "no task named 'clasify'; did you mean 'classify'? known: answer, classify, embed, fill, generate, score",
        ),
        ("annotations.0.task=gone.py", "task file 'gone.py' cannot be read"),
        ("allow_code=false", "is code of your own: set `allow_code: true` in the job to run it"),
        ("nonsense", "-o nonsense: there is no `=`; write -o key.path=value"),
        ("annotations.5.text=x", "annotations has 1 entry, counted from 0; there is no 5"),
        ("annotations.0.text=[", "the value is not YAML"),
        ("annotations.0.text=!!python/object/apply:os.getcwd []", "the tag !!python/object/apply:os.getcwd is refused"),
        ("corpus.path=corpsu", "corpus.path 'corpsu' matches nothing: there is no 'corpsu' in"),
        ("corpus.path=corpus/*.pq", "corpus.path 'corpus/*.pq' matches nothing:"),
        ('corpus.path="a\\0b"', "has a NUL character, which no file name has"),
        ("corpus.path=moon://x", "'moon://x' names no file system that can be read"),
        ("annotations.0.text={txt}", "annotation 'size': no column 'txt'; did you mean 'text'? columns: text, number"),
        ('annotations.0.text="{text"', "the '{' at character 1 is not closed; write {{ for the character itself"),
        ("corpus.filter=number >", "filter \"number >\": it does not parse: something is missing at '>'"),
        ("corpus.filter=section = 'games'", "no column 'section'; columns: text, number"),
        ("corpus.filter=number = 'abc'", "'number' is int64, but 'abc' is a text: write a number without quotes"),
        ("corpus.filter=text = 3", "'text' is string, but 3 is a number: write '3'"),
        ("corpus.filter=1 = 1", "1 = 1 names no column"),
        ("output.columns=[txt]", "output.columns names 'txt', which is not in the corpus"),
        ("output.path=s3://bucket/out", "writing to s3:// is not supported"),
        ('output.path="a\\0b"', "has a NUL character, which no folder's name has"),
        ("cluster.gpus_per_actor=1", "cluster.gpus_per_actor is 1, but no GPU is there"),
        ("cluster.actors=5000", "cluster.actors is 5000, but only"),
        ("cluster.memory=900TiB", "921600.0 GiB of memory fit"),
        ("cluster.address=ray://head:10001", "is no address of a cluster; allowed: local, auto, or host:port"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(
    here: Here, job: Job, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job(corpus)
    if override.startswith("annotations.0.text={"):
        override = override.replace("{txt}", '"{txt}"')  # YAML would read a mapping
    _refused(here, tmp_path, message, override)


def test_two_annotations_of_one_name_are_refused(here: Here, job: Job, corpus: Path, tmp_path: Path) -> None:
    job(corpus)
    text = (tmp_path / "job.yaml").read_text()
    entry = text[text.index("- name:") : text.index("cluster:")]
    (tmp_path / "job.yaml").write_text(text.replace(entry, entry + entry))
    _refused(here, tmp_path, "two annotations are named 'size'")


@pytest.mark.parametrize(
    ("path", "output", "message"),
    [
        ("corpus", "corpus/out", "lies inside the corpus"),
        ("corpus", "corpus", "is the corpus itself"),
        ("corpus/**/*.parquet", "corpus/out", "looks for files; name one that it does not match"),
        (["corpus/a.parquet", "corpus"], "corpus/out", "lies inside the corpus"),
        ("corpus/a.parquet", "corpus", "lies inside output.path"),
        ("corpus", "notes", "holds something else (mine.txt) and no metadata/plan.json"),
        ("corpus", "job.yaml", "is a file; name a folder"),
        ("corpus", "job.yaml/out", "job.yaml is no folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused_and_left_as_it_was(
    here: Here, job: Job, corpus: Path, tmp_path: Path, path: str | list[str], output: str, message: str
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").write_text("mine")
    job(corpus, corpus={"path": path}, output={"path": output})
    before = sorted(tmp_path.rglob("*"))
    for command in ("run", "plan", "preview"):
        answer = here(command, "job.yaml")
        assert answer.code == 2, answer.err
        assert message in answer.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_that_nothing_was_computed_for_binds_no_later_job(
    process: Here, here: Here, job: Job, corpus: Path, tmp_path: Path
) -> None:
    died = process("run", job(corpus), env={"CORPUSMILL_FAILPOINT": "plan.after_replace:1:EIO"})
    assert died.code == 1, died.err
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    changed = here("run", job("empty.parquet"), "--json")
    assert (changed.code, changed.summary["rows_in"]) == (0, 0)
    assert here("verify", "out").code == 0
