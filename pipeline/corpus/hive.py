"""Hive partitions: the columns that stand in the folders' names. Pure.

    "section=games/lang=__HIVE_DEFAULT_PARTITION__/a.parquet" ->  section: "games", lang: null
    "year=2024/month=01/a.parquet"                           ->  year: 2024 (int64), month: "01" (string, for its 0)

A key or value is %-quoted in the path where it holds a `/`, `=` or `%`. Only folders below the corpus root count.
"""

import re
from collections.abc import Sequence
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import CorpusError

NULL = "__HIVE_DEFAULT_PARTITION__"

_CANONICAL_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)

Partition = tuple[tuple[str, str], ...]
"""Keys and values as the path spells them, in path order."""


def partition_of(path: str) -> Partition:
    """The hive folders of a path relative to the corpus root, still quoted; other folders are no partitions."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return tuple((key, value) for key, equals, value in pairs if key and equals)


def partition_fields(files: Sequence[tuple[str, Partition]]) -> tuple[pa.Field, ...]:
    """The partition columns of all files (path, partition): int64 where every value is a canonical integer.

    Else a string. Raises CorpusError where a path has a key twice or the files differ in their keys.
    """
    if not files:
        return ()
    first_path, first = files[0]
    names = names_of(first)
    for path, partition in files:
        keys = names_of(partition)
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise CorpusError(f"the hive key '{twice}' stands twice in the path of {path}; rename one of the folders")
        if sorted(keys) != sorted(names):
            raise CorpusError(
                f"the files differ in their hive folders: {first_path} has {_told(names)}, {path} has {_told(keys)}; "
                "put every file under the same keys, or name the files of one kind in corpus.path"
            )
    raw_values = {name: {value_of(partition, name) for _, partition in files} for name in names}
    return tuple(pa.field(name, _type_of(raw_values[name])) for name in names)


def names_of(partition: Partition) -> list[str]:
    """The names of the columns that a partition gives."""
    return [unquoted(key) for key, _ in partition]


def value_of(partition: Partition, name: str) -> str | None:
    """The unquoted value of the column `name`; None where it is hive's null, or where the path has no such key."""
    for key, raw in partition:
        if unquoted(key) == name:
            return None if raw == NULL else unquoted(raw)
    return None


def scalar_of(partition: Partition, field: pa.Field) -> pa.Scalar:
    """The value of a partition column as its type has it.

    Raises ValueError where the path's value is no such integer (a file that came after the plan).
    """
    value = value_of(partition, field.name)
    if value is None or not pa.types.is_integer(field.type):
        return pa.scalar(value, field.type)
    return pa.scalar(int(value), field.type)


def unquoted(text: str) -> str:
    """Text with %-quotes resolved; as it stands where that gives no UTF-8."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def _type_of(values: set[str | None]) -> pa.DataType:
    known = values - {None}
    integers = all(_CANONICAL_INTEGER.fullmatch(value) and int(value) in _INT64 for value in known if value is not None)
    return pa.int64() if known and integers else pa.string()


def _told(keys: Sequence[str]) -> str:
    return ", ".join(f"{key}=" for key in keys) or "none"
