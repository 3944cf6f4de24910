import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import BeforeValidator, Field

from jobs import jobfile
from pipeline.errors import JobError
from pipeline.job import AnnotateJob
from pipeline.models.reference import ModelSettings
from pipeline.settings import Settings

GOOD = """\
kind: annotate
corpus:
  path: corpus
annotations:
  - name: topic
    max_tokens: 256
    dtype: auto
  - name: vector
"""


class Corpus(Settings):
    path: str | list[str]
    sample: int | None = Field(default=None, ge=1)


class Entry(Settings):
    name: str = Field(pattern=r"^[a-z]+$", max_length=8)
    max_tokens: int | None = Field(default=None, ge=3, le=1_000_000)
    dtype: Literal["auto", "float32"] = "auto"
    labels: list[str] | dict[str, str] = []
    model: Annotated[
        ModelSettings | None, BeforeValidator(lambda value: {"ref": value} if isinstance(value, str) else value)
    ] = None


def _entry(value: Any) -> Any:
    if isinstance(value, dict) and value.get("name") == "bad":
        raise ValueError("this one is bad")
    return Entry.model_validate(value)


class Bounds(Settings):
    max_quarantined: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, le=1)] = 0.01
    stop_early: bool = False
    columns: Literal["all", "none"] | list[str] = "all"
    rate: float = Field(default=0.5, gt=0, lt=1)


class Job(Settings):
    kind: Literal["annotate", "train"]
    corpus: Corpus
    annotations: list[Annotated[Entry, BeforeValidator(_entry)]] = Field(min_length=1)
    limits: Bounds = Bounds()


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _write(text, name="topics.yaml"):
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(data)
        return name

    return _write


def refused(path, *overrides):
    with pytest.raises(JobError) as raised:
        jobfile.read(path, overrides)
    return str(raised.value)


def faults(document):
    """The lines of the error, without the name of the file that each begins with."""
    with pytest.raises(JobError) as raised:
        jobfile.parse(document, Job, "topics.yaml")
    assert raised.value.exit_code == 2
    lines = str(raised.value).splitlines()
    assert all(line.startswith("topics.yaml: ") for line in lines)
    return [line.removeprefix("topics.yaml: ") for line in lines]


def good(**entry):
    return {"kind": "annotate", "corpus": {"path": "c"}, "annotations": [{"name": "topic", **entry}]}


# --------------------------------------------------------------------------------------------------------- the file


def test_a_good_file_becomes_settings(write):
    job = jobfile.parse(jobfile.read(write(GOOD)), Job)
    assert [entry.name for entry in job.annotations] == ["topic", "vector"]
    assert job.annotations[0].max_tokens == 256


def test_a_byte_order_mark_is_no_part_of_the_text(write):
    assert jobfile.read(write(b"\xef\xbb\xbf" + GOOD.encode()))["kind"] == "annotate"


def test_a_missing_file_names_its_nearest_sibling(write):
    write(GOOD)
    assert refused("topic.yaml") == "topic.yaml: no such file; did you mean 'topics.yaml'?"


def test_a_missing_file_with_no_near_name_lists_what_is_there(write):
    write(GOOD, "a.yaml")
    write(GOOD, "b.yml")
    assert refused("something.yaml") == "something.yaml: no such file; here are a.yaml, b.yml"


def test_a_missing_folder_is_told(write):
    assert refused("configs/topics.yaml") == "configs/topics.yaml: no such file: there is no folder configs"


def test_a_folder_is_no_job_file(write, tmp_path):
    write(GOOD)
    assert refused(str(tmp_path)) == f"{tmp_path}: this is a folder, not a job file; here are topics.yaml"


def test_a_name_that_no_file_can_have_is_told():
    assert refused("a\0b").endswith("cannot be read: embedded null byte")


def test_what_is_too_large_is_no_job_file(write):
    path = write(b"#" * (jobfile.MOST_BYTES + 1))
    assert refused(path) == "topics.yaml: more than 16 MiB; this is no job file"


def test_what_is_not_utf8_says_which_line(write):
    assert refused(write(b"kind: annotate\nname: caf\xe9\n")) == (
        "topics.yaml: not UTF-8: the byte 0xe9 on line 2; save the file as UTF-8"
    )


def test_what_is_not_yaml_says_line_and_column(write):
    assert refused(write("kind: annotate\ncorpus: : x\n")).startswith("topics.yaml: line 2, column 9: mapping values")


def test_a_tag_that_would_build_an_object_is_refused(write):
    told = refused(write("kind: !!python/object/apply:os.system [echo]\n"))
    assert told == (
        "topics.yaml: line 1, column 7: the tag !!python/object/apply:os.system is refused: "
        "a job file holds plain values, never objects"
    )


def test_keys_given_twice_are_told_all_together(write):
    assert refused(write("kind: a\nkind: b\ncorpus: {path: x, path: y}\n")).splitlines() == [
        "topics.yaml: line 2, column 1: the key 'kind' is given twice, first on line 1",
        "topics.yaml: line 3, column 19: the key 'path' is given twice, first on line 3",
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "# only words\n"])
def test_an_empty_file_is_told(write, text):
    assert refused(write(text)) == "topics.yaml: the file is empty; a job begins with `kind:`"


def test_a_top_level_that_is_no_mapping_is_told(write):
    assert refused(write("- kind: annotate\n")) == (
        'topics.yaml: the top level is [{"kind": "annotate"}]; keys and values are wanted, `kind:` first'
    )


# -------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("annotations.0.dtype=float32", ("annotations", 0, "dtype"), "float32"),
        ("annotations.1.labels=[a, b]", ("annotations", 1, "labels"), ["a", "b"]),
        ("annotations.1={name: new}", ("annotations", 1), {"name": "new"}),
        ("corpus.path=a=b", ("corpus", "path"), "a=b"),
        ("corpus.path=s3://bucket/x", ("corpus", "path"), "s3://bucket/x"),
        ("corpus.sample=10", ("corpus", "sample"), 10),
        ("corpus.sample=", ("corpus", "sample"), None),
        ("limits.stop_early=true", ("limits", "stop_early"), True),
        ("cluster.head.port=1", ("cluster", "head", "port"), 1),
    ],
)
def test_an_override_sets_what_its_path_names(write, override, place, value):
    node = jobfile.read(write(GOOD), [override])
    for step in place:
        node = node[step]
    assert node == value


def test_an_override_fills_a_section_that_was_left_blank(write):
    assert jobfile.read(write("kind: annotate\nlimits:\n"), ["limits.rate=0.1"])["limits"] == {"rate": 0.1}


def test_an_override_changes_one_place_of_what_an_alias_repeats(write):
    text = "annotations:\n- model: &m {ref: a}\n- model: *m\n"
    assert jobfile.read(write(text), ["annotations.0.model.ref=b"])["annotations"] == [
        {"model": {"ref": "b"}},
        {"model": {"ref": "a"}},
    ]


def test_later_overrides_win(write):
    assert jobfile.read(write(GOOD), ["corpus.path=a", "corpus.path=b"])["corpus"]["path"] == "b"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("corpus.path", "-o corpus.path: there is no `=`; write -o key.path=value"),
        ("=5", "-o =5: '' is no key path; write -o key.path=value"),
        ("corpus..path=5", "-o corpus..path=5: 'corpus..path' is no key path; write -o key.path=value"),
        ("annotations.2.dtype=x", "-o annotations.2.dtype=x: annotations has 2 entries, counted from 0; there is no 2"),
        ("annotations.topic.dtype=x", "annotations is a list; 'topic' is no index (0, 1 …)"),
        ("annotations.-1.dtype=x", "annotations is a list; '-1' is no index (0, 1 …)"),
        ("corpus.path.deep=5", "-o corpus.path.deep=5: corpus.path is 'corpus', which has no keys"),
        ("corpus.path=[1", "-o corpus.path=[1: the value is not YAML: line 1, column 3: expected ',' or ']'"),
        ("corpus.path=!!python/name:os", "the tag !!python/name:os is refused"),
    ],
)
def test_an_override_that_reaches_nothing_says_which(write, override, told):
    assert told in refused(write(GOOD), override)


# --------------------------------------------------------------------------------------------------------- settings


def test_an_unknown_key_is_told_with_its_place_the_nearest_key_and_all_keys():
    assert faults(good(maxtokens=5)) == [
        "annotations.0.maxtokens: there is no such key; did you mean 'max_tokens'? "
        "known: name, max_tokens, dtype, labels, model"
    ]


def test_an_unknown_key_that_is_near_nothing_lists_the_keys():
    assert faults({**good(), "zzz": 1}) == ["zzz: there is no such key; known: kind, corpus, annotations, limits"]


def test_an_unknown_key_inside_an_optional_section_of_a_list_entry_is_told():
    assert faults(good(model={"ref": "x", "sha": "y"})) == [
        "annotations.0.model.sha: there is no such key; did you mean 'sha256'? known: ref, sha256, allow_remote_code"
    ]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (good(max_tokens=100_000_000), "annotations.0.max_tokens: 100000000 is too large; at most 1000000"),
        (good(max_tokens=2), "annotations.0.max_tokens: 2 is too small; at least 3"),
        (good(max_tokens="256"), "'256' is a text; a whole number is wanted: write it without quotes"),
        (good(max_tokens="many"), "annotations.0.max_tokens: 'many' is a text; a whole number is wanted"),
        (good(max_tokens=True), "annotations.0.max_tokens: true is a truth value; a whole number is wanted"),
        (good(max_tokens=2.5), "annotations.0.max_tokens: 2.5 is a number; a whole number is wanted"),
        (good(max_tokens=[1]), "annotations.0.max_tokens: [1] is a list; a whole number is wanted"),
        (good(dtype="float23"), "'float23' is not allowed; did you mean 'float32'? known: auto, float32"),
        (good(dtype=16), "annotations.0.dtype: 16 is not allowed; known: auto, float32"),
        (good(name="my topic"), "annotations.0.name: 'my topic' does not fit the pattern ^[a-z]+$"),
        (good(name="abcdefghi"), "annotations.0.name: 'abcdefghi' is too long; at most 8 characters"),
        (good(name=5), "annotations.0.name: 5 is a whole number; a text is wanted: put it in quotes"),
        (good(name=None), "annotations.0.name: null is nothing; a text is wanted"),
        (good(name="bad"), "annotations.0: this one is bad"),
        (good(model=""), "annotations.0.model: must not be empty"),
        (good(model={}), "annotations.0.model.ref: this key is missing"),
        (good(model=5), "annotations.0.model: 5 is a whole number; a mapping is wanted"),
        (good(labels=["a", 1]), "annotations.0.labels.1: 1 is a whole number; a text is wanted: put it in quotes"),
        (good(labels={"a": True}), "annotations.0.labels.a: true is a truth value; a text is wanted: put it in quotes"),
        (good(labels={1: "a"}), "annotations.0.labels.1: the key 1 is no text: put it in quotes"),
        (good(labels=5), "annotations.0.labels: 5 is a whole number; a list or a mapping is wanted"),
        ({**good(), "limits": {"stop_early": "no"}}, "'no' is a text; true or false is wanted: write false"),
        ({**good(), "limits": {"stop_early": "true"}}, "true or false is wanted: write it without quotes"),
        ({**good(), "limits": {"max_quarantined": 1.5}}, "limits.max_quarantined: 1.5 is too large; at most 1"),
        ({**good(), "limits": {"max_quarantined": -1}}, "limits.max_quarantined: -1 is too small; at least 0"),
        ({**good(), "limits": {"max_quarantined": "x"}}, "'x' is a text; a whole number or a number is wanted"),
        ({**good(), "limits": {"rate": 1.0}}, "limits.rate: 1.0 is too large; less than 1"),
        ({**good(), "limits": {"rate": 0}}, "limits.rate: 0 is too small; more than 0"),
        ({**good(), "limits": {"columns": "al"}}, "did you mean 'all'? known: all, none, or a list"),
        ({**good(), "limits": {"columns": 5}}, "limits.columns: 5 is not allowed; known: all, none, or a list"),
        ({**good(), "limits": {"columns": ["a", 5]}}, "limits.columns.1: 5 is a whole number; a text is wanted"),
        ({**good(), "limits": []}, "limits: [] is a list; a mapping is wanted"),
        (
            {**good(), "corpus": {"path": 5}},
            "corpus.path: 5 is a whole number; a text or a list is wanted: put it in quotes",
        ),
        ({**good(), "corpus": {"path": ["a", 5]}}, "corpus.path.1: 5 is a whole number; a text is wanted"),
        ({**good(), "corpus": {}}, "corpus.path: this key is missing"),
        ({**good(), "corpus": {"path": "c", "sample": 0}}, "corpus.sample: 0 is too small; at least 1"),
        ({**good(), "annotations": []}, "annotations: must not be empty"),
        (
            {**good(), "kind": "anotate"},
            "kind: 'anotate' is not allowed; did you mean 'annotate'? known: annotate, train",
        ),
        ({**good(), 1: 2}, "1: the key 1 is no text"),
    ],
)
def test_what_is_wrong_is_told_with_value_and_what_is_allowed(document, told):
    lines = faults(document)
    assert len(lines) == 1
    assert told in lines[0]


def test_a_long_value_is_cut():
    assert faults(good(dtype="x" * 5000)) == [f"annotations.0.dtype: '{'x' * 59}… is not allowed; known: auto, float32"]


def test_all_faults_are_told_together_in_the_order_of_the_file():
    document = {
        "limits": {"stop_early": 1, "max_quarantined": 2.0},
        "annotations": [{"name": "a", "max_tokens": 1}, {"nam": "b", "model": "m"}],
        "corpus": {"path": 3},
    }
    assert [line.split(":")[0] for line in faults(document)] == [
        "limits.stop_early",
        "limits.max_quarantined",
        "annotations.0.max_tokens",
        "annotations.1.nam",
        "annotations.1.name",
        "corpus.path",
        "kind",
    ]


SHOUT = """
from pipeline.tasks.base import Annotation, AnnotationSettings, Task

class Shout(Task):
    class Config(AnnotationSettings):
        volume: int = 1

    def fields(self):
        return []

    def annotate(self, texts):
        return Annotation.of({}, len(texts.values))
"""


def test_the_options_of_a_task_are_known_to_the_message(write):
    write(SHOUT, "shout.py")
    document = {
        "allow_code": True,
        "corpus": {"path": "c"},
        "annotations": [{"name": "loud", "task": "shout.py", "text": "t", "volum": 3}],
        "output": {"path": "out"},
    }
    with pytest.raises(JobError) as raised:
        jobfile.parse(document, AnnotateJob)
    assert str(raised.value) == (
        "job: annotations.0.volum: there is no such key; did you mean 'volume'? "
        "known: name, task, where, text, model, pool, dtype, int8_agreement, engine, max_tokens, max_chars, gold, "
        "errors, volume"
    )


def test_the_name_of_the_file_begins_every_line():
    with pytest.raises(JobError, match=re.escape("job: kind: this key is missing\njob: corpus: this key")):
        jobfile.parse({"annotations": [{"name": "a"}]}, Job)
