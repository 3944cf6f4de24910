"""The job's SQL predicate as a pyarrow expression, checked against the corpus's schema.

    parse_filter("section = 'games' AND meta.stars >= 3.5", schema)
    # RowFilter(sql=…, columns=("section", "meta"), expression=((section == "games") and (… >= 3.5)))

SQL's null logic holds: a comparison with null is null, `x NOT IN (1, NULL)` is never true, and a row is kept only
where the whole is true. A timestamp column with a time zone takes a literal without an offset for UTC.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, TokenError

from pipeline.corpus.column import ColumnPath, find_column
from pipeline.corpus.comparison import NULL, compare, compare_columns, kind_of, like, member, value_of
from pipeline.corpus.literal import Literal, read_literal
from pipeline.corpus.row_filter import RowFilter
from pipeline.errors import CorpusError

SUPPORTED = (
    "comparisons (=, <>, <, <=, >, >=), IN, BETWEEN, LIKE, ILIKE, IS [NOT] NULL, IS [NOT] TRUE, IS [NOT] FALSE, AND, "
    "OR, NOT, parentheses, boolean columns, nested fields (a.b), \"quoted names\", DATE '…' and TIMESTAMP '…'"
)

_COMPARISONS = {exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def parse_filter(sql: str, schema: pa.Schema) -> RowFilter:
    """Read a SQL predicate.

    Raises CorpusError: it does not parse, names no column or an unknown one, compares what does not go together, or
    uses something that is not supported.
    """
    try:
        condition = _Condition(schema)
        expression = condition.build(_parse(sql))
        if not condition.columns:
            raise CorpusError("it names no column: it would keep all rows or none")
    except RecursionError:
        raise CorpusError(f"filter {sql[:80]!r}…: it is nested too deep") from None
    except CorpusError as error:
        raise CorpusError(f'filter "{sql}": {error}') from error
    return RowFilter(sql, tuple(condition.columns), expression)


def _parse(sql: str) -> Any:
    """The sqlglot expression of one predicate; raises CorpusError with the place where it ends to make sense."""
    try:
        trees = sqlglot.parse(sql, dialect="duckdb")
    except ParseError as error:
        fault = error.errors[0]
        what = "something is missing" if "Required keyword" in fault["description"] else fault["description"]
        place = f"line {fault['line']}, character {fault['col']}"
        raise CorpusError(f"it does not parse: {what.lower()} at '{fault['highlight']}', {place}") from error
    except TokenError as error:
        raise CorpusError(
            f"it does not parse: {error.__cause__ or error} (line:character); is a quote left open?"
        ) from error
    if len(trees) != 1 or trees[0] is None:
        raise CorpusError("it must be one condition, such as section = 'games'")
    if isinstance(trees[0], exp.Alias):  # "a = 1 extra" would rename the condition
        name = trees[0].args["alias"]
        raise CorpusError(f"it does not parse: unexpected '{name.name}' at character {name.meta.get('start', 0) + 1}")
    return trees[0]


class _Condition:
    """Builds the expression of a predicate and collects the columns that it names."""

    def __init__(self, schema: pa.Schema) -> None:
        self.columns: dict[str, None] = {}
        self._schema = schema

    def build(self, node: Any) -> Any:
        """The boolean expression of a condition."""
        match node:
            case exp.Paren():
                return self.build(node.this)
            case exp.And() | exp.Or():
                parts = [self.build(part) for part in node.flatten()]
                return _balanced(parts, conjunction=isinstance(node, exp.And))
            case exp.Not():
                return ~self.build(node.this)
            case exp.Boolean():
                return pc.scalar(bool(node.this))
            case exp.Null():
                return NULL
            case exp.Column() | exp.Dot():
                return self._flag(node)
            case exp.Is():
                return self._is(node)
            case exp.In():
                return self._in(node)
            case exp.Between():
                low = self._compare(node, node.this, ">=", node.args["low"])
                return low & self._compare(node, node.this, "<=", node.args["high"])
            case exp.Like() | exp.ILike():
                return self._like(node)
            case _ if type(node) in _COMPARISONS:
                return self._compare(node, node.this, _COMPARISONS[type(node)], node.expression)
        raise _unsupported(node)

    def _flag(self, node: Any) -> Any:
        """A boolean column as a condition."""
        column = self._column(node)
        if kind_of(column.type) != "boolean":
            raise CorpusError(f"'{column}' is {column.type}: only a boolean column is a condition by itself")
        return value_of(column)

    def _is(self, node: Any) -> Any:
        """IS NULL of anything, IS TRUE and IS FALSE of a condition; NOT comes from outside."""
        asked, subject = node.expression, node.this
        if isinstance(asked, exp.Null):
            if isinstance(subject.unnest(), exp.Column | exp.Dot):
                return value_of(self._column(subject.unnest())).is_null()
            return self.build(subject).is_null()
        if not isinstance(asked, exp.Boolean):
            raise _unsupported(node)
        condition = self.build(subject)
        return (condition if asked.this else ~condition) & condition.is_valid()

    def _in(self, node: Any) -> Any:
        _only(node, "this", "expressions")
        if not node.expressions:
            raise CorpusError(f"{_spelt(node)}: the list is empty, so no row would be kept; name a value in it")
        left = self._operand(node.this)
        items = [self._operand(item) for item in node.expressions]
        if isinstance(left, Literal):
            return _balanced([self._pair(node, left, "=", item) for item in items], conjunction=False)
        literals = [item for item in items if isinstance(item, Literal)]
        parts = [member(left, literals)] if literals else []
        parts += [compare_columns(left, "=", item) for item in items if isinstance(item, ColumnPath)]
        return _balanced(parts, conjunction=False)

    def _like(self, node: Any) -> Any:
        _only(node, "this", "expression", "negate")
        column, pattern = self._operand(node.this), read_literal(node.expression)
        if isinstance(column, Literal) or pattern is None:
            raise CorpusError(f"{_spelt(node)}: LIKE takes a column on its left and a pattern in quotes on its right")
        if kind_of(column.type) != "text" or not isinstance(pattern.value, str | None):
            raise CorpusError(
                f"'{column}' is {column.type} and the pattern {pattern.sql}: LIKE takes a string column and a text in "
                "single quotes"
            )
        found = NULL if pattern.value is None else like(column, pattern.value, isinstance(node, exp.ILike))
        return ~found if node.args.get("negate") else found

    def _compare(self, node: Any, left: Any, operator: str, right: Any) -> Any:
        _only(node, "this", "expression", "low", "high")
        return self._pair(node, self._operand(left), operator, self._operand(right))

    def _pair(self, node: Any, left: ColumnPath | Literal, operator: str, right: ColumnPath | Literal) -> Any:
        """One comparison; a literal on the left turns it round."""
        match left, right:
            case ColumnPath(), ColumnPath():
                return compare_columns(left, operator, right)
            case ColumnPath(), Literal():
                return compare(left, operator, right)
            case Literal(), ColumnPath():
                return compare(right, _MIRRORED[operator], left)
        raise CorpusError(f"{_spelt(node)} names no column")

    def _operand(self, node: Any) -> ColumnPath | Literal:
        """One side of a comparison."""
        node = node.unnest()
        if isinstance(node, exp.Column | exp.Dot):
            return self._column(node)
        literal = read_literal(node)
        if literal is None:
            raise _unsupported(node, " as a side of a comparison")
        return literal

    def _column(self, node: Any) -> ColumnPath:
        """The column or nested field that a name means; quoted or not, it is taken as it is written."""
        identifiers = [part for part in node.parts if isinstance(part, exp.Identifier)]
        if len(identifiers) != len(node.parts):
            raise _unsupported(node)
        names = [identifier.name for identifier in identifiers]
        try:
            column = find_column(self._schema, names)
        except CorpusError as error:
            if ".".join(names) in self._schema.names and len(names) > 1:
                raise CorpusError(f'a column\'s own dots must be quoted: write "{".".join(names)}"') from error
            if len(names) == 1 and names[0] not in self._schema.names:
                raise CorpusError(f"{error} (a text stands in single quotes: '{names[0]}')") from error
            raise
        self.columns[column.names[0]] = None
        return column


def _balanced(parts: Sequence[Any], conjunction: bool) -> Any:
    """All parts joined by AND or OR as a shallow tree: Arrow descends by recursion."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _balanced(parts[:middle], conjunction), _balanced(parts[middle:], conjunction)
    return left & right if conjunction else left | right


def _only(node: Any, *known: str) -> None:
    """Refuse what a construct has beyond its known parts: a subquery, SYMMETRIC, and what a new sqlglot may add."""
    if any(value for name, value in node.args.items() if name not in known):
        raise _unsupported(node)


def _unsupported(node: Any, place: str = "") -> CorpusError:
    return CorpusError(f"{_spelt(node)} ({type(node).__name__}) is not supported{place}; supported: {SUPPORTED}")


def _spelt(node: Any) -> str:
    text = node.sql(dialect="duckdb")
    return text if len(text) <= 80 else f"{text[:80]}…"
