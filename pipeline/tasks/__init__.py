"""The finder of tasks: a name becomes the class that does it, and no list is kept anywhere.

    find("classify")                          the single concrete Task of pipeline/tasks/classify.py
    find("my/shout.py", allow_code=True)      the single concrete Task of a user's own file
    known()                                   ["classify", "embed", "zero_shot"]

`base.py`, names that begin with `_` and files that only hold abstract classes are no tasks. Every process that needs a
user's task calls `find` with its path again: the class is not pickled.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from pipeline.errors import JobError
from pipeline.tasks.base import AnnotationSettings, Task


def find(name: str, allow_code: bool = False) -> type[Task]:
    """The task of that name, or of that `.py` file.

    Raises JobError: no such task (nearest match and all known told); a file without `allow_code`; no such file; a file
    that fails when imported; no concrete Task in it, or several; a Config that is no AnnotationSettings.
    """
    if name.endswith(".py") or "/" in name:
        return _single_task(_import_file(name, allow_code), f"task file {name!r}")
    if name in _module_names() and _may_be_task(name):
        return _single_task(_import_own(name), f"task {name!r}")
    names = known()
    match = get_close_matches(name, names, n=1)
    hint = f" did you mean {match[0]!r}?" if match else ""
    raise JobError(f"no task named {name!r};{hint} known: {', '.join(names)}")


def known() -> list[str]:
    """Names of all tasks in this folder, sorted."""
    return [name for name in _module_names() if _may_be_task(name)]


def _module_names() -> list[str]:
    """Files of this folder that may hold a task, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def _may_be_task(name: str) -> bool:
    """Whether the file holds a task, or fails so that nobody can know; `find` then tells why it fails."""
    try:
        return bool(_tasks_of(_import_own(name)))
    except JobError:
        return True


def _import_own(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except Exception as fault:
        spec = importlib.util.find_spec(f"{__name__}.{name}")
        place = Path(spec.origin) if spec is not None and spec.origin is not None else Path()
        raise JobError(f"task {name!r} fails when imported: {_cause(fault, place)}") from fault


def _tasks_of(module: ModuleType) -> list[type[Task]]:
    """Concrete tasks that this module defines itself: what it imports from others is theirs."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]


def _single_task(module: ModuleType, place: str) -> type[Task]:
    tasks = _tasks_of(module)
    if not tasks:
        raise JobError(f"{place} defines no Task{_unfinished(module)}: subclass pipeline.tasks.base.Task there")
    if len(tasks) > 1:
        names = ", ".join(task.__name__ for task in tasks)
        raise JobError(f"{place} defines {len(tasks)} tasks ({names}): one file, one task")
    config = tasks[0].Config
    if not (inspect.isclass(config) and issubclass(config, AnnotationSettings)):
        raise JobError(f"{place}: {tasks[0].__name__}.Config must be a subclass of AnnotationSettings, not {config!r}")
    return tasks[0]


def _unfinished(module: ModuleType) -> str:
    """Which methods the abstract tasks of a file still lack."""
    lacking = [
        f"{value.__name__} lacks {', '.join(sorted(value.__abstractmethods__))}"
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    return f" that is complete ({'; '.join(lacking)})" if lacking else ""


def _import_file(name: str, allow_code: bool) -> ModuleType:
    """A user's file as a module whose name tells its place and content: the same file gives the same classes."""
    if not allow_code:
        raise JobError(f"task {name!r} is code of your own: set `allow_code: true` in the job to run it")
    path = Path(name).expanduser().resolve()
    if path.suffix != ".py":
        raise JobError(f"task {name!r} is neither the name of a task nor the path of a .py file")
    try:
        code = path.read_bytes()
    except OSError as fault:
        raise JobError(f"task file {name!r} cannot be read ({path}: {fault.strerror})") from fault
    identity = hashlib.sha256(bytes(path) + b"\0" + code)
    module_name = f"task_{identity.hexdigest()[:16]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: pydantic and dataclasses look up a class's module by its name.
    sys.modules[module_name] = module
    try:
        # Not the spec's loader: it may take older code from a cache, and writes one into the user's folder.
        exec(compile(code, path, "exec"), vars(module))
    except (Exception, SystemExit) as fault:
        del sys.modules[module_name]
        raise JobError(f"task file {name!r} fails when imported: {_cause(fault, path)}") from fault
    return module


def _cause(fault: BaseException, path: Path) -> str:
    """The line of that file at which it failed, and how: `line 3: ValueError: …`."""
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
    if isinstance(fault, SyntaxError) and fault.filename == str(path):
        lines.append(fault.lineno)
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(fault).__name__}: {fault}"
