"""Transformers imported for reading alone: what it brings along for compiling and for training stays out.

    import_lean()               # in a process of our own, before anything imports transformers' models

With its models, transformers imports torch's compiler (and with it a computer algebra system), tensors that are spread
over GPUs, and what training asks for: twice as much as torch itself in seconds, and 120 MB in each actor, none of
which an actor ever uses. Here they are told that this machine has none of it.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

_ABSENT = ("is_accelerate_available", "is_scipy_available", "is_torch_distributed_available")
"""What transformers asks whether it may import something for training, and hears no."""

_MARKS = frozenset({"allow_in_graph", "assume_constant_result", "disable", "mark_static_address"})
"""Decorators that tell the compiler something; where nothing is compiled they change nothing."""

_IMPORTED = ("transformers.modeling_layers", "transformers.modeling_utils", "pipeline.models.loading")


def import_lean() -> None:
    """Import what loads models so, for this process's life; nothing changes where it was imported already.

    A transformers that cannot be imported so will be imported whole by who needs it.
    """
    if "transformers.modeling_utils" in sys.modules or "torch._dynamo" in sys.modules:
        return
    import torch
    import transformers.utils  # noqa: F401 - of which nothing is left out

    before = set(sys.modules)
    compiler = _NoCompiler(Path(torch.__file__).parent / "_dynamo")
    sys.modules[compiler.__name__] = compiler
    try:
        with _without_training():
            for name in _IMPORTED:
                importlib.import_module(name)
    except Exception:  # noqa: BLE001 - another version of it; whole, it works or tells why not
        for name in sys.modules.keys() - before:
            if name.startswith(("transformers.", "pipeline.models.", compiler.__name__)):
                del sys.modules[name]


@contextlib.contextmanager
def _without_training() -> Iterator[None]:
    """Modules that are imported meanwhile keep the answer for good, so none contradicts itself."""
    places = [importlib.import_module(name) for name in ("transformers.utils", "transformers.utils.import_utils")]
    before = [(place, name, getattr(place, name)) for place in places for name in _ABSENT if hasattr(place, name)]
    for place, name, _ in before:
        setattr(place, name, _no)
    try:
        yield
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def _no(*_: object, **__: object) -> bool:
    return False


class _NoCompiler(ModuleType):
    """Stands for the package `torch._dynamo` until somebody asks for more than its decorators."""

    def __init__(self, folder: Path) -> None:
        super().__init__("torch._dynamo")
        self.__path__ = [str(folder)]  # modules beside them are imported as they are

    def __getattr__(self, name: str) -> Any:
        if name in _MARKS:
            return _unmarked
        if name.startswith("__"):  # the import system looks
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _unmarked(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    return _unmarked if function is None else function
