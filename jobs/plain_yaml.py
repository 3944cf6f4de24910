r"""YAML text to plain values: the safe part of YAML, its 1.2 scalars, and nothing that is lost in silence.

    "annotations:\n  - {name: topic, max_tokens: 256}"  ->  {"annotations": [{"name": "topic", "max_tokens": 256}]}

Scalars follow YAML 1.2's core schema: `no` and `on` are texts (as labels they are words), `1e-5` is a number,
`2024-01-01` and `12:30` are texts. A key given twice, an unknown tag and an alias that holds itself are refused; PyYAML
alone would keep the last of two equal keys.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

MOST_NODES = 100_000
"""Values in one document, aliases counted where they are used: a few lines of aliases can mean billions."""


class NotPlainYaml(ValueError):  # noqa: N818 - it says what the text is
    """The text is not YAML, or YAML that is refused; the message says where, on one or several lines."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own register


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """10, 010 (ten), 0x1F, 0o17."""
    text = loader.construct_scalar(node)
    try:
        return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)
    except ValueError:  # Python reads no more than 4,300 digits
        raise NotPlainYaml(f"{_place(node.start_mark)}: a number of {len(text)} digits is too long") from None


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    """A text; what JSON escapes as a pair of surrogates is one character, half a pair is none."""
    text = loader.construct_scalar(node)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise NotPlainYaml(f"{_place(node.start_mark)}: the text {text!a} holds half a character") from None


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), [*"-+0123456789"]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    [*"-+.0123456789"],
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Loader.add_constructor("tag:yaml.org,2002:str", _text)

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


def load(text: str) -> Any:
    """The one document in `text`; None where it is empty.

    Raises NotPlainYaml: not YAML, several documents, a tag, a key given twice, an alias that holds itself, more than
    `MOST_NODES` values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        faults = list(dict.fromkeys(_faults(node)))  # an anchor's fault shows again at each alias
        if faults:
            raise NotPlainYaml("\n".join(faults))
        return _unshared(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        raise NotPlainYaml(_in_words(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotPlainYaml(f"line {line}: the character {error.character!r} is not allowed in YAML") from None
    except RecursionError:
        raise NotPlainYaml("nested too deeply") from None


def _unshared(value: Any) -> Any:
    """The value with a copy at each alias: changing one place must not change another."""
    if isinstance(value, dict):
        return {key: _unshared(each) for key, each in value.items()}
    return [_unshared(each) for each in value] if isinstance(value, list) else value


def _in_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "cannot be read"
    if "'\\t'" in problem:
        problem += " (indent with spaces)"
    if "unhashable" in problem:
        problem = "a key must be one word or number, not a list or a mapping"
    mark = error.problem_mark or error.context_mark
    return f"{_place(mark)}: {problem}" if mark else problem


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _faults(root: yaml.Node) -> Iterator[str]:
    """What is wrong in a tree of nodes that the parser took, in the order of the text."""
    waiting: list[tuple[yaml.Node, frozenset[int]]] = [(root, frozenset())]
    seen = 0
    while waiting:
        node, above = waiting.pop()
        seen += 1
        if seen > MOST_NODES:
            yield f"more than {MOST_NODES} values, aliases counted where they are used"
            return
        if id(node) in above:
            yield f"{_place(node.start_mark)}: an alias holds itself"
            continue
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            yield f"{_place(node.start_mark)}: the tag {tag} is refused: a job file holds plain values, never objects"
            continue
        below = above | {id(node)}
        if isinstance(node, yaml.MappingNode):
            yield from _doubled(node)
            waiting.extend((child, below) for pair in reversed(node.value) for child in reversed(pair))
        elif isinstance(node, yaml.SequenceNode):
            waiting.extend((child, below) for child in reversed(node.value))


def _doubled(node: yaml.MappingNode) -> Iterator[str]:
    first: dict[tuple[str, str], yaml.Mark] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        before = first.get((key.tag, key.value))
        if before is None:
            first[key.tag, key.value] = key.start_mark
        else:
            yield f"{_place(key.start_mark)}: the key {key.value!r} is given twice, first on line {before.line + 1}"
