"""A job file: YAML on disk, with overrides from the command line, to checked settings.

    kind: annotate
    corpus: {path: corpus/}
    annotations:
      - {name: topic, task: classify, text: "{title}", model: "wheel:some_model/model"}
    output: {path: out/topics}

with `-o annotations.0.dtype=float32` reads as a dict whose first annotation has `"dtype": "float32"`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jobs import plain_yaml
from jobs.complaints import complaints, nearest, shown
from pipeline.errors import JobError
from pipeline.settings import Settings

Checked = TypeVar("Checked", bound=Settings)

MOST_BYTES = 16 * 2**20
"""Bytes of a job file; what is larger is something else, given by mistake."""


def read(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The job file as a dict, with the overrides (`key.path=value`) in it.

    Raises JobError: no such file, a folder, unreadable, not UTF-8, not YAML, a tag, a key given twice, empty, not a
    mapping, an override that reaches nothing.
    """
    try:
        document = plain_yaml.load(_text(path))
    except plain_yaml.NotPlainYaml as error:
        raise JobError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
    if document is None:
        raise JobError(f"{path}: the file is empty; a job begins with `kind:`")
    if not isinstance(document, dict):
        raise JobError(f"{path}: the top level is {shown(document)}; keys and values are wanted, `kind:` first")
    override(document, overrides)
    return document


def override(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change a document by `key.path=value` in their order; digits reach into lists.

    Mappings on the way that are missing are made, entries of lists never. Raises JobError.
    """
    for one in overrides:
        _put(document, one)


def parse(document: Mapping[str, Any], model: type[Checked], source: str = "job") -> Checked:
    """The document as settings of this model; `source` (the file's path) begins each line of the message.

    Raises JobError with all that is wrong, one a line, in the order of the file.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        lines = complaints(error, document, model)
        raise JobError("\n".join(f"{source}: {line}" for line in lines)) from None


def _text(path: str) -> str:
    """The file as text."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise JobError(f"{path}: no such file{_sibling(Path(path))}") from None
    except IsADirectoryError:
        raise JobError(f"{path}: this is a folder, not a job file{_listed(_job_files(Path(path)))}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise JobError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise JobError(f"{path}: more than {MOST_BYTES // 2**20} MiB; this is no job file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise JobError(
            f"{path}: not UTF-8: the byte 0x{content[error.start]:02x} on line {line}; save the file as UTF-8"
        ) from None


def _job_files(folder: Path) -> list[str]:
    """Names of the YAML files in a folder that can be listed."""
    try:
        return sorted(file.name for file in folder.iterdir() if file.suffix in {".yaml", ".yml"})
    except OSError:
        return []


def _sibling(path: Path) -> str:
    """What to say of the files beside one that is not there."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    names = _job_files(path.parent)
    meant = nearest(path.name, names)
    return f"; did you mean {str(path.parent / meant)!r}?" if meant else _listed(names)


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"; here are {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _put(document: dict[str, Any], override: str) -> None:
    """Set what one override names."""
    place, equals, text = override.partition("=")
    steps = place.strip().split(".")
    if not equals:
        raise JobError(f"-o {override}: there is no `=`; write -o key.path=value")
    if not all(steps):
        raise JobError(f"-o {override}: {place.strip()!r} is no key path; write -o key.path=value")
    try:
        value = plain_yaml.load(text)
    except plain_yaml.NotPlainYaml as error:
        raise JobError(f"-o {override}: the value is not YAML: {error}") from None
    node: Any = document
    for depth, step in enumerate(steps):
        key = _key(node, steps[:depth], step, override)
        if depth == len(steps) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = node = {}
        else:
            node = node[key]


def _key(node: Any, above: Sequence[str], step: str, override: str) -> str | int:
    """The key or index that a step names in a node; JobError where it cannot."""
    here = ".".join(above)
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise JobError(f"-o {override}: {here} is {shown(node)}, which has no keys")
    if not step.isdecimal():
        raise JobError(f"-o {override}: {here} is a list; {step!r} is no index (0, 1 …)")
    if int(step) >= len(node):
        entries = f"{len(node)} entr{'y' if len(node) == 1 else 'ies'}"
        raise JobError(f"-o {override}: {here} has {entries}, counted from 0; there is no {step}")
    return int(step)
