"""The finder in pipeline/tasks/__init__.py."""

import subprocess
import sys

import pytest

from pipeline import tasks
from pipeline.errors import JobError
from pipeline.tasks import find, known
from pipeline.tasks.base import AnnotationSettings, Task

SHOUT = '''
import pyarrow as pa
from pipeline.tasks.base import Annotation, AnnotationSettings, Task

class Shout(Task):
    """Upper case."""

    class Config(AnnotationSettings):
        """One option."""

        marks: int = 1

    def fields(self):
        return [pa.field("text", pa.string())]

    def annotate(self, texts):
        marks = "!" * self.config.marks
        return Annotation.of({"text": pa.array([text.upper() + marks for text in texts.values])}, len(texts.values))
'''

ABSTRACT = """
from pipeline.tasks.base import Task

class Loud(Task):
    def fields(self):
        return []
"""


@pytest.fixture
def write_task(tmp_path):
    def write(text, name="shout.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def task_folder(tmp_path, monkeypatch):
    """A folder that stands beside this package's own, where a new file is a new task."""
    before = set(sys.modules)
    folder = tmp_path / "more"
    folder.mkdir()
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("pipeline.tasks."):
            del sys.modules[name]
            vars(tasks).pop(name.rpartition(".")[2], None)


def test_a_new_file_is_a_new_task(task_folder):
    assert "shout" not in known()
    (task_folder / "shout.py").write_text(SHOUT)
    task = find("shout")
    assert task.__name__ == "Shout"
    assert issubclass(task.Config, AnnotationSettings)
    assert "shout" in known()


def test_a_task_that_another_file_defines_is_not_this_files(task_folder):
    (task_folder / "shout.py").write_text(SHOUT)
    (task_folder / "whisper.py").write_text(
        "from pipeline.tasks.shout import Shout\n\nclass Whisper(Shout):\n    pass\n"
    )
    assert find("whisper").__name__ == "Whisper"
    assert find("whisper").Config is find("shout").Config


def test_the_base_private_files_and_abstract_classes_are_no_tasks(task_folder):
    (task_folder / "_secret.py").write_text(SHOUT)
    (task_folder / "loud.py").write_text(ABSTRACT)
    (task_folder / "words.py").write_text("WORDS = []\n")
    for name in ("base", "_secret", "loud", "words", "", "__init__"):
        assert name not in known()
        with pytest.raises(JobError, match=f"no task named '{name}'; "):
            find(name)


def test_a_misspelt_task_tells_the_nearest_and_all_known(task_folder):
    (task_folder / "shout.py").write_text(SHOUT)
    with pytest.raises(JobError, match=r"^no task named 'shuot'; did you mean 'shout'\? known: .*shout"):
        find("shuot")


def test_known_tasks_are_sorted_and_each_is_found():
    assert known() == sorted(known())
    for name in known():
        assert issubclass(find(name), Task)


def test_a_task_of_our_own_folder_that_fails_is_known_and_tells_why(task_folder):
    (task_folder / "broken.py").write_text("import json\nimport not_there\n")
    assert "broken" in known()
    with pytest.raises(
        JobError, match="task 'broken' fails when imported: line 2: ModuleNotFoundError: No module named"
    ):
        find("broken")


def test_a_users_file_is_a_task_once_code_is_allowed(write_task):
    task = find(write_task(SHOUT), allow_code=True)
    config = task.Config.model_validate({"name": "loud", "task": "shout.py", "text": "body", "marks": 3})
    assert task(config, None).config.marks == 3
    assert [field.name for field in task(config, None).fields()] == ["text"]


def test_a_users_file_needs_the_key(write_task):
    with pytest.raises(JobError, match="is code of your own: set `allow_code: true` in the job to run it"):
        find(write_task("raise RuntimeError('executed')"))


def test_the_same_file_gives_the_same_class_and_a_changed_one_another(write_task, monkeypatch, tmp_path):
    path = write_task(SHOUT)
    first = find(path, allow_code=True)
    monkeypatch.chdir(tmp_path)
    assert find("./shout.py", allow_code=True) is find("shout.py", allow_code=True) is first
    write_task(SHOUT.replace("!", "?"))
    assert find(path, allow_code=True) is not first


def test_two_files_of_one_name_are_two_tasks(write_task, tmp_path):
    (tmp_path / "other").mkdir()
    first = find(write_task(SHOUT), allow_code=True)
    assert find(write_task(SHOUT, "other/shout.py"), allow_code=True) is not first


def test_a_users_file_leaves_nothing_behind_in_its_folder(write_task, tmp_path):
    find(write_task(SHOUT), allow_code=True)
    assert [path.name for path in tmp_path.iterdir()] == ["shout.py"]


def test_another_process_finds_the_same_module_by_path(write_task):
    path = write_task(SHOUT)
    code = "import sys; from pipeline.tasks import find; print(find(sys.argv[1], allow_code=True).__module__)"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == find(path, allow_code=True).__module__


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import json\n\nraise ValueError('no luck')\n", "fails when imported: line 3: ValueError: no luck"),
        ("def inner():\n    return missing\n\ninner()\n", "line 2: NameError: name 'missing' is not defined"),
        ("x = 1\nclass :\n", "line 2: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('bye')\n", "line 2: SystemExit: bye"),
        ("x = 1\n", r"defines no Task: subclass pipeline.tasks.base.Task there"),
        (ABSTRACT, r"defines no Task that is complete \(Loud lacks annotate\)"),
        (SHOUT + "\nclass Louder(Shout):\n    pass\n", r"defines 2 tasks \(Shout, Louder\): one file, one task"),
        (
            SHOUT.replace("Config(AnnotationSettings)", "Config"),
            "Shout.Config must be a subclass of AnnotationSettings",
        ),
    ],
)
def test_a_file_that_is_no_task(write_task, text, told):
    path = write_task(text)
    for _ in range(2):  # a failed import leaves nothing half-made behind
        with pytest.raises(JobError, match=f"^task file '{path}'.*{told}"):
            find(path, allow_code=True)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(JobError, match=r"cannot be read .*gone\.py: No such file or directory"):
        find(str(tmp_path / "gone.py"), allow_code=True)


def test_a_folder_is_no_task_file(tmp_path):
    with pytest.raises(JobError, match=r"is neither the name of a task nor the path of a \.py file"):
        find(str(tmp_path), allow_code=True)


def test_a_folder_that_ends_like_a_file(tmp_path):
    (tmp_path / "odd.py").mkdir()
    with pytest.raises(JobError, match=r"cannot be read .*odd\.py: Is a directory"):
        find(str(tmp_path / "odd.py"), allow_code=True)


def test_finding_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from pipeline.tasks import known; known();"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
