"""What a command answers to a person: how many rows each label got, what a run did, and how to go on.

     topic  games    ━━━━━━━━━━━━━━━━━━━━━━  812  40%
            science  ━━━━━━━                 260  13%

     rows    2,048 in, 2,043 out, 5 quarantined (4 blank_text, 1 over_max_chars)
     speed   21,060 tokens/s, 4% padding, 0:19 in all
     output  out/topics/data
     next    corpusmill verify out/topics

Values become renderables, and renderables text; nothing is read or written.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.display import duration
from jobs.table import cell, cut, printable
from pipeline.versions import differing

MOST_LABELS = 10
"""Labels of one annotation that are shown; the rest is counted."""

_WIDEST_BAR = 30


def text(parts: Iterable[RenderableType], color: bool = False, width: int = 80) -> str:
    """The parts, one below the other with an empty line between, as they stand on a terminal of that width."""
    console = Console(force_terminal=color, width=width, legacy_windows=False, highlight=False)
    with console.capture() as captured:
        for index, part in enumerate(parts):
            if index:
                console.print()
            console.print(part)
    return "\n".join(row.rstrip() for row in captured.get().splitlines()) + "\n"


def label_counts(counts: Mapping[str, Mapping[str, int]], width: int = 80) -> RenderableType:
    """How many rows each label got, the most frequent first, by annotation."""
    rows: list[tuple[str, str, int, int, int]] = []  # annotation, label, rows, rows of the top label, rows of all
    for name, labels in counts.items():
        ranked = sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
        most, total = max(labels.values(), default=0), sum(labels.values())
        told = ranked[:MOST_LABELS]
        if len(ranked) > MOST_LABELS:
            told.append((f"{len(ranked) - MOST_LABELS} more", sum(count for _, count in ranked[MOST_LABELS:])))
        rows += [(name if index == 0 else "", label, count, most, total) for index, (label, count) in enumerate(told)]
    widest = width // 3
    heads = [cut(row[0], widest // 2) for row in rows]
    labels_shown = [cut(cell(row[1]), widest) for row in rows]
    left = width - max(map(cell_len, heads), default=0) - max(map(cell_len, labels_shown), default=0)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for justify in ("left", "left", "left", "right", "right"):
        grid.add_column(no_wrap=True, justify=justify)
    for head, label, (_, _, count, most, total) in zip(heads, labels_shown, rows, strict=True):
        bar = ProgressBar(
            total=max(1, most),
            completed=min(count, most),
            width=max(4, min(_WIDEST_BAR, left - 22)),
            complete_style="cyan",
            finished_style="cyan",
            style="black",
        )
        grid.add_row(
            Text(head, style="bold"), Text(label), bar, f"{count:,}", Text(_percent(count, total), style="dim")
        )
    return grid


def _percent(part: int, whole: int) -> str:
    return "<1%" if 0 < part < 0.005 * whole else f"{part / max(1, whole):.0%}"


def finished(summary: Mapping[str, Any]) -> RenderableType:
    """What a run did, from its `--json` object, and how to go on."""
    output = str(summary["output"]).rstrip("/")
    told = [("rows", f"{summary['rows_in']:,} in, {_rows(summary)}")]
    if summary["units_skipped"] and not summary["units_done"]:
        told.append(("units", f"nothing was left to do: all {summary['units_skipped']:,} were committed before"))
    else:
        if summary["units_skipped"]:
            before = f"{summary['units_skipped']:,} were committed before"
            told.append(("units", f"{summary['units_done']:,} now, {before}"))
        told.append(("speed", speed(summary)))
        annotations: Mapping[str, Any] = summary.get("annotations", {})
        told += [("engine", f"{name}: {trial(each)}") for name, each in annotations.items() if each.get("tried")]
        told += [
            ("int8", f"{name}: agreement with float32 {each['agreement']:.4f}, on rows of this corpus")
            for name, each in annotations.items()
            if each.get("agreement")
        ]
        if len(summary.get("computed_by", ())) > 1:
            told.append(("versions", f"of several, {differing(summary['computed_by'])}: last bits may differ"))
        if summary.get("startup"):
            told.append(("start-up", started(summary["startup"])))
    told.append(("output", f"{output}/data"))
    if summary.get("profile"):
        told.append(("profile", profiled(summary["profile"])))
    if summary["rows_quarantined"] or summary["units_quarantined"]:
        told.append(("set aside", f"{output}/quarantine: each row with the reason"))
        told.append(("next", f"corpusmill retry {shlex.quote(output)}: once more, when the cause is gone"))
    else:
        told.append(("next", f"corpusmill verify {shlex.quote(output)}"))
    return lines(told)


def _rows(summary: Mapping[str, Any]) -> str:
    """What became of rows: `2,043 out, 5 quarantined (4 blank_text, 1 over_max_chars)`."""
    told = [f"{summary['rows_out']:,} out"]
    if summary["rows_filtered"]:
        told.append(f"{summary['rows_filtered']:,} filtered")
    ranked = sorted(summary.get("reasons", {}).items(), key=lambda pair: (-pair[1], pair[0]))
    why = ", ".join(f"{rows:,} {reason}" for reason, rows in ranked)
    if summary["rows_quarantined"] or why:
        told.append(f"{summary['rows_quarantined']:,} quarantined{f' ({why})' if why else ''}")
    return ", ".join(told)


def speed(summary: Mapping[str, Any]) -> str:
    """`21,060 tokens/s, 4% padding, 0:19 in all`, as far as the run knows it."""
    told = []
    if summary["tokens_per_second"]:
        told.append(f"{summary['tokens_per_second']:,.0f} tokens/s")
    if summary.get("tokens"):
        told.append(f"{summary['padding_tokens'] / (summary['tokens'] + summary['padding_tokens']):.0%} padding")
    return ", ".join([*told, f"{duration(summary['seconds'])} in all"])


def trial(annotation: Mapping[str, Any]) -> str:
    """`openvino by 4,096 tokens, after a trial (torch by 2,048: 7,021 tokens/s, openvino by 2,048: failed, …)`."""
    tried = [
        f"{each['engine']} by {each['token_budget']:,}: "
        + ("failed" if each["tokens_per_second"] is None else f"{each['tokens_per_second']:,.0f} tokens/s")
        for each in annotation["tried"]
    ]
    return f"{annotation['engine']} by {annotation['token_budget']:,} tokens, after a trial ({', '.join(tried)})"


_STARTUP = {
    "planning": "planning",
    "ray": "Ray",
    "trial": "trials",
    "actors": "actors",
    "imports": "imports",
    "models": "models",
    "first_unit": "first unit",
}


def started(startup: Mapping[str, float]) -> str:
    """`0:12: planning 2.1 s, Ray 4.0 s, actors 1.8 s, imports 2.4 s, models 0.4 s, first unit 1.1 s`."""
    each = ", ".join(f"{name} {startup[key]:.1f} s" for key, name in _STARTUP.items() if startup[key] >= 0.05)
    return f"{duration(sum(startup.values()))}: {each}"


def profiled(profile: Mapping[str, Any]) -> str:
    """The share of each stage of the actors' time, and where the trace and the picture lie."""
    stages: Mapping[str, float] = profile["seconds"].get("actors", {})
    whole = sum(stages.values())
    of = f" of {counted(profile['actors'], 'actor')}, {whole:,.1f} s together"
    ranked = ", ".join(
        f"{stage} {_percent(round(seconds * 1000), round(whole * 1000))}" for stage, seconds in stages.items()
    )
    files = [f"{profile['trace']}: open it in ui.perfetto.dev or chrome://tracing"]
    files += [profile["picture"]] if profile["picture"] else []
    before = profile["units_before"]
    alone = [f"of this execution alone, not of the {counted(before, 'unit')} before"] if before else []
    return "\n".join([*([ranked + of] if stages else []), *alone, *files])


def planned(plan: Mapping[str, Any]) -> RenderableType:
    """What a job will do, from the object of `plan --json`."""
    files = counted(plan["files"], "file") + (
        f" ({plan['files_unreadable']:,} unreadable)" * bool(plan["files_unreadable"])
    )
    pruned = f", {plan['rows_pruned']:,} more left out by the filter" * bool(plan["rows_pruned"])
    told = [
        ("corpus", f"{files}, {size(plan['bytes'])}, {counted(plan['rows'], 'row')}{pruned}"),
        ("units", f"{plan['units']:,} in {counted(plan['partitions'], 'partition')}"),
    ]
    for pool in plan["pools"]:
        name = "actors" if pool["pool"] is None else f"pool {pool['pool']}"
        told.append((name, f"{pool['actors']} on {pool['device']}, {counted(pool['threads'], 'thread')} each"))
    for name, annotation in plan["annotations"].items():
        model = annotation["model"] or "no model"
        digest = f" ({annotation['digest'][:12]}…)" if annotation["digest"] else ""
        how = ", ".join(str(annotation[key]) for key in ("engine", "dtype") if annotation[key])
        told.append((name, f"{model}{digest}{f', {how}' if how else ''}"))
    if plan["seconds_estimated"] is not None:
        tokens = f"about {plan['tokens_estimated']:,} tokens, {duration(plan['seconds_estimated'])} of computing"
        told.append(("cost", f"{tokens} (judged by {counted(plan['rows_sampled'], 'row')})"))
    told.append(("output", str(plan["output"])))
    told += [("note", note) for note in plan["notes"]]
    return lines(told)


def standing(status: Mapping[str, Any]) -> RenderableType:
    """How far an output is, from the object of `status --json`."""
    holder = status["running"]
    if holder is not None:
        state = f"running: process {holder['pid']} on {holder['host']}, since {holder['started']}"
    elif status["finished"]:
        state = "finished"
    else:
        state = "unfinished: the same `corpusmill run` goes on"
    told = [
        ("output", str(status["path"])),
        ("state", state),
        ("units", f"{status['units_done']:,} of {status['units_total']:,}"),
        ("rows", f"{status['rows_done']:,} of {status['rows_total']:,} read: {_rows(status)}"),
    ]
    if status["tokens"]:
        told.append(("tokens", f"{status['tokens']:,}"))
    told += [("damaged", sentence) for sentence in status["damaged"]]
    return lines(told)


def verified(faults: Sequence[str], is_finished: bool, values: Mapping[str, Any]) -> RenderableType:
    """What `verify` proved or found; every fault on a line of its own, the verdict last."""
    told: list[RenderableType] = [facts(values)] if values else []
    told += [Text.assemble(("fault  ", "red"), printable(fault)) for fault in faults]
    if faults:
        verdict = Text(f"{counted(len(faults), 'fault')} found", style="bold red")
    elif not is_finished:
        verdict = Text(
            "no fault so far, but the output is unfinished: the same `corpusmill run` goes on", style="yellow"
        )
    else:
        verdict = Text("verified: every row stands in exactly one place", style="bold green")
    return Group(*told, verdict)


def facts(values: Mapping[str, Any]) -> RenderableType:
    """Any flat answer, one line a value; nothing where there is nothing to tell."""
    told = {key.replace("_", " "): value for key, value in values.items() if value not in (None, [], {}, ())}
    return lines([(key, _value(key, value)) for key, value in told.items()])


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if key.endswith("bytes"):
            return size(value)
        if key.endswith("seconds"):
            return duration(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(name, each)}" for name, each in value.items() if each is not None)
    if isinstance(value, list | tuple):
        return "\n".join(_value("", each) for each in value)
    return cell(value)


def size(amount: float) -> str:
    """`812 bytes`, `3.1 MiB`."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    power = 0
    while amount >= 1024 and power < len(units) - 1:
        amount, power = amount / 1024, power + 1
    return f"{amount:,.0f} bytes" if power == 0 else f"{amount:,.1f} {units[power]}"


def counted(amount: int, noun: str) -> str:
    """`1 file`, `2,048 rows`."""
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def lines(told: Sequence[tuple[str, str]]) -> RenderableType:
    """Keys and values, one below the other; a value may have several lines."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in told:
        grid.add_row(Text(key, style="dim"), Text("\n".join(map(printable, value.splitlines()))))
    return grid
