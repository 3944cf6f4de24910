"""pydantic's errors in words, with the place in the job file and what would be right.

    {"type": "less_than_equal", "loc": ("annotations", 0, "max_tokens"), "input": 100000000, "ctx": {"le": 1000000}}
    ->  annotations.0.max_tokens: 100000000 is too large; at most 1000000

Pure: from the errors, the document and the model that refused it.
"""

import difflib
import json
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]

LONGEST_SHOWN = 60
"""Characters of a value that a message shows."""

_WANTED = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping",
    "model_attributes": "a mapping",
    "none_required": "null",
}
"""What pydantic's type errors (`int_type`, `model_type` …) want."""

_BOUNDS = {
    "greater_than_equal": ("ge", "is too small; at least"),
    "greater_than": ("gt", "is too small; more than"),
    "less_than_equal": ("le", "is too large; at most"),
    "less_than": ("lt", "is too large; less than"),
    "multiple_of": ("multiple_of", "does not fit; a multiple of"),
}
"""pydantic's range errors: where the bound stands, and the words around it."""

_LENGTHS = {
    "string_too_short": ("min_length", "is too short; at least", "character"),
    "string_too_long": ("max_length", "is too long; at most", "character"),
    "too_short": ("min_length", "is too short; at least", "entry"),
    "too_long": ("max_length", "is too long; at most", "entry"),
}
"""pydantic's length errors, with what is counted."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, if any is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return found[0] if found else None


def shown(value: Any) -> str:
    """A value of a job file as a person wrote it, cut where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def complaints(error: ValidationError, document: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """One line for each thing that is wrong, in the order of the document.

    A value that may be of several types fails once for each of them; these are told together, and only for the type
    that it comes nearest to.
    """
    found: dict[Path, list[Mapping[str, Any]]] = {}
    for one in error.errors(include_url=False):
        found.setdefault(_path(one, document), []).append(dict(one))
    lines = []
    for path in sorted(found, key=lambda path: _order(path, document)):
        deeper = any(other[: len(path)] == path and len(other) > len(path) for other in found)
        # A value of the wrong kind for one branch of a union may be right, or nearly so, for another.
        here = [one for one in found[path] if not (deeper and (_wanted(one) or one["type"] == "literal_error"))]
        wrong_type = [one for one in here if _wanted(one)]
        told = [_words(one, path, document, model) for one in here if not _wanted(one)]
        if wrong_type and not told:
            told = [_wrong_type(wrong_type)]
        elif wrong_type and all(one["type"] == "literal_error" or _wanted(one) for one in here):
            told = [f"{told[0]}, or {_either(wrong_type)}"]
        place = ".".join(str(step) for step in path)
        lines += [f"{place}: {words}" if place else words for words in dict.fromkeys(told)]
    return lines


def _path(one: Mapping[str, Any], document: Any) -> Path:
    """Where an error lies in the document: its `loc` without the branches of unions that pydantic names there."""
    path: list[str | int] = []
    node = document
    for depth, step in enumerate(one["loc"]):
        last = depth == len(one["loc"]) - 1
        if _holds(node, step):
            path.append(step)
            node = node[step]
        elif last and one["type"] == "missing":
            path.append(step)
    return tuple(path)


def _holds(node: Any, step: str | int) -> bool:
    if isinstance(node, Mapping):
        return step in node
    return isinstance(node, list) and isinstance(step, int) and step < len(node)


def _order(path: Path, document: Any) -> list[int]:
    """Sorts paths as they stand in the document; a key that is not there comes after those that are."""
    order: list[int] = []
    node = document
    for step in path:
        if not _holds(node, step):
            return [*order, sys.maxsize]
        order.append(step if isinstance(node, list) and isinstance(step, int) else list(node).index(step))
        node = node[step]
    return order


def _wanted(one: Mapping[str, Any]) -> str | None:
    """What an error of a wrong type wants; None for every other error."""
    return _WANTED.get(str(one["type"]).removesuffix("_type"))


def _either(errors: Sequence[Mapping[str, Any]]) -> str:
    """What any of these errors of a wrong type wants."""
    return " or ".join(dict.fromkeys(str(_wanted(one)) for one in errors))


def _wrong_type(errors: Sequence[Mapping[str, Any]]) -> str:
    """`'256' is a text; a whole number is wanted: write it without quotes`."""
    value = errors[0]["input"]
    wanted = _either(errors)
    if errors[0]["loc"][-1:] == ("[key]",):
        return f"the key {shown(value)} is no text: put it in quotes"
    hint = ""
    if isinstance(value, str) and wanted == "true or false" and value.lower() in {"yes", "no", "on", "off"}:
        hint = f": write {'true' if value.lower() in {'yes', 'on'} else 'false'}"
    elif isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d+)?|true|false", value) and "a text" not in wanted:
        hint = ": write it without quotes"
    elif isinstance(value, bool | int | float) and "a text" in wanted:
        hint = ": put it in quotes"
    return f"{shown(value)} is {_kind(value)}; {wanted} is wanted{hint}"


def _kind(value: Any) -> str:
    """What a value of a job file is, in the words of `_WANTED`."""
    if value is None:
        return "nothing"
    kinds = ((bool, "a truth value"), (str, "a text"), (int, "a whole number"), (float, "a number"), (list, "a list"))
    return next((words for kind, words in kinds if isinstance(value, kind)), "a mapping")


def _words(one: Mapping[str, Any], path: Path, document: Any, model: type[BaseModel]) -> str:  # noqa: C901 - a dispatch
    """One error that is not about a type, in words."""
    kind, value, context = one["type"], one["input"], one.get("ctx", {})
    if kind == "missing":
        return "this key is missing"
    if kind == "extra_forbidden":
        return choice("there is no such key", str(path[-1]), _fields_at(model, document, path[:-1]))
    if kind in {"literal_error", "enum"}:
        return choice(f"{shown(value)} is not allowed", value, re.findall(r"'([^']*)'", context["expected"]))
    if kind == "union_tag_invalid":
        key, known = context["discriminator"].strip("'"), re.findall(r"'([^']*)'", context["expected_tags"])
        return choice(f"{key}: {context['tag']!r} is not allowed", context["tag"], known)
    if kind == "union_tag_not_found":
        return f"the key {context['discriminator']} is missing"
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return f"{shown(value)} {words} {_number(context[key])}"
    if kind in _LENGTHS:
        key, words, unit = _LENGTHS[kind]
        if not value:
            return "must not be empty"
        return f"{shown(value)} {words} {context[key]} {unit}{'' if context[key] == 1 else 's'}".replace(
            "entrys", "entries"
        )
    if kind == "string_pattern_mismatch":
        return f"{shown(value)} does not fit the pattern {context['pattern']}"
    if kind == "invalid_key":
        return f"the key {shown(value)} is no text"
    if kind == "finite_number":
        return f"{shown(value)} is no finite number"
    if kind in {"value_error", "assertion_error"}:
        return str(context["error"])
    return str(one["msg"])  # a validator of ours chose the words


def _number(bound: Any) -> str:
    return str(int(bound)) if isinstance(bound, float) and bound.is_integer() else str(bound)


def choice(problem: str, word: Any, known: Sequence[str]) -> str:
    """`problem; did you mean 'top_k'? known: name, task, top_k`."""
    meant = nearest(word, known) if isinstance(word, str) else None
    guess = f"; did you mean {meant!r}?" if meant else ";"
    return f"{problem}{guess} known: {', '.join(known)}" if known else problem


def _fields_at(model: type[BaseModel], document: Any, path: Path) -> list[str]:
    """Names of the keys that are allowed at a place of the document, in the order of the settings class."""
    kinds: list[Any] = [model]
    node = document
    for step in path:
        node = node[step]
        kinds = [_chosen(below, node, document) for kind in kinds for below in _below(kind, step)]
    return list(dict.fromkeys(name for kind in kinds if _is_model(kind) for name in kind.model_fields))


def _below(kind: Any, step: str | int) -> Iterator[Any]:
    """The types that may stand under `step` of a value of type `kind`."""
    if _is_model(kind):
        field = kind.model_fields.get(step)
        yield from _branches(field.annotation) if field else ()
    elif get_origin(kind) in {list, tuple}:
        yield from _branches(get_args(kind)[0])
    elif get_origin(kind) in {dict, Mapping}:
        yield from _branches(get_args(kind)[1])


def _branches(kind: Any) -> Iterator[Any]:
    """A type without `Annotated`, and the branches of a union."""
    if get_origin(kind) is Annotated:
        yield from _branches(get_args(kind)[0])
    elif get_origin(kind) in {Union, types.UnionType}:
        for branch in get_args(kind):
            yield from _branches(branch)
    else:
        yield kind


def _chosen(kind: Any, value: Any, document: Mapping[str, Any]) -> Any:
    """The settings class of an annotation is its task's, of an objective its own; every other type is what it says."""
    from pipeline import tasks  # only where a message needs them
    from pipeline.tasks.base import AnnotationSettings
    from pipeline.training import objectives
    from pipeline.training.objectives.base import ObjectiveSettings

    if not (_is_model(kind) and isinstance(value, Mapping)):
        return kind
    allow_code = document.get("allow_code") is True
    if issubclass(kind, AnnotationSettings):
        return tasks.find(value["task"], allow_code=allow_code).Config
    if issubclass(kind, ObjectiveSettings):
        return objectives.find(value["name"], allow_code=allow_code).Config
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
