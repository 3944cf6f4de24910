"""What a person sees of a bench: one table, what is missing, and where the rest lies.

                             tokens/s          matrix product  padding  memory  first row  cosine
corpusmill                     35,210                     62%       5%   1.9 GB     14.2 s  0.99993
sentence-transformers bf16     14,420   2.4 x             27%      11%   0.9 GB      9.0 s  0.99990
"""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from jobs.bench.rounds import OURS
from jobs.summary import lines


def compared(measured: Mapping[str, Any], width: int = 80) -> list[RenderableType]:
    """Table, what its columns mean, the setting, the peers that are not installed."""
    grid = Table.grid(padding=(0, 2 if width >= 90 else 1, 0, 0))
    heads = ("", "tokens/s", "", "product", "padding", "GB", "first s", "cosine")
    for place, _ in enumerate(heads):
        grid.add_column(no_wrap=True, justify="left" if place == 0 else "right")
    grid.add_row(*(Text(head, style="dim") for head in heads))
    for each in measured["contenders"]:
        ours = each["name"] == OURS
        memory = each["peak_bytes"]
        cells = (
            each["name"],
            f"{each['tokens_per_second']:,.0f}",
            "" if ours else f"{each['corpusmill_is_times_as_fast']:.1f} x",
            _share(each["share_of_matrix_product"]),
            _share(each["padding_share"]),
            "" if memory is None else f"{memory / 1e9:.1f}",
            f"{each['first_row_seconds']:.1f}",
            f"{each['cosine_least']:.4f}",
        )
        grid.add_row(*(Text(cell, style="bold" if ours and place < 2 else "") for place, cell in enumerate(cells)))
    setting = f"{measured['rows']:,}, at most {measured['max_tokens']} tokens each; {measured['rounds']} rounds"
    told = [
        ("model", measured["model"]),
        ("texts", setting),
        ("x", "how many times as fast corpusmill is: the median over the rounds"),
        ("product", "the texts' arithmetic, as a share of the processor's matrix product in the same round"),
        ("GB", "peak of memory, of all processes"),
        ("first s", "seconds from the start of a process to its first rows"),
        ("cosine", "the least of all rows to the vectors of float32"),
    ]
    if measured["missing"]:
        absent = [f"{name} (pip install {' '.join(packages)})" for name, packages in measured["missing"].items()]
        told.append(("missing", "\n".join(absent)))
    told.append(("output", f"{measured['output']}/bench.json and bench.png"))
    return [grid, lines(told)]


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
