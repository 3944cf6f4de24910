r"""The text of each row: a column, a dotted path to a nested field, or a template.

    compile_text("summary", schema)                          # a column
    compile_text("meta.title", schema)                       # a field of a struct column
    compile_text("{summary}\n\n{description}", schema)         # braces: a template; null renders empty, {{ is a brace

A row without a usable text is told by a `Failure` and never raises.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.column import ColumnPath, find_dotted, is_text
from pipeline.errors import CorpusError
from pipeline.quarantine import Failure, Reason

# Without those that only move the cursor: a text of tabs and line ends is blank, not odd.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# White space, control characters, and what Unicode lets a reader ignore: joiners, direction and byte order marks,
# variation selectors, fillers, tags.
_VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class TextSource:
    """How rows become texts, checked against the corpus's schema."""

    expression: str  # as the job file has it
    columns: tuple[str, ...]  # top-level columns that it reads
    paths: tuple[ColumnPath, ...]  # N fields
    literals: tuple[str, ...]  # N + 1 pieces: before, between and after the fields

    def render(self, table: pa.Table, max_chars: int) -> tuple[list[str | None], dict[int, Failure]]:
        """The text of each of the table's R rows; a row without a usable one has None and a `Failure` by its index.

        In a template the fields decide whether there is a text: words of the template alone are none.
        """
        broken: dict[int, Failure] = {}
        columns = [_strings(table, path, broken) for path in self.paths]
        texts: list[str | None] = []
        failures: dict[int, Failure] = {}
        plain = len(columns) == 1 and not any(self.literals)
        for row, values in enumerate(zip(*columns, strict=True)):
            text = values[0] if plain else self._fill(values)
            failure = broken.get(row) or self._judge(values, text, max_chars)
            if failure is not None:
                failures[row] = failure
            texts.append(text if failure is None else None)
        return texts, failures

    def _fill(self, values: Sequence[str | None]) -> str:
        pieces = [self.literals[0]]
        for value, literal in zip(values, self.literals[1:], strict=True):
            pieces.append(value or "")
            pieces.append(literal)
        return "".join(pieces)

    def _judge(self, values: tuple[str | None, ...], text: str | None, max_chars: int) -> Failure | None:
        """Why the text of a row is none, or nothing."""
        if text is None or values.count(None) == len(values):
            return Failure(Reason.NULL_TEXT, f"'{self.expression}' is null")
        if len(text) > max_chars:
            return Failure(Reason.OVER_MAX_CHARS, f"the text has {len(text)} characters, max_chars is {max_chars}")
        for value in values:
            if value and _VISIBLE.search(value):
                return None
        unseen = "".join(value or "" for value in values)
        controls = len(_CONTROL.findall(unseen))
        found = f"the text has {len(unseen)} character{'' if len(unseen) == 1 else 's'}, none visible"
        if controls:
            return Failure(Reason.CONTROL_CHARACTERS, f"{found}, {controls} of them control characters")
        return Failure(Reason.BLANK_TEXT, found)


def compile_text(expression: str, schema: pa.Schema) -> TextSource:
    """Read a column name, a dotted path or a template.

    Raises CorpusError: unknown column or field (nearest match and all columns told), a type that has no text, a brace
    without its partner, a template without a field.
    """
    if "{" not in expression and "}" not in expression:
        path = find_dotted(schema, expression)
        if not is_text(path.type):
            raise CorpusError(
                f"text '{expression}' is {path.type}, not a string; a template can use numbers, booleans, dates and "
                f"timestamps ('{{{expression}}}'), but no list, struct, map or binary"
            )
        return TextSource(expression, path.names[:1], (path,), ("", ""))
    literals, names = _split(expression)
    paths = tuple(find_dotted(schema, name) for name in names)
    for path in paths:
        _check_type(expression, path)
    return TextSource(expression, tuple(dict.fromkeys(path.names[0] for path in paths)), paths, tuple(literals))


def _split(template: str) -> tuple[list[str], list[str]]:
    """The literal pieces (one more than there are names) and the names of a template."""
    literals, names = [""], []
    for token in _TOKEN.finditer(template):
        piece = token.group()
        if piece in ("{", "}"):
            rest = "is not closed" if piece == "{" else "closes nothing"
            raise CorpusError(
                f"text '{template}': the '{piece}' at character {token.start() + 1} {rest}; "
                f"write {piece * 2} for the character itself"
            )
        if token.group(1) is None:
            literals[-1] += piece[0] if piece in ("{{", "}}") else piece
        elif token.group(1):
            names.append(token.group(1))
            literals.append("")
        else:
            raise CorpusError(f"text '{template}': the {{}} at character {token.start() + 1} names no column")
    if not names:
        raise CorpusError(f"text '{template}' names no column: every row would have the same text; write {{column}}")
    return literals, names


def _check_type(template: str, path: ColumnPath) -> None:
    """Refuse what Arrow cannot write as text, on the driver and not in an actor."""
    inner = path.type.value_type if pa.types.is_dictionary(path.type) else path.type
    if is_text(inner):
        return
    known = pa.types.is_primitive(inner) or pa.types.is_decimal(inner) or pa.types.is_null(inner)
    if not known or pa.types.is_duration(inner) or pa.types.is_interval(inner):
        raise CorpusError(
            f"text '{template}': '{path}' is {path.type}; a template can use strings, numbers, booleans, dates and "
            "timestamps"
        )
    try:
        pa.nulls(1, inner).cast(pa.string())
    except pa.ArrowInvalid as error:  # a time zone that this machine does not know
        raise CorpusError(f"text '{template}': '{path}' is {path.type}: {error}") from error


def _strings(table: pa.Table, path: ColumnPath, broken: dict[int, Failure]) -> list[str | None]:
    """The path's R values as str; a value that is not UTF-8 is None, and its row is told in `broken`."""
    column = table.column(path.names[0])
    if len(path.names) > 1:
        column = pc.struct_field(column, list(path.names[1:]))
    if pa.types.is_dictionary(column.type):
        column = _decoded(column)
    if not is_text(column.type):
        column = column.cast(pa.string())
    try:
        values: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        return [_decode(raw, row, path, broken) for row, raw in enumerate(column.cast(pa.large_binary()).to_pylist())]
    return values


def _decoded(column: Any) -> Any:
    """A dictionary column as plain strings; Arrow can cast the values of each layout, but not each dictionary."""
    chunks = [
        pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.large_string())).cast(pa.large_string())
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, pa.large_string())


def _decode(raw: bytes | None, row: int, path: ColumnPath, broken: dict[int, Failure]) -> str | None:
    """One value of a column that holds bytes which are not UTF-8."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        detail = f"'{path}' is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start} of {len(raw)}"
        broken.setdefault(row, Failure(Reason.NOT_UTF8, detail))
        return None
