"""Transformers imported for reading alone: what it brings along for compiling and for training stays out.

    import_lean()               # in a process of our own, before anything imports transformers' models

With its models, transformers imports torch's compiler (and with it a computer algebra system, which torch also asks
whether two lengths are equal), tensors that are spread over GPUs, and what training asks for: twice as much as torch
itself in seconds, and 150 MB in each actor, none of which an actor ever uses. Here they are told that this machine has
none of it.
"""

import contextlib
import importlib
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_ABSENT = ("is_accelerate_available", "is_scipy_available", "is_torch_distributed_available")
"""What transformers asks whether it may import something for training, and hears no."""

_MARKS = frozenset({"allow_in_graph", "assume_constant_result", "disable", "mark_static_address"})
"""Decorators that tell the compiler something; where nothing is compiled they change nothing."""

_OF_KNOWN_LENGTHS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious"), bool),
    "is_nested_int": lambda _: False,
    "sym_eq": operator.eq,
}
"""What torch asks of lengths that may be symbols, and the answer where none is."""

_READ = "define_import_structure"
"""Of transformers': what reads the files of a package for the names that they have."""

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
    compiler = _StandIn("torch._dynamo", dict.fromkeys(_MARKS, _unmarked), Path(torch.__file__).parent / "_dynamo")
    stand_ins = (compiler, _no_symbols())
    sys.modules |= {each.__name__: each for each in stand_ins if each.__name__ not in sys.modules}
    try:
        with _without_training(), _read_once():
            for name in _IMPORTED:
                importlib.import_module(name)
    except Exception:  # noqa: BLE001 - another version of it; whole, it works or tells why not
        for name in sys.modules.keys() - before:
            if name.startswith(("transformers.", "pipeline.models.", *(each.__name__ for each in stand_ins))):
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


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Inside the block, transformers need not read each file of its models for their names: it has, a moment ago.

    It reads them all for itself, to know who has which name, and a second time for its package of models.
    """
    place = importlib.import_module("transformers.utils.import_utils")
    before: Callable[..., Any] | None = getattr(place, _READ, None)
    names = None if before is None else _names_of_models(importlib.import_module("transformers"))
    if before is None or names is None:
        yield
        return
    of_models = str(Path(place.__file__ or "").parents[1] / "models" / "__init__.py")

    def read(path: Any, *given: Any, **named: Any) -> Any:
        return names if path == of_models and not (given or named) else before(path, *given, **named)

    setattr(place, _READ, read)
    try:
        yield
    finally:
        setattr(place, _READ, before)


def _names_of_models(whole: ModuleType) -> dict[frozenset[str], dict[str, set[str]]] | None:
    """Names by the packages that they miss here and by module, as transformers found them; None where it does not tell.

    {frozenset(): {"bert.configuration_bert": {"BertConfig"}}, frozenset({"torchvision"}): {…}}
    """
    try:
        modules, missing = whole._import_structure, whole._object_missing_backend
        found: dict[frozenset[str], dict[str, set[str]]] = {frozenset(): {}}
        for module, names in modules.items():
            package, _, inside = module.partition(".")
            if package == "models" and inside:
                found[frozenset()].setdefault(inside, set())
                for name in names:
                    found.setdefault(frozenset(missing.get(name, ())), {}).setdefault(inside, set()).add(name)
    except (AttributeError, TypeError):
        return None
    return found if found[frozenset()] else None


class _StandIn(ModuleType):
    """Stands for a module until somebody asks for more than it answers; then it is imported."""

    def __init__(self, name: str, answers: Mapping[str, Callable[..., Any]], folder: Path | None = None) -> None:
        """`folder`: of a package, whose other modules are imported as they are."""
        super().__init__(name)
        self.answers = answers
        if folder is not None:
            self.__path__ = [str(folder)]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # the import system looks
            raise AttributeError(name)
        if name in self.answers:
            return self.answers[name]
        return getattr(self.whole(), name)

    def whole(self) -> ModuleType:
        """The module itself, from now on."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


def _no_symbols() -> _StandIn:
    """What torch asks of shapes on its `meta` device, where a length may be a symbol: ours are known."""
    module = _StandIn("torch.fx.experimental.symbolic_shapes", {})

    def known(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def answered(*given: Any) -> Any:
            return answer(*given) if all(map(_is_known, given)) else getattr(module.whole(), name)(*given)

        return answered

    module.answers = {name: known(name, answer) for name, answer in _OF_KNOWN_LENGTHS.items()}
    return module


def _is_known(value: Any) -> bool:
    """Whether it is a number, a bool, or a shape of numbers, and not a symbol."""
    return type(value) in (bool, int) or (isinstance(value, tuple) and all(map(_is_known, value)))


def _unmarked(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    return _unmarked if function is None else function
