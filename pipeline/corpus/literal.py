"""The literals of a SQL predicate: what they mean before a column gives them a type.

5, -1.50            Literal("-1.50", Decimal("-1.50"))
'web'               Literal("'web'", "web")                        # may yet become a date, beside a date column
TRUE, NULL          Literal("TRUE", True), Literal("NULL", None)
DATE '2024-12-31'   Literal("DATE '2024-12-31'", Instant(1_735_603_200_000_000_000, offset=False))
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlglot import exp

from pipeline.errors import CorpusError

_INSTANT = re.compile(
    r"\s*(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?\s*(Z|[+-]\d\d(?::?\d\d)?)?)?\s*", re.ASCII
)
_LARGEST_EXPONENT = 400  # beyond the largest double, and no number that takes long to write out


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment, or the midnight that a date begins with."""

    nanoseconds: int  # since 1970-01-01, in UTC or in the time of a column without a zone
    offset: bool  # its literal names an offset from UTC


@dataclass(frozen=True, slots=True)
class Literal:
    """A value as the predicate spells it, and what it means; None is NULL."""

    sql: str
    value: str | Decimal | bool | Instant | None

    @property
    def kind(self) -> str:
        """What it is, for a message."""
        match self.value:
            case bool():
                return "a boolean"
            case str():
                return "a text"
            case Decimal():
                return "a number"
            case _:
                return "a date or timestamp"


def instant(text: str) -> Instant | None:
    """`2024-12-31`, `2024-12-31 23:59:59.5`, `2024-12-31T23:59Z`, `…+01:00`; None where it is none of these."""
    found = _INSTANT.fullmatch(text)
    if found is None:
        return None
    day, time, fraction, offset = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{time or '00:00'}{offset or ''}")
    except ValueError:  # the 30th of February
        return None
    seconds = (moment if offset else moment.replace(tzinfo=UTC)).timestamp()
    return Instant(int(seconds) * 10**9 + int((fraction or "0").ljust(9, "0")), offset is not None)


def read_literal(node: Any) -> Literal | None:
    """The literal that a sqlglot expression is; None where it is something else.

    Raises CorpusError: a number beyond 1e400, a DATE or TIMESTAMP that is none.
    """
    match node:
        case exp.Paren():
            return read_literal(node.this)
        case exp.Null():
            return Literal("NULL", None)
        case exp.Boolean():
            return Literal(str(node.this).upper(), bool(node.this))
        case exp.Literal() if node.is_string:
            return Literal(node.sql(dialect="duckdb"), str(node.this))
        case exp.Literal():
            return Literal(str(node.this), _number(str(node.this)))
        case exp.Neg():
            negated = read_literal(node.this)
            if negated is not None and isinstance(negated.value, Decimal):
                return Literal(f"-{negated.sql}", negated.value.copy_negate())
        case exp.Cast() if isinstance(node.this, exp.Literal) and node.this.is_string:
            return _moment(node)
    return None


def _number(text: str) -> Decimal:
    number = Decimal(text)
    if number and abs(number.adjusted()) > _LARGEST_EXPONENT:
        raise CorpusError(
            f"the number {text} is out of range: write one between -1e{_LARGEST_EXPONENT} and 1e{_LARGEST_EXPONENT}"
        )
    return number


def _moment(node: Any) -> Literal | None:
    """`DATE '…'`, `TIMESTAMP '…'` or `TIMESTAMPTZ '…'`; sqlglot has them, as CAST, for one."""
    words = {"DATE": "DATE", "TIMESTAMP": "TIMESTAMP", "TIMESTAMPNTZ": "TIMESTAMP", "TIMESTAMPTZ": "TIMESTAMPTZ"}
    word = words.get(node.to.this.name)
    if word is None:
        return None
    text = str(node.this.this)
    spelt = f"{word} {node.this.sql(dialect='duckdb')}"
    moment = instant(text)
    if moment is None or (word == "DATE" and len(text.strip()) > len("2024-12-31")):
        example = "DATE '2024-12-31'" if word == "DATE" else f"{word} '2024-12-31 23:59:59'"
        raise CorpusError(f"{spelt} cannot be read: write {example}")
    return Literal(spelt, moment)
