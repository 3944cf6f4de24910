"""One schema for all files of a corpus, where that loses nothing. Pure.

    a.parquet  id: int32, text: string                     id: int64
    b.parquet  id: int64, text: dictionary<string>    ->   text: string
    c.parquet  id: int64, score: float                     score: float (null in a and b)

A type is decided by the set of types that the files have, never by their order. What would lose something (int64 beside
float, timestamps of two time zones, a number beside a text) is refused with the columns and files that differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import CorpusError

CONFLICTS_TOLD = 5

_UNITS = ("s", "ms", "us", "ns")
_DECIMALS = ((9, 32, pa.decimal32), (18, 64, pa.decimal64), (38, 128, pa.decimal128), (76, 256, pa.decimal256))


class DriftError(Exception):
    """Two types have no common one; internal to this module's callers, who know the column and the files."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Files that share one schema."""

    schema: pa.Schema
    fields: dict[str, pa.Field]
    files: list[str]


def unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """The schema that holds every file's (file, schema) without loss; columns in order of first appearance.

    A column that a file lacks is null there. Metadata is that of the first file that has the column (the schema's: of
    the first file). Raises CorpusError with up to five conflicts.
    """
    groups = _grouped(schemas)
    if len(groups) == 1:
        return groups[0].schema
    fields, conflicts = [], []
    for name in dict.fromkeys(name for group in groups for name in group.fields):
        having = [group for group in groups if name in group.fields]
        try:
            field = _common_field([group.fields[name] for group in having])
        except DriftError:
            conflicts.append(_conflict(name, having))
            continue
        fields.append(field if len(having) == len(groups) else field.with_nullable(True))
    if conflicts:
        more = f"\n  and {len(conflicts) - CONFLICTS_TOLD} more columns" if len(conflicts) > CONFLICTS_TOLD else ""
        raise CorpusError(
            "the files of the corpus have columns whose types do not go together:\n  "
            + "\n  ".join(conflicts[:CONFLICTS_TOLD])
            + more
            + "\nConvert the files to one type, or name the files of one kind in corpus.path."
        )
    return pa.schema(fields, metadata=groups[0].schema.metadata)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns, order and types of `schema`; columns that it lacks are null.

    Raises pa.ArrowInvalid where a value does not fit (a timestamp of the year 3000 as nanoseconds), and
    pa.ArrowNotImplementedError where the types have nothing to do with each other.
    """
    if table.schema.equals(schema, check_metadata=True):
        return table
    missing = set(schema.names) - set(table.schema.names)
    columns = [
        pa.nulls(table.num_rows, field.type) if field.name in missing else cast(table.column(field.name), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema) if columns else table.select([])


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """One column of `conform`, with its errors."""
    if column.type == kind:
        return column
    if pa.types.is_null(column.type):
        return pa.chunked_array([pa.nulls(len(column), kind)], kind)
    if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(kind):
        # There is no kernel from a dictionary to string_view; decoding first serves every target.
        column = pc.cast(column, column.type.value_type)
    return pc.cast(column, kind, safe=True)


def common_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """The smallest type that holds every value of all of them; DriftError where there is none."""
    different = _distinct(types)
    if len(different) == 1:
        return different[0]
    plain = _distinct(
        kind.value_type if pa.types.is_dictionary(kind) else kind for kind in different if not pa.types.is_null(kind)
    )
    # A single kind of dictionary beside nulls stays a dictionary.
    known = [kind for kind in different if not pa.types.is_null(kind)]
    if len(known) == 1:
        return _not_a_view(known[0])
    if len(plain) == 1:
        return _not_a_view(plain[0])
    for every, join in _FAMILIES:
        if all(every(kind) for kind in plain):
            return join(plain)
    raise DriftError


# --------------------------------------------------------------------------------------------------------- families


def _numbers(kinds: list[pa.DataType]) -> pa.DataType:
    floats = [kind.bit_width for kind in kinds if pa.types.is_floating(kind)]
    signed = [kind.bit_width for kind in kinds if pa.types.is_signed_integer(kind)]
    unsigned = [kind.bit_width for kind in kinds if pa.types.is_unsigned_integer(kind)]
    if floats:
        integers = max(signed + unsigned, default=0)
        if integers > 32:
            raise DriftError  # a float64 holds 53 bits of an int64
        width = max([*floats, {0: 0, 8: 32, 16: 32, 32: 64}[integers]])
        return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[width]
    if not signed:
        return {16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}[max(unsigned)]
    width = max([*signed, *(2 * bits for bits in unsigned)])
    if width > 64:
        raise DriftError
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[width]


def _strings(kinds: list[pa.DataType]) -> pa.DataType:
    return pa.large_string() if pa.large_string() in kinds else pa.string()


def _binaries(kinds: list[pa.DataType]) -> pa.DataType:
    return pa.large_binary() if pa.large_binary() in kinds else pa.binary()


def _decimals(kinds: list[pa.DataType]) -> pa.DataType:
    scale = max(kind.scale for kind in kinds)
    precision = scale + max(kind.precision - kind.scale for kind in kinds)
    width = max(kind.bit_width for kind in kinds)
    for most, bits, make in _DECIMALS:
        if precision <= most and width <= bits:
            return make(precision, scale)
    raise DriftError


def _timestamps(kinds: list[pa.DataType]) -> pa.DataType:
    if len({kind.tz for kind in kinds}) > 1:
        raise DriftError
    return pa.timestamp(_finest(kinds), kinds[0].tz)


def _durations(kinds: list[pa.DataType]) -> pa.DataType:
    return pa.duration(_finest(kinds))


def _times(kinds: list[pa.DataType]) -> pa.DataType:
    unit = _finest(kinds)
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _finest(kinds: list[pa.DataType]) -> str:
    return _UNITS[max(_UNITS.index(kind.unit) for kind in kinds)]


def _lists(kinds: list[pa.DataType]) -> pa.DataType:
    element = _common_field([kind.value_field for kind in kinds])
    sizes = {kind.list_size if pa.types.is_fixed_size_list(kind) else None for kind in kinds}
    if len(sizes) == 1 and None not in sizes:
        return pa.list_(element, sizes.pop())
    return pa.large_list(element) if any(pa.types.is_large_list(kind) for kind in kinds) else pa.list_(element)


def _structs(kinds: list[pa.DataType]) -> pa.DataType:
    names: dict[str, list[pa.Field]] = {}
    for kind in kinds:
        if len({field.name for field in kind}) < kind.num_fields:
            raise DriftError  # a doubled name cannot be matched
        for field in kind:
            names.setdefault(field.name, []).append(field)
    fields = [(_common_field(having), len(having) == len(kinds)) for having in names.values()]
    return pa.struct([field if everywhere else field.with_nullable(True) for field, everywhere in fields])


def _maps(kinds: list[pa.DataType]) -> pa.DataType:
    key = _common_field([kind.key_field for kind in kinds])
    item = _common_field([kind.item_field for kind in kinds])
    return pa.map_(key, item, keys_sorted=all(kind.keys_sorted for kind in kinds))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    sized = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return bool(sized or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


_FAMILIES = (
    (_is_number, _numbers),
    (_is_string, _strings),
    (_is_binary, _binaries),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_date, lambda _: pa.date64()),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_duration, _durations),
    (pa.types.is_time, _times),
    (_is_list, _lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_map, _maps),
)


def _not_a_view(kind: pa.DataType) -> pa.DataType:
    """There is no kernel from nulls or other lists to a list_view."""
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        raise DriftError
    return kind


# ------------------------------------------------------------------------------------------------------------ parts


def _common_field(fields: Sequence[pa.Field]) -> pa.Field:
    """One field for all: the first one's name and metadata."""
    kind = common_type(field.type for field in fields)
    return fields[0].with_type(kind).with_nullable(any(field.nullable for field in fields))


def _distinct(types: Iterable[pa.DataType]) -> list[pa.DataType]:
    return list(dict.fromkeys(types))


def _grouped(schemas: Sequence[tuple[str, pa.Schema]]) -> list[_Group]:
    """Files by schema. Equal schemas of a large corpus are one object already, so identity is asked, not equality."""
    groups: dict[int, _Group] = {}
    for file, schema in schemas:
        if id(schema) not in groups:
            groups[id(schema)] = _Group(schema, {field.name: field for field in schema}, [])
        groups[id(schema)].files.append(file)
    return list(groups.values())


def _conflict(name: str, having: Sequence[_Group]) -> str:
    by_type: dict[pa.DataType, list[str]] = {}
    for group in having:
        by_type.setdefault(group.fields[name].type, []).extend(group.files)
    told = (f"{kind} in {files[0]} ({_counted(len(files))})" for kind, files in by_type.items())
    return f"column '{name}': " + ", ".join(told)


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files} files"
