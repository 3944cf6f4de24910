"""Names that a job file gives to columns and nested fields, looked up in the corpus's schema.

find_column(schema, ["meta", "lang"])      # ColumnPath(names=("meta", "lang"), type=string)
find_dotted(schema, "meta.lang")           # the same, unless a column is itself called "meta.lang"
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from pipeline.errors import CorpusError

_LISTED_NAMES = 30


@dataclass(frozen=True, slots=True)
class ColumnPath:
    """A column, or a field nested in it: the column's name, then those of struct fields."""

    names: tuple[str, ...]
    type: pa.DataType

    def __str__(self) -> str:
        return ".".join(self.names)


def find_column(schema: pa.Schema, names: Sequence[str]) -> ColumnPath:
    """The column `names[0]`, or the field that the further names lead to.

    Raises CorpusError: no such column or field (nearest match told), doubled column, a field of something that is
    no struct.
    """
    return _descend(list(schema), names, (), joined=False)


def find_dotted(schema: pa.Schema, path: str) -> ColumnPath:
    """The column called `path`, else what the dotted path leads to; at each step the longest name wins.

    Raises CorpusError as `find_column`.
    """
    return _descend(list(schema), path.split("."), (), joined=True)


def is_text(type_: pa.DataType) -> bool:
    """Strings of every layout, dictionaries of them, and JSON."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return is_text(type_.storage_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _descend(fields: Sequence[Any], parts: Sequence[str], above: tuple[str, ...], joined: bool) -> ColumnPath:
    """Follow `parts` from `fields`; `joined` says that several parts may be one name with dots in it."""
    dead_end: CorpusError | None = None
    for taken in range(len(parts), 0, -1) if joined else (1,):
        name = ".".join(parts[:taken])
        found = [field.type for field in fields if field.name == name]
        if not found:
            continue
        names, rest = (*above, name), parts[taken:]
        if len(found) > 1:
            raise CorpusError(f"{_what(names)} stands {len(found)} times in the corpus: rename one, no name means both")
        if not rest:
            return ColumnPath(names, found[0])
        try:
            if not pa.types.is_struct(found[0]):
                raise CorpusError(f"{_what(names)} is {found[0]}: '{'.'.join((*names, *rest))}' needs a struct there")
            return _descend(list(found[0]), rest, names, joined)
        except CorpusError as error:
            dead_end = dead_end or error
    raise dead_end or CorpusError(_unknown(".".join(parts) if joined else parts[0], fields, above))


def _what(names: tuple[str, ...]) -> str:
    return f"{'field' if len(names) > 1 else 'column'} '{'.'.join(names)}'"


def _unknown(name: str, fields: Sequence[Any], above: tuple[str, ...]) -> str:
    """`no column 'sectoin'; did you mean 'section'? columns: package, section`."""
    known = [field.name for field in fields]
    near = _nearest(name, known)
    place = f"{_what(above)} has no field" if above else "no column"
    hint = f"; did you mean '{near}'?" if near is not None else ";"
    shown = ", ".join(known[:_LISTED_NAMES]) + (
        f" and {len(known) - _LISTED_NAMES} more" * (len(known) > _LISTED_NAMES)
    )
    return f"{place} '{name}'{hint} {'fields' if above else 'columns'}: {shown or 'none'}"


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` may be a slip of; case does not count."""
    folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(name.casefold(), folded, n=1)
    return folded[close[0]] if close else None
