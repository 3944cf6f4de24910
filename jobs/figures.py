"""What a command tells of figures: how good a model is, how sure that is, and where it fails.

                        95% interval    majority
     accuracy    0.766  0.753 to 0.779     0.103
     macro_f1    0.532  0.507 to 0.551     0.003

     best   fonts  ━━━━━━━━━━━━━━━━━━━━━━━━━━━━  0.951  212 rows
     worst  misc   ━━                            0.083   49 rows  often utils

Values become renderables; nothing is read or written.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.summary import counted, lines, speed
from jobs.table import cell, cut, printable

BEST, WORST = 3, 5
"""Labels that are shown of many."""

_WIDEST_BAR = 30
_LABELS_NAMED = 6

Figures = Mapping[str, Mapping[str, Any]]
"""By name: {"value": 0.766, "low": 0.753, "high": 0.779, "rows": 4096}."""


def measured(metrics: Mapping[str, Figures], baselines: Mapping[str, Figures] | None = None) -> RenderableType:
    """The figures of each annotation, the interval of each, and what the baselines reach."""
    beside = baselines or {}
    named = any(metrics)
    has_intervals = any(each["low"] is not None for figures in metrics.values() for each in figures.values())
    grid = Table.grid(padding=(0, 2, 0, 0))
    heads = [*([""] * named), "", "", *(["95% interval"] * has_intervals), *beside]
    for place, _ in enumerate(heads):
        is_number = place == named + 1 or place > named + 1 + has_intervals
        grid.add_column(no_wrap=True, justify="right" if is_number else "left")
    grid.add_row(*(Text(head.replace("_", " "), style="dim") for head in heads))
    for name, figures in metrics.items():
        for place, (figure, found) in enumerate(figures.items()):
            between = "" if found["low"] is None else f"{number(found['low'])} to {number(found['high'])}"
            others = [each.get(figure, {}).get("value") for each in beside.values()]
            grid.add_row(
                *([Text(cut(name, 24) if place == 0 else "", style="bold")] * named),
                Text(figure),
                Text(number(found["value"]), style="bold"),
                *([Text(between, style="dim")] * has_intervals),
                *(Text("" if other is None else number(other), style="dim") for other in others),
            )
    return grid


def number(value: float | None) -> str:
    """`0.766`, `12.2`, `1,204`: three or four digits that count; `-` for an infinite one, which JSON has not."""
    if value is None:
        return "-"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def best_and_worst(tables: Mapping[str, Any], width: int = 80) -> RenderableType | None:
    """Labels by their F1, the best and the worst of many, and what each of these is taken for; None without labels."""
    ranked = sorted(
        (each for each in tables.get("per_class", ()) if each["gold"]), key=lambda each: (-each["f1"], each["label"])
    )
    if len(ranked) < 2:
        return None
    if len(ranked) <= BEST + WORST:
        shown = [("labels" if place == 0 else "", each) for place, each in enumerate(ranked)]
    else:
        best, worst = ranked[:BEST], ranked[-WORST:]
        shown = [("best" if place == 0 else "", each) for place, each in enumerate(best)]
        shown += [("worst" if place == 0 else "", each) for place, each in enumerate(worst)]
    taken_for = {each["gold"]: each["predicted"] for each in reversed(tables.get("confused_most", ()))}
    labels = [cut(cell(each["label"]), width // 3) for _, each in shown]
    often = [cut(cell(taken_for.get(each["label"], "")), width // 4) for _, each in shown]
    left = width - max(map(cell_len, labels)) - max(map(cell_len, often)) - 40
    grid = Table.grid(padding=(0, 2, 0, 0))
    for place in range(6):
        grid.add_column(no_wrap=True, justify="right" if place in (3, 4) else "left")
    for label, other, (head, each) in zip(labels, often, shown, strict=True):
        bar = ProgressBar(
            total=1.0,
            completed=each["f1"],
            width=max(4, min(_WIDEST_BAR, left)),
            complete_style="cyan",
            finished_style="cyan",
            style="black",
        )
        grid.add_row(
            Text(head, style="dim"),
            Text(label),
            bar,
            Text(number(each["f1"])),
            Text(counted(each["gold"], "row"), style="dim"),
            Text(f"often {other}" if other else "", style="dim"),
        )
    return grid


def evaluated(summary: Mapping[str, Any], tables: Mapping[str, Any]) -> RenderableType:
    """What an evaluation looked at, and where its findings lie; from its `--json` object and its tables."""
    output = str(summary["output"]).rstrip("/")
    rows = summary["rows"]
    told = [("rows", f"{rows['judged']:,} judged{_left_out(tables.get('left_out', {}))}")]
    if rows["without_prediction"]:
        told.append(("no answer", f"{counted(rows['without_prediction'], 'row')}, counted as wrong"))
    unknown = tables.get("unknown_labels") or {}
    if unknown:
        names = sorted(unknown, key=lambda label: (-unknown[label], label))
        more = f" and {len(names) - _LABELS_NAMED} more" * (len(names) > _LABELS_NAMED)
        named = ", ".join(cut(cell(label), 30) for label in names[:_LABELS_NAMED])
        rows_told = counted(sum(unknown.values()), "row")
        told.append(("unknown", f"{rows_told} of labels that the model has not: {named}{more}"))
    told += [
        ("model", f"{summary['model']} ({summary['digest'][:12]}…)"),
        ("speed", speed(summary)),
        ("output", f"{output}/metrics.json, and pictures in {output}/plots"),
        ("next", f"corpusmill verify {shlex.quote(f'{output}/predictions')}"),
    ]
    return lines([(key, printable(value)) for key, value in told])


def _left_out(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    why = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    return f", {sum(reasons.values()):,} left out ({why})"
