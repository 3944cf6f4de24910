"""One column compared with literals or another column, exactly, as a pyarrow expression.

    compare(ColumnPath(("pages",), int8), ">", Literal("1.5", Decimal("1.5")))      # pages > 1
    compare(ColumnPath(("pages",), int8), "=", Literal("300", Decimal(300)))        # pages < -128: never, or null
    member(ColumnPath(("section",), string), [Literal("'web'", "web"), …])          # section IN (…)

The literal takes the column's type, never the other way round, so that Arrow can hold it against the statistics of a
row group. A null value gives null, as in SQL.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.column import ColumnPath
from pipeline.corpus.literal import Instant, Literal, instant
from pipeline.errors import CorpusError

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
NULL = pc.scalar(pa.scalar(None, pa.bool_()))

_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # in a second
_EXAMPLES = {
    "text": "a text in single quotes",
    "integer": "a number without quotes",
    "decimal": "a number without quotes",
    "float": "a number without quotes",
    "boolean": "TRUE or FALSE, or the column alone",
    "date": "DATE '2024-12-31'",
    "timestamp": "TIMESTAMP '2024-12-31 23:59:59'",
}


def kind_of(type_: pa.DataType) -> str | None:
    """The family of types within which values can be compared; None: no comparison is defined."""
    plain = _plain(type_)
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        "text": lambda of: pa.types.is_string(of) or pa.types.is_large_string(of),
        "integer": pa.types.is_integer,
        "decimal": pa.types.is_decimal,
        "float": pa.types.is_floating,
        "boolean": pa.types.is_boolean,
        "date": pa.types.is_date,
        "timestamp": pa.types.is_timestamp,
    }
    return next((kind for kind, holds in tests.items() if holds(plain)), None)


def value_of(column: ColumnPath) -> Any:
    """The column as an expression of a type that Arrow has comparisons for; a plain type as it is."""
    plain = _plain(column.type)
    reference = pc.field(*column.names)
    return reference if plain == column.type else reference.cast(plain)


def compare(column: ColumnPath, operator_: str, literal: Literal) -> Any:
    """`column <operator> literal`; raises CorpusError where the two do not go together."""
    if literal.value is None or pa.types.is_null(column.type):
        return NULL
    if (grid := _Grid.of(_plain(column.type))) is None:
        return OPERATORS[operator_](value_of(column), _scalar(column, literal))
    return grid.compare(value_of(column), operator_, _position(column, literal, grid))


def member(column: ColumnPath, literals: Sequence[Literal]) -> Any:
    """`column IN (literals)`: true, false, or null where the value is null or no literal but a NULL may be it."""
    wanted = [literal for literal in literals if literal.value is not None]
    if pa.types.is_null(column.type) or not wanted:
        return NULL
    grid, value = _Grid.of(_plain(column.type)), value_of(column)
    if grid is not None:
        positions = [_position(column, literal, grid) for literal in wanted]
        steps = sorted({int(at) for at in positions if at.denominator == 1 and grid.low <= at <= grid.high})
        values = grid.array(steps)
        found = value.isin(values) | (value.is_null() & NULL) if steps else grid.never(value)
    else:
        scalars = [_scalar(column, literal) for literal in wanted]
        values = pa.array([scalar.as_py() for scalar in scalars], _plain(column.type))
        if pa.types.is_floating(values.type) and any(scalar.as_py() == 0 for scalar in scalars):
            values = pa.concat_arrays([values, pa.array([0.0, -0.0], values.type)])  # equal, but looked up as two
        found = value.isin(values) | (value.is_null() & NULL)
    return found if len(wanted) == len(literals) else found | NULL


def compare_columns(left: ColumnPath, operator_: str, right: ColumnPath) -> Any:
    """`left <operator> right`; raises CorpusError where their types do not go together."""
    if pa.types.is_null(left.type) or pa.types.is_null(right.type):
        return NULL
    types = _plain(left.type), _plain(right.type)
    common = types[0] if types[0] == types[1] and kind_of(types[0]) else _common(*types)
    if common is None:
        raise CorpusError(
            f"'{left}' is {left.type} and '{right}' is {right.type}: two columns can be compared when both hold text, "
            "numbers, booleans, or dates and timestamps (with a time zone or both without, nanoseconds only with each "
            "other)"
        )
    values = (
        value if type_ == common else value.cast(common, safe=False)
        for value, type_ in zip((value_of(left), value_of(right)), types, strict=True)
    )
    return OPERATORS[operator_](*values)


def like(column: ColumnPath, pattern: str, ignore_case: bool) -> Any:
    """`column LIKE pattern`: % is any run of characters, _ any one; there is no escape character."""
    wild = {"%": ".*", "_": "."}
    regex = "".join(
        wild.get(letter) or (letter if letter.isalnum() or ord(letter) > 127 else f"\\x{ord(letter):02x}")
        for letter in pattern
    )
    return pc.match_substring_regex(value_of(column), rf"(?s)\A(?:{regex})\z", ignore_case=ignore_case)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The values of a discrete type are whole numbers of steps: cents of a decimal(9, 2), days of a date.

    A literal between two steps, or beyond the last, is compared by the step below it.
    """

    type: pa.DataType
    low: int
    high: int
    step: Fraction  # in ones, or in nanoseconds since 1970-01-01

    @classmethod
    def of(cls, type_: pa.DataType) -> "_Grid | None":
        """The grid of an integer, decimal, date or timestamp type."""
        if pa.types.is_integer(type_):
            low = -(2 ** (type_.bit_width - 1)) if pa.types.is_signed_integer(type_) else 0
            return cls(type_, low, low + 2**type_.bit_width - 1, Fraction(1))
        if pa.types.is_decimal(type_):
            high = 10**type_.precision - 1
            return cls(type_, -high, high, Fraction(10) ** -type_.scale)
        if pa.types.is_date32(type_):
            return cls(type_, -(2**31), 2**31 - 1, Fraction(86_400 * 10**9))
        if pa.types.is_date64(type_) or pa.types.is_timestamp(type_):
            unit = type_.unit if pa.types.is_timestamp(type_) else "ms"
            return cls(type_, -(2**63), 2**63 - 1, Fraction(10**9, _TICKS[unit]))
        return None

    def array(self, steps: Sequence[int]) -> Any:
        """The values that so many steps make."""
        if pa.types.is_decimal(self.type):
            return pa.array([_exact_decimal(step, self.type.scale) for step in steps], self.type)
        if pa.types.is_integer(self.type):
            return pa.array(steps, self.type)
        return pa.array(steps, pa.int32() if pa.types.is_date32(self.type) else pa.int64()).cast(self.type)

    def never(self, value: Any) -> Any:
        """False, or null where the value is: below the least value that there is."""
        return value < self.array([self.low])[0]

    def compare(self, value: Any, operator_: str, position: Fraction) -> Any:
        """`value <operator> position`, the latter in steps."""
        below = position.numerator // position.denominator
        if below == position and self.low <= below <= self.high:
            return OPERATORS[operator_](value, self.array([below])[0])
        always = value >= self.array([self.low])[0]
        if operator_ in ("=", "<>"):
            return self.never(value) if operator_ == "=" else always
        upwards = operator_ in (">", ">=")
        if below < self.low:
            return always if upwards else self.never(value)
        if below >= self.high:
            return self.never(value) if upwards else always
        last = self.array([below])[0]
        return value > last if upwards else value <= last


def _exact_decimal(steps: int, scale: int) -> Decimal:
    """`steps` * 10**-scale; arithmetic would round to the context's 28 digits."""
    return Decimal((int(steps < 0), tuple(int(digit) for digit in str(abs(steps))), -scale))


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type that Arrow compares and looks up values of this one in; itself where it can."""
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType) and pa.types.is_string(type_.storage_type):
        return pa.string()
    if pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_decimal(type_) and type_.bit_width < 128:
        return pa.decimal128(type_.precision, type_.scale)
    return type_


def _common(left: pa.DataType, right: pa.DataType) -> pa.DataType | None:
    """A type that holds every value of both; None where there is none."""
    kinds = {kind_of(left), kind_of(right)}
    if kinds == {"text"}:
        return pa.large_string()
    if "float" in kinds and kinds <= {"integer", "decimal", "float"}:
        return pa.float64()
    if kinds <= {"integer", "decimal"}:
        shapes = [(of.precision - of.scale, of.scale) if pa.types.is_decimal(of) else (20, 0) for of in (left, right)]
        digits, scale = (max(sizes) for sizes in zip(*shapes, strict=True))
        return pa.decimal256(76, scale) if digits + scale <= 76 else None
    if kinds <= {"date", "timestamp"}:
        zones = {of.tz is not None if pa.types.is_timestamp(of) else False for of in (left, right)}
        units = {of.unit if pa.types.is_timestamp(of) else "s" for of in (left, right)}
        if len(zones) > 1 or ("ns" in units and len(units) > 1):
            return None
        return pa.timestamp("ns" if "ns" in units else "us", "UTC" if True in zones else None)
    return None


def _position(column: ColumnPath, literal: Literal, grid: _Grid) -> Fraction:
    """Where the literal stands on the column's grid, in steps; raises CorpusError where it does not."""
    kind, value = kind_of(column.type), literal.value
    if kind in ("date", "timestamp") and isinstance(value, str):
        value = instant(value)
        if value is None:
            raise _clash(column, literal, "no date or time that can be read")
    if kind in ("date", "timestamp") and isinstance(value, Instant):
        if value.offset and not (kind == "timestamp" and _plain(column.type).tz):
            raise CorpusError(
                f"'{column}' is {column.type}, which has no time zone, but {literal.sql} names one: leave it out"
            )
        return value.nanoseconds / grid.step
    if kind in ("integer", "decimal") and isinstance(value, Decimal):
        return Fraction(value) / grid.step
    raise _clash(column, literal, literal.kind)


def _scalar(column: ColumnPath, literal: Literal) -> Any:
    """The literal as a value of the column's text, float or boolean type; raises CorpusError where it is none."""
    plain, kind, value = _plain(column.type), kind_of(column.type), literal.value
    if kind == "text" and isinstance(value, str):
        return pa.scalar(value, plain)
    if kind == "boolean" and isinstance(value, bool):
        return pa.scalar(value, plain)
    if kind == "float" and isinstance(value, Decimal):
        # a half float column is compared as float32, with what the literal is as a half float
        return pa.scalar(float(value), column.type if pa.types.is_floating(column.type) else plain).cast(plain)
    raise _clash(column, literal, literal.kind)


def _clash(column: ColumnPath, literal: Literal, what: str) -> CorpusError:
    kind = kind_of(column.type)
    if kind is None:
        return CorpusError(
            f"'{column}' is {column.type}, which cannot be compared: only IS NULL and IS NOT NULL can be asked"
        )
    advice = _EXAMPLES[kind]
    if kind == "text" and isinstance(literal.value, Decimal):
        advice = f"'{literal.sql}'"
    elif kind in ("integer", "decimal", "float") and isinstance(literal.value, str):
        number = re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", literal.value.strip(), re.ASCII)
        advice = literal.value.strip() if number else advice
    return CorpusError(f"'{column}' is {column.type}, but {literal.sql} is {what}: write {advice}")
