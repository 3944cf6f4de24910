r"""What tasks there are, and what one offers: from its code, its docstrings and the jobs that ship.

    catalogue()        -> {"classify": "A label for each text, from a model …", "embed": …}
    described("embed") -> Entry(name="embed", says="A vector for each text.\n\n…", needs="AutoModel",
                                own=[Option("pooling", "mean | cls | max | last", …), …], shared=[…],
                                columns={"description_embedding": "fixed_size_list<float>[384]", …}, …)

No weights are loaded and no network is used. What a task adds may depend on its model: columns are those of the
example, whose model is looked at where it lies on this machine.
"""

import inspect
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jobs import plain_yaml
from jobs.table import printable
from pipeline import tasks
from pipeline.errors import CorpusmillError, JobError, ModelError
from pipeline.models.reference import PinnedModel, pin
from pipeline.tasks.base import OWN_MODULE, AnnotationSettings, Task

CONFIGS = Path(__file__).parent / "configs"
"""Jobs that ship: the examples."""

_OF_EVERY_JOB = ("name", "task", "text", "model")
"""Keys of an annotation that a job to fill in has in any case."""

_LEAST_MODELS: Sequence[Mapping[str, Any]] = (
    {"id2label": {"0": "O", "1": "LABEL_1"}},
    {"id2label": {"0": "LABEL_0"}},
    {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
)
"""What a model that nobody looked at may say of itself: one of these is enough for most tasks to tell their columns."""

_KINDS = {"string": "a text", "integer": "a whole number", "number": "a number", "boolean": "true | false"}
"""JSON schema's types in the words of a job file."""

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "multipleOf": "a multiple of",
}

_LENGTHS = {
    "minLength": ("at least", "character"),
    "maxLength": ("at most", "character"),
    "minItems": ("at least", "entry"),
    "maxItems": ("at most", "entry"),
    "minProperties": ("at least", "entry"),
    "maxProperties": ("at most", "entry"),
}


@dataclass(frozen=True, slots=True)
class Option:
    """One key that an annotation may have."""

    name: str  # dotted where it stands in a mapping: `model.sha256`
    kind: str  # type and bounds, in words
    required: bool
    default: Any  # None: the description tells what happens without it
    description: str


@dataclass(frozen=True, slots=True)
class Entry:
    """What one task offers."""

    name: str
    says: str  # what it does, and samples of it
    needs: str | None  # the transformers class that loads its model, or its own module; None: no model
    own: list[Option]
    shared: list[Option]  # what every annotation has
    adds: str | None  # its columns in the task's own words
    columns: (
        dict[str, str] | None
    )  # name -> Arrow type, of the example's annotation; None: nobody knows without a model
    model_decides: bool  # whether the example's model, which was not looked at, may add others
    examples: list[str]  # paths of jobs that ship with this task in them, the plainest first
    job: str  # the first of them, or one to fill in


def catalogue() -> dict[str, str]:
    """Each task with the line that says what it does; a file that cannot be imported, with the reason."""
    lines = {}
    for name in tasks.known():
        try:
            lines[name] = _says(tasks.find(name)).partition("\n")[0]
        except JobError as error:
            lines[name] = str(error)
    return lines


def described(name: str, allow_code: bool = False) -> Entry:
    """What a task offers, or the task of a user's own file.

    Raises JobError: no such task (nearest match and all known told); whatever is wrong with a user's file or its code.
    """
    kind = tasks.find(name, allow_code)
    shared = _options(AnnotationSettings)
    options = _options(kind.Config)
    examples = _examples(name)
    path, settings = examples[0] if examples else (None, {"name": "found", "task": name, "text": "body"})
    columns, model_decides = _columns(kind, settings)
    return Entry(
        name=name,
        says=_says(kind),
        needs=kind.needs,
        own=[option for option in options if option not in shared],
        shared=[option for option in options if option in shared],
        adds=inspect.cleandoc(kind.fields.__doc__) if kind.fields.__doc__ else None,
        columns=columns,
        model_decides=model_decides,
        examples=[_shown(path) for path, _ in examples],
        job=_to_fill_in(name, kind, options) if path is None else path.read_text(encoding="utf-8"),
    )


def _says(kind: type[Task]) -> str:
    """The module's docstring, which holds samples; of a file without one, the class's."""
    return inspect.cleandoc(sys.modules[kind.__module__].__doc__ or kind.__doc__ or "it says nothing of itself")


# ------------------------------------------------------------------------------------------------------------- options


def _options(config: type[AnnotationSettings]) -> list[Option]:
    """The keys of a settings class: its own before those that it inherits."""
    schema = config.model_json_schema()
    order: dict[str, None] = {}
    for base, above in pairwise(kind for kind in config.__mro__ if issubclass(kind, BaseModel)):
        order |= dict.fromkeys(name for name in base.model_fields if name not in above.model_fields)
    return [option for name in order for option in _option(name, name, schema, schema.get("$defs", {}))]


def _option(name: str, key: str, within: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Option]:
    """A key of an object's schema, and the keys of a mapping that may stand there, one level deep."""
    schema = within["properties"][key]
    said = " ".join(schema.get("description", "").split())
    required = key in within.get("required", ())
    found = [Option(name, _kind(schema, defs), required, schema.get("default"), said)]
    for branch in schema.get("anyOf", [schema]):
        if "$ref" in branch and "." not in name:
            inner = _meant(branch, defs)
            found += [
                each for below in inner.get("properties", ()) for each in _option(f"{name}.{below}", below, inner, defs)
            ]
    return found


def _meant(reference: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a `$ref` names: of a mapping, or of an enumeration."""
    meant: Mapping[str, Any] = defs[reference["$ref"].rpartition("/")[2]]
    return meant


def _kind(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """`a whole number, at least 1`: what a JSON schema allows, without null."""
    if "anyOf" in schema or "oneOf" in schema:
        branches = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return ", or ".join(dict.fromkeys(_kind(each, defs) for each in branches if each.get("type") != "null"))
    if "$ref" in schema:
        meant = _meant(schema, defs)
        return f"a mapping: {', '.join(meant['properties'])}" if "properties" in meant else _kind(meant, defs)
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    told = _KINDS.get(schema.get("type", ""), "any value")
    if schema.get("type") == "array":
        told = f"a list ({_kind(schema['items'], defs)})" if schema.get("items") else "a list"
    elif schema.get("type") == "object":
        values = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
        told = f"a mapping (to {_kind(values, defs)})" if isinstance(values, Mapping) else "a mapping"
    bounds = [f"{words} {_number(schema[key])}" for key, words in _BOUNDS.items() if key in schema]
    for key, (words, unit) in _LENGTHS.items():
        if key in schema and schema[key] != (1 if unit == "character" else 0):  # an empty text says nothing anyway
            plural = unit if schema[key] == 1 else {"character": "characters", "entry": "entries"}[unit]
            bounds.append(f"{words} {_number(schema[key])} {plural}")
    return ", ".join([told, *bounds])


def _number(bound: float) -> str:
    return f"{int(bound):,}" if float(bound).is_integer() else str(bound)


# -------------------------------------------------------------------------------------------------- columns, examples


def _columns(kind: type[Task], settings: Mapping[str, Any]) -> tuple[dict[str, str] | None, bool]:
    """Name and Arrow type of each column that a task adds; and whether an unseen model may change them.

    Raises JobError where the task's own code fails, whatever model it is given.
    """
    from pipeline.annotator import columns_of

    try:
        config = kind.Config.model_validate(settings)
        model = _model_here(config)
        if model is not None or kind.needs is None:
            return _typed(columns_of(kind(config, model))), False
    except (CorpusmillError, ValueError):  # ValueError: options that only a person can fill in
        return None, kind.needs is not None
    except Exception as fault:
        raise JobError(
            f"task {settings['task']!r} cannot tell its columns: its code raises {type(fault).__name__}: {fault}"
        ) from fault
    for least in _LEAST_MODELS:
        with TemporaryDirectory() as folder:
            try:
                return _typed(columns_of(kind(config, _least_model(Path(folder), least)))), True
            except Exception:  # noqa: BLE001 - code of a user's own may ask a model's config for anything
                continue
    return None, True


def _typed(columns: Sequence[pa.Field]) -> dict[str, str]:
    return {column.name: str(column.type) for column in columns}


def _model_here(config: AnnotationSettings) -> PinnedModel | None:
    """The model, where it lies on this machine. What lies in the hub's cache is not asked for: the hub would be."""
    if config.model is None or config.model.ref.startswith("hub:"):
        return None
    try:
        return pin(config.model)
    except ModelError:
        return None


def _least_model(folder: Path, config: Mapping[str, Any]) -> PinnedModel:
    """A model without weights; a task that must know more of its model than that refuses it."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return PinnedModel(ref="hub:", revision=None, folder=str(folder), digest="", weights_bytes=0, config=config)


def _examples(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Jobs that ship with an annotation of this task, and that annotation; those with the fewest others first."""
    found = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        document = plain_yaml.load(path.read_text(encoding="utf-8"))
        annotations = [each for each in document.get("annotations", ()) if each.get("task") == name]
        if annotations:
            found.append(((len(document["annotations"]), path.stem != name, path), annotations[0]))
    return [(path, annotation) for (_, _, path), annotation in sorted(found, key=lambda each: each[0])]


def _shown(path: Path) -> str:
    """As one types it, where that is shorter."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _to_fill_in(name: str, kind: type[Task], options: Sequence[Option]) -> str:
    """A job with this task: what only a person can know stands there as a comment."""
    model = (
        [f"    model:                      # {kind.needs}: hub:org/name@REVISION, or a folder"] if kind.needs else []
    )
    wanted = [
        option
        for option in options
        if option.required and option.name not in _OF_EVERY_JOB and not option.name.startswith("model.")
    ]
    lines = [
        "kind: annotate",
        *(["allow_code: true"] if name.endswith(".py") else []),
        "corpus: {path: my-corpus}",
        "annotations:",
        "  - name: found",
        f"    task: {name}",
        "    text: body                  # a column, a dotted path, or a template",
        *model,
        *(f"    {f'{option.name}:':<27} # {option.kind}" for option in wanted),
        "output: {path: out/found}",
    ]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------------- answers


def listed(lines: Mapping[str, str]) -> RenderableType:
    """All tasks, a line each."""
    more = Text("corpusmill tasks NAME tells a task's options, columns and model, and a job to copy", style="dim")
    return Group(_grid([(name, Text(printable(line))) for name, line in lines.items()]), Text(), more)


def told(entry: Entry) -> RenderableType:
    """One task: what it does, what it adds, its options; the job to copy goes below, where no terminal breaks lines."""
    loaded = "the task's own module" if entry.needs == OWN_MODULE else f"transformers' {entry.needs}"
    model = Text(f"weights of {loaded}" if entry.needs else "none")
    parts = [
        Text(entry.says),
        _section("columns", _columns_told(entry)),
        _section("model", model),
        *([_section("options of its own", _options_told(entry.own))] if entry.own else []),
        _section("options of every annotation", _options_told(entry.shared)),
    ]
    if entry.examples[1:]:
        parts.append(_section("more jobs with it", Text("\n".join(entry.examples[1:]))))
    where = f" ({entry.examples[0]})" if entry.examples else ""
    return Group(*parts, Text(), Text(f"a job to copy{where}", style="bold"))


def _columns_told(entry: Entry) -> RenderableType:
    parts: list[RenderableType] = [Text(entry.adds)] if entry.adds else []
    if entry.columns is None:
        parts.append(Text("how they are named and of which types they are, only a model can tell", style="dim"))
    else:
        unless = ", unless its model decides otherwise" if entry.model_decides else ""
        parts.append(Text(f"of the job below{unless}:", style="dim"))
        parts.append(_grid([(column, Text(kind)) for column, kind in entry.columns.items()]))
    return Group(*parts)


def _options_told(options: Sequence[Option]) -> RenderableType:
    rows = []
    for option in options:
        default = None if option.default is None else f"default {_value(option.default)}"
        facts = "; ".join(part for part in (option.kind, "required" if option.required else default) if part)
        rows.append(
            (option.name, Text.assemble(facts, *([("\n" + option.description, "dim")] * bool(option.description))))
        )
    return _grid(rows)


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return repr(default) if default == "" else f"{default:,}" if isinstance(default, int) else str(default)


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(), Text(title, style="bold"), Padding(body, (0, 0, 0, 2)))


def _grid(rows: Sequence[tuple[str, Text]]) -> RenderableType:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, words in rows:
        grid.add_row(Text(name, style="cyan"), words)
    return grid
