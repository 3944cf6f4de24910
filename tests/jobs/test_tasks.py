import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import cli, jobfile
from jobs.annotate import AnnotateFile
from jobs.summary import text
from jobs.tasks import catalogue, described, listed, told
from pipeline import tasks
from pipeline.errors import JobError
from pipeline.tasks import find, known
from pipeline.tasks.base import AnnotationSettings

ROOT = Path(__file__).parents[2]

OWN = '''
"""Louder texts.

{marks: 2} -> loud_text: "HELLO!!"
"""
from typing import Literal
import pyarrow as pa
from pydantic import Field
from pipeline.settings import Settings
from pipeline.tasks.base import Annotation, AnnotationSettings, Task

class Ends(Settings):
    """How it ends."""

    mark: str = "!"
    """What stands at the end."""

class Shout(Task):
    """Upper case."""

    class Config(AnnotationSettings):
        """Two options."""

        marks: int = Field(ge=1, le=9)
        """Marks at the end,
        1 to 9."""

        share: float | None = Field(default=None, gt=0, lt=0.5)

        how: Literal["loud", "louder"] = "loud"
        """How loud."""

        words: list[str] | dict[str, int] = []

        ends: Ends = Ends()
        """How it ends."""

        errors: Literal["keep"] = "keep"
        """Nothing is set aside."""

    def fields(self):
        """`text`, in upper case."""
        return [pa.field("text", pa.string())]

    def annotate(self, texts):
        raise NotImplementedError
'''

MODEL = """
    needs = "AutoModel"

    def __init__(self, config, model):
        super().__init__(config, model)
        self.width = model.config["hidden_size"]
"""


@pytest.fixture
def own(tmp_path):
    """Write a task file of a user's own; its path."""

    def write(code=OWN, name="shout.py"):
        (tmp_path / name).write_text(code)
        return str(tmp_path / name)

    return write


def names(options):
    return [option.name for option in options]


def by_name(options, name):
    return next(option for option in options if option.name == name)


def shown(part, width=100):
    return text([part], width=width)


# ------------------------------------------------------------------------------------------------------------ the code


def test_every_task_is_listed_with_the_first_line_of_its_module():
    lines = catalogue()
    assert list(lines) == known()
    for name, line in lines.items():
        module = sys.modules[find(name).__module__]
        assert (module.__doc__ or "").splitlines()[0] == line
        assert line.endswith(".")


@pytest.mark.parametrize("name", known())
def test_every_task_tells_all_options_each_with_a_sentence(name):
    entry = described(name)
    options = [*entry.own, *entry.shared]
    assert {option.name for option in options if "." not in option.name} == set(find(name).Config.model_fields)
    assert [option.name for option in options if not option.description] == []
    assert [option.name for option in options if "any value" in option.kind] == []


@pytest.mark.parametrize("name", known())
def test_every_task_tells_columns_with_their_types(name):
    entry = described(name)
    assert entry.adds, f"{name}: `fields` has no docstring"
    assert entry.columns is not None
    annotation = next(each for each in yaml.safe_load(entry.job)["annotations"] if each["task"] == name)
    assert all(column.startswith(f"{annotation['name']}_") for column in entry.columns)
    assert entry.columns[f"{annotation['name']}_tokens"] == "int32"
    assert entry.columns[f"{annotation['name']}_truncated"] == "bool"


def test_columns_of_a_model_on_this_machine_are_its_own(minilm):
    entry = described("embed")
    assert entry.columns is not None
    assert [kind for name, kind in entry.columns.items() if name.endswith("_embedding")] == [
        "fixed_size_list<item: float>[384]"
    ]
    assert not entry.model_decides


def test_columns_of_a_model_of_the_hub_are_told_without_it():
    entry = described("classify")
    assert entry.columns is not None
    assert {name.rpartition("_")[2]: kind for name, kind in entry.columns.items()} == {
        "label": "string",
        "score": "float",
        "tokens": "int32",
        "truncated": "bool",
    }
    assert entry.model_decides
    assert "unless its model decides otherwise" in shown(told(entry))


def test_options_of_a_task_stand_before_those_that_it_inherits_and_apart_from_those_of_all():
    entry = described("embed")
    own = names(entry.own)
    assert own.index("truncate_dim") < own.index("pooling") < own.index("window_pooling") < own.index("stride")
    assert {name for name in names(entry.shared) if "." not in name} == set(AnnotationSettings.model_fields)


def test_bounds_and_defaults_are_those_of_the_field():
    entry = described("zero_shot")
    assert by_name(entry.own, "threshold").kind == "a number, at least -1, at most 1"
    assert by_name(entry.own, "top_k").kind == "a whole number, at least 1"
    assert by_name(entry.own, "labels").required
    assert by_name(entry.shared, "max_chars").default == 10_000_000
    assert by_name(entry.shared, "model.sha256").description.startswith("The model's digest")


# -------------------------------------------------------------------------------------------------- a file of one's own


def test_a_file_of_ones_own_tells_itself(own):
    path = own()
    entry = described(path, allow_code=True)
    assert entry.says == 'Louder texts.\n\n{marks: 2} -> loud_text: "HELLO!!"'
    assert (entry.needs, entry.adds, entry.examples) == (None, "`text`, in upper case.", [])
    assert [(option.name, option.kind, option.required, option.default) for option in entry.own] == [
        ("marks", "a whole number, at least 1, at most 9", True, None),
        ("share", "a number, more than 0, less than 0.5", False, None),
        ("how", "loud | louder", False, "loud"),
        ("words", "a list (a text), or a mapping (to a whole number)", False, []),
        ("ends", "a mapping: mark", False, {"mark": "!"}),
        ("ends.mark", "a text", False, "!"),
        ("errors", "keep", False, "keep"),
    ]
    assert by_name(entry.own, "marks").description == "Marks at the end, 1 to 9."
    assert "errors" not in names(entry.shared)


def test_a_job_to_fill_in_lacks_nothing_but_what_a_person_must_say(own, tmp_path):
    entry = described(own(), allow_code=True)
    assert entry.columns is None  # `marks` is for a person to say
    assert "    marks:                      # a whole number, at least 1, at most 9\n" in entry.job
    (tmp_path / "job.yaml").write_text(entry.job)
    document = jobfile.read(str(tmp_path / "job.yaml"), ["annotations.0.marks=2"])
    assert jobfile.parse(document, AnnotateFile).allow_code
    with pytest.raises(JobError, match=r"annotations\.0\.marks: null is nothing; a whole number is wanted$"):
        jobfile.parse(jobfile.read(str(tmp_path / "job.yaml")), AnnotateFile)


def test_columns_that_need_nothing_of_a_person_are_told(own):
    entry = described(own(OWN.replace("Field(ge=1, le=9)", "1")), allow_code=True)
    assert entry.columns == {
        "found_text": "string",
        "found_tokens": "int32",
        "found_truncated": "bool",
        "found_error": "string",
    }
    assert not entry.model_decides


def test_a_task_that_must_know_its_model_says_so(own):
    code = OWN.replace("Field(ge=1, le=9)", "1").replace("    def fields", MODEL + "\n    def fields")
    entry = described(own(code), allow_code=True)
    assert (entry.columns, entry.model_decides, entry.needs) == (None, True, "AutoModel")
    assert "# AutoModel: hub:org/name@REVISION, or a folder" in entry.job
    assert "only a model can tell" in shown(told(entry))


def test_an_enumeration_is_told_by_its_values(own):
    code = OWN.replace("from typing", "import enum\nfrom typing").replace(
        "class Shout", 'class How(enum.Enum):\n    LOUD = "loud"\n    LOUDER = "louder"\n\nclass Shout'
    )
    entry = described(own(code.replace('Literal["loud", "louder"] = "loud"', "How = How.LOUD")), allow_code=True)
    assert (by_name(entry.own, "how").kind, by_name(entry.own, "how").default) == ("loud | louder", "loud")


def test_code_that_cannot_tell_its_columns_is_told_with_its_error(own):
    path = own(OWN.replace("Field(ge=1, le=9)", "1").replace("pa.string()", "self.config.kind"))
    with pytest.raises(
        JobError, match=r"shout.py' cannot tell its columns: its code raises AttributeError: 'Config' o"
    ):
        described(path, allow_code=True)


def test_a_file_without_any_docstring_is_told_too(own):
    code = OWN.replace('"""', "'").replace("'Louder texts.\n\n{marks: 2} -> loud_text: \"HELLO!!\"\n'", "")
    code = "\n".join(line for line in code.splitlines() if not line.strip().startswith("'") and "1 to 9.'" not in line)
    entry = described(own(code), allow_code=True)
    assert entry.says == "it says nothing of itself"
    assert entry.adds is None
    assert by_name(entry.own, "marks").description == ""
    assert "it says nothing of itself" in shown(told(entry))


def test_a_file_that_fails_is_listed_with_the_reason(monkeypatch):
    def broken(name):
        raise JobError(f"task {name!r} fails when imported: line 3: ValueError: no luck")

    monkeypatch.setattr(tasks, "known", lambda: ["broken"])
    monkeypatch.setattr(tasks, "find", broken)
    assert catalogue() == {"broken": "task 'broken' fails when imported: line 3: ValueError: no luck"}


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_lists_tasks_a_line_each(capsys):
    assert cli.main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[: len(known())]] == known()
    assert shown(listed(catalogue())).splitlines()[-1].startswith("corpusmill tasks NAME tells")


def test_the_command_tells_a_task_and_a_job_that_can_be_copied(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(ROOT)
    assert cli.main(["tasks", "zero_shot"]) == 0
    out = capsys.readouterr().out
    entry = described("zero_shot")
    assert out.startswith(entry.says.splitlines()[0][:40])
    assert f"a job to copy ({entry.examples[0]})\n{entry.job}" in out
    assert all(f"\n  {option.name} " in out for option in [*entry.own, *entry.shared])
    assert "weights of transformers' AutoModel" in out


def test_json_is_one_object(capsys):
    assert cli.main(["tasks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == catalogue()
    assert cli.main(["tasks", "embed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "embed"
    assert found["job"] == described("embed").job
    assert {option["name"]: option["default"] for option in found["shared"]}["max_chars"] == 10_000_000


def test_an_unknown_name_is_2_with_the_nearest(capsys):
    assert cli.main(["tasks", "clasify"]) == 2
    seen = capsys.readouterr()
    assert seen.err.startswith("error: no task named 'clasify'; did you mean 'classify'? known: ")
    assert seen.out == ""


def test_code_of_ones_own_runs_only_when_allowed(capsys, own):
    path = own("raise RuntimeError('executed')")
    assert cli.main(["tasks", path]) == 2
    told = capsys.readouterr().err
    assert "is code of your own" in told
    assert told.endswith(f"to look at it here: corpusmill tasks {path} --allow-code\n")
    assert cli.main(["tasks", own(), "--allow-code"]) == 0
    assert "Louder texts." in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["tasks"], ["tasks", "embed"], ["tasks", "classify", "--json"]])
def test_it_answers_without_torch_transformers_and_ray(arguments):
    code = (
        "import sys; from jobs.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ', '.join(sorted({'ray', 'torch', 'transformers', 'datasets'} & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
