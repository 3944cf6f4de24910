"""Finders: a name becomes the class of one file in a folder of ours, or in a file of the user's own.

    tasks = Finder("pipeline.tasks", Task, AnnotationSettings, "task")
    tasks.find("classify")                          the single concrete Task of pipeline/tasks/classify.py
    tasks.find("my/shout.py", allow_code=True)      the single concrete Task of a user's own file
    tasks.known()                                   ["classify", "embed", "zero_shot"]

`base.py`, names that begin with `_` and files that only hold abstract classes are none. Every process that needs a
user's class calls `find` with its path again: the class is not pickled.
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
from typing import Generic, TypeVar

from pydantic import BaseModel

from pipeline.errors import JobError

Found = TypeVar("Found")


class Finder(Generic[Found]):
    """The classes of one kind: each in a file of its own, with a `Config` of its own."""

    def __init__(self, package: str, base: type[Found], config: type[BaseModel], noun: str) -> None:
        """`package`: the folder's module name; `base`: what a class must subclass; `noun`: what messages call it."""
        self._package = package
        self._base = base
        self._config = config
        self._noun = noun

    def find(self, name: str, allow_code: bool = False) -> type[Found]:
        """The class of that name, or of that `.py` file.

        Raises JobError: no such name (nearest match and all known told); a file without `allow_code`; no such file; a
        file that fails when imported; no concrete class in it, or several; a Config of another kind.
        """
        if name.endswith(".py") or "/" in name:
            return self._single(self._import_file(name, allow_code), f"{self._noun} file {name!r}")
        if name in self._module_names() and self._may_be_one(name):
            return self._single(self._import_own(name), f"{self._noun} {name!r}")
        names = self.known()
        match = get_close_matches(name, names, n=1)
        hint = f" did you mean {match[0]!r}?" if match else ""
        raise JobError(f"no {self._noun} named {name!r};{hint} known: {', '.join(names)}")

    def known(self) -> list[str]:
        """Names of all in the folder, sorted."""
        return [name for name in self._module_names() if self._may_be_one(name)]

    def _module_names(self) -> list[str]:
        """Files of the folder that may hold one, sorted."""
        names = (module.name for module in pkgutil.iter_modules(sys.modules[self._package].__path__))
        return sorted(name for name in names if name != "base" and not name.startswith("_"))

    def _may_be_one(self, name: str) -> bool:
        """Whether the file holds one, or fails so that nobody can know; `find` then tells why it fails."""
        try:
            return bool(self._classes_of(self._import_own(name)))
        except JobError:
            return True

    def _import_own(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{self._package}.{name}")
        except Exception as fault:
            spec = importlib.util.find_spec(f"{self._package}.{name}")
            place = Path(spec.origin) if spec is not None and spec.origin is not None else Path()
            raise JobError(f"{self._noun} {name!r} fails when imported: {_cause(fault, place)}") from fault

    def _classes_of(self, module: ModuleType) -> list[type[Found]]:
        """Concrete classes that this module defines itself: what it imports from others is theirs."""
        return [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, self._base)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        ]

    def _single(self, module: ModuleType, place: str) -> type[Found]:
        classes = self._classes_of(module)
        base = self._base
        if not classes:
            wanted = f"subclass {base.__module__}.{base.__name__} there"
            raise JobError(f"{place} defines no {base.__name__}{self._unfinished(module)}: {wanted}")
        if len(classes) > 1:
            names = ", ".join(each.__name__ for each in classes)
            raise JobError(f"{place} defines {len(classes)} {self._noun}s ({names}): one file, one {self._noun}")
        config = getattr(classes[0], "Config", None)
        if not (inspect.isclass(config) and issubclass(config, self._config)):
            raise JobError(
                f"{place}: {classes[0].__name__}.Config must be a subclass of {self._config.__name__}, not {config!r}"
            )
        return classes[0]

    def _unfinished(self, module: ModuleType) -> str:
        """Which methods the abstract classes of a file still lack."""
        lacking = [
            f"{value.__name__} lacks {', '.join(sorted(getattr(value, '__abstractmethods__', ())))}"
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, self._base) and value.__module__ == module.__name__
        ]
        return f" that is complete ({'; '.join(lacking)})" if lacking else ""

    def _import_file(self, name: str, allow_code: bool) -> ModuleType:
        """A user's file as a module whose name tells its place and content: the same file gives the same classes."""
        if not allow_code:
            raise JobError(f"{self._noun} {name!r} is code of your own: set `allow_code: true` in the job to run it")
        path = Path(name).expanduser().resolve()
        if path.suffix != ".py":
            raise JobError(f"{self._noun} {name!r} is neither the name of a {self._noun} nor the path of a .py file")
        try:
            code = path.read_bytes()
        except OSError as fault:
            raise JobError(f"{self._noun} file {name!r} cannot be read ({path}: {fault.strerror})") from fault
        identity = hashlib.sha256(bytes(path) + b"\0" + code)
        module_name = f"{self._noun}_{identity.hexdigest()[:16]}"
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
            raise JobError(f"{self._noun} file {name!r} fails when imported: {_cause(fault, path)}") from fault
        return module


def _cause(fault: BaseException, path: Path) -> str:
    """The line of that file at which it failed, and how: `line 3: ValueError: …`."""
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
    if isinstance(fault, SyntaxError) and fault.filename == str(path):
        lines.append(fault.lineno)
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(fault).__name__}: {fault}"
