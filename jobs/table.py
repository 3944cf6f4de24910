"""A few annotated rows as a table that fits: cells on one line, wide columns cut, the least important ones left out.

package      summary                     topic_label  topic_score  text_embedding
0ad          Real-time strategy game     games              0.612  [0.013, -0.021, … 384]
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

QUARANTINE = "quarantine"
"""The column of a preview that says why a row would be set aside."""

_MOST_OF_CORPUS = 4
"""Columns of the corpus that are shown beside the annotations."""

_WIDEST, _WIDEST_ADDED = 40, 24
"""Cells of the widest column of the corpus, and of an annotation."""

_ROOMY, _TIGHT = 14, 10
"""Cells to which columns of the corpus are narrowed before one goes, and to which any is before an annotation goes."""

_GAP = 2


def few_rows(table: pa.Table, annotations: Collection[str], width: int = 80) -> RenderableType:
    """Rows with what these annotations added, and as many columns of the corpus before it as there is room for."""
    added, own = _columns(table, annotations)
    digits = 2 if width >= 100 else 1
    shown = {name: [cell(value, digits) for value in [name, *table[name].to_pylist()]] for name in [*own, *added]}
    widths = _fit({name: max(map(cell_len, cells)) for name, cells in shown.items()}, own, added, width)
    drawn = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold", pad_edge=False)
    for name, cells in widths.items():
        kind = table.schema.field(name).type
        right = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        style = "yellow" if name == QUARANTINE else "cyan" if name in added else ""
        drawn.add_column(
            Text(cut(shown[name][0], cells)),
            justify="right" if right else "left",
            width=cells,
            no_wrap=True,
            style=style,
        )
    for row in range(1, table.num_rows + 1):
        drawn.add_row(*(Text(cut(shown[name][row], cells)) for name, cells in widths.items()))
    left_out = len(shown) - len(widths)
    return Group(drawn, Text(f"and {left_out} more column{'s' * (left_out > 1)}", style="dim")) if left_out else drawn


def cell(value: Any, digits: int = 2) -> str:
    """One value on one line; of a long list of numbers (an embedding) the first `digits` and its length."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {cell(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list) and len(value) > 4 and all(isinstance(each, int | float) for each in value):
        return f"[{', '.join(cell(each) for each in value[:digits])}, … {len(value)}]"
    if isinstance(value, list):
        return f"[{', '.join(cell(each) for each in value)}]"
    return printable(str(value)[: 20 * _WIDEST])


def printable(text: str) -> str:
    """One line of a text that may hold anything: line breaks, escape sequences, letters that turn the line around."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def cut(shown: str, cells: int) -> str:
    """At most so many terminal cells, with an ellipsis where something is missing."""
    return shown if cell_len(shown) <= cells else set_cell_size(shown, cells - 1).rstrip() + "…"


def annotations_of(columns: Collection[str]) -> list[str]:
    """Names of the annotations that added to these columns: each has its `_tokens` and its `_truncated`."""
    stems = [name.removesuffix("_truncated") for name in columns if name.endswith("_truncated")]
    return [stem for stem in stems if f"{stem}_tokens" in columns]


def _columns(table: pa.Table, annotations: Collection[str]) -> tuple[list[str], list[str]]:
    """Columns that annotations added, without their counts of tokens; and those of the corpus, texts first."""
    names = [name for name in table.column_names if name != QUARANTINE]
    hidden = {f"{name}_{end}" for name in annotations for end in ("tokens", "truncated")} | {"_file", "_row"}
    prefixes = tuple(f"{each}_" for each in annotations)
    added = [name for name in names if name.startswith(prefixes) and name not in hidden]
    own = [name for name in names if name not in added and name not in hidden]
    own.sort(key=lambda name: not _is_text(table.schema.field(name).type))
    if QUARANTINE in table.column_names and table[QUARANTINE].null_count < table.num_rows:
        added.append(QUARANTINE)
    return added, own or [name for name in ("_file", "_row") if name in names]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _fit(natural: Mapping[str, int], own: Sequence[str], added: Sequence[str], width: int) -> dict[str, int]:
    """Cells for each column that is shown: what is own gives way first, but one column of it stays."""
    kept_own, kept_added = list(own[:_MOST_OF_CORPUS]), list(added)
    while True:
        widths = {name: min(natural[name], _WIDEST) for name in kept_own}
        widths |= {name: min(natural[name], _WIDEST_ADDED) for name in kept_added}
        _narrow(widths, kept_own, _ROOMY, width)
        if len(kept_own) <= 1:
            _narrow(widths, list(widths), _TIGHT, width)
        if _total(widths) <= width or len(widths) == 1:
            return widths
        (kept_own if len(kept_own) > 1 else kept_added).pop()


def _narrow(widths: dict[str, int], names: Sequence[str], floor: int, width: int) -> None:
    """Take cells from the widest of these columns until all fit, or none is wider than the floor."""
    while _total(widths) > width and any(widths[name] > floor for name in names):
        widths[max(names, key=lambda name: widths[name])] -= 1


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * max(0, len(widths) - 1)
