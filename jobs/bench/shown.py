"""What a person sees of a bench: one table, what is missing, and where the rest lies.

                             tokens/s docs/s       x product padding   GB first s cosine
corpusmill                     35,210  429.4             62%      5%  1.9    14.2 0.9999
sentence-transformers bf16     14,420  175.9   2.4 x     27%     11%  0.9     9.0 0.9999
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jobs.bench import workloads
from jobs.bench.rounds import OURS
from jobs.bench.workload import Agreement
from jobs.summary import lines


def compared(measured: Mapping[str, Any], width: int = 80) -> list[RenderableType]:
    """Table, what its columns mean, the setting, the peers that cannot take part."""
    agreement = workloads.named(measured["workload"]).agreement
    columns = _columns(measured["contenders"], agreement)
    gap = 2 if width >= 90 else 1
    if sum(max(map(len, (head, *cells))) + gap for head, cells in columns.items()) > width + gap:
        columns.pop("docs/s")  # the ratio is that of tokens/s
    grid = Table.grid(padding=(0, gap, 0, 0))
    for place in range(len(columns)):
        grid.add_column(no_wrap=True, justify="left" if place == 0 else "right")
    grid.add_row(*(Text(head, style="dim") for head in columns))
    for each, cells in zip(measured["contenders"], zip(*columns.values(), strict=True), strict=True):
        ours = each["name"] == OURS
        grid.add_row(*(Text(cell, style="bold" if ours and place < 2 else "") for place, cell in enumerate(cells)))
    setting = f"{measured['rows']:,}, at most {measured['max_tokens']} tokens each; {measured['rounds']} rounds"
    meanings = {
        "x": "how many times as fast corpusmill is: the median over the rounds",
        "product": "the texts' arithmetic, as a share of the processor's matrix product in the same round",
        "GB": "peak of memory, of all processes",
        "first s": "seconds from the start of a process to its first rows",
        **({} if agreement is None else {agreement.name: agreement.words}),
    }
    told = [("model", measured["model"]), ("texts", setting)]
    told += [(head, words) for head, words in meanings.items() if head in columns]
    if measured["missing"]:
        told.append(("missing", "\n".join(f"{name} ({why})" for name, why in measured["missing"].items())))
    told.append(("output", f"{measured['output']}/bench.json and bench.png"))
    return [grid, lines(told)]


def _columns(contenders: Sequence[Mapping[str, Any]], agreement: Agreement | None) -> dict[str, list[str]]:
    """The cells under each head; a column of which nobody tells anything is left out."""
    found = {
        "": [each["name"] for each in contenders],
        "tokens/s": [f"{each['tokens_per_second']:,.0f}" for each in contenders],
        "docs/s": [f"{each['docs_per_second']:,.4g}" for each in contenders],
        "x": ["" if each["name"] == OURS else f"{each['corpusmill_is_times_as_fast']:.1f} x" for each in contenders],
        "product": [_told(each["share_of_matrix_product"], ".0%") for each in contenders],
        "padding": [_told(each["padding_share"], ".0%") for each in contenders],
        "GB": ["" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e9:.1f}" for each in contenders],
        "first s": [_told(each["first_row_seconds"], ".1f") for each in contenders],
    }
    if agreement is not None:
        form = ".4f" if agreement.key == "cosine_least" else ".1%"
        found[agreement.name] = [_told(each.get(agreement.key), form) for each in contenders]
    return {head: cells for head, cells in found.items() if any(cells)}


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
