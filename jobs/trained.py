"""What a command tells of a training: on how many rows, for how long, and what became of the model.

     rows     1,612 train, 203 validation, 207 test
     steps    151, the best one 101: 4,310 tokens/s, 0:48 in all
     gate     macro_f1 is 0.532: passed
     model    models/sections/model (53aa51172d14…)
     next     corpusmill run my-job.yaml -o annotations.0.model=models/sections/model

Values become renderables; nothing is read or written.
"""

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from jobs.display import duration
from jobs.figures import number
from jobs.summary import lines
from jobs.table import printable


def trained(summary: Mapping[str, Any]) -> RenderableType:
    """What a fine-tuning did and where its model is, from its `--json` object."""
    output = str(summary["output"]).rstrip("/")
    told = [("rows", _rows(summary["rows"])), ("steps", _steps(summary)), ("gate", _gate(summary["gate"]))]
    if "speed" in summary:
        told.append(("speed", f"{summary['speed']['ratio']:.2f} times the tokens/s of the model that taught it"))
    if summary["promoted"]:
        model = summary["model"]
        told += [
            ("model", f"{model['ref']} ({model['digest'][:12]}…)"),
            ("output", f"{output}/metrics.json, and pictures in {output}/plots"),
            ("next", f"a job that says `model: {model['ref']}`"),
        ]
    else:
        told += [
            ("model", f"not promoted; it lies in {output}/metadata/candidate"),
            ("output", f"{output}/metrics.json, and pictures in {output}/plots"),
            ("next", "with another gate the same command judges anew, and trains no more"),
        ]
    return lines([(key, printable(value)) for key, value in told])


def standing_training(status: Mapping[str, Any]) -> RenderableType:
    """How far a fine-tuning is, from the object of `status --json`."""
    holder, state = status["running"], status["state"]
    if holder is not None:
        now = f"{state}: process {holder['pid']} on {holder['host']}, since {holder['started']}"
    else:
        now = state if status["finished"] else f"unfinished, {state} comes next: the same `corpusmill run` goes on"
    told = [
        ("output", str(status["path"])),
        ("state", now),
        ("units", f"{status['units_done']:,} of {status['units_total']:,} tokenised"),
    ]
    if status["steps"] is not None:
        told.append(("steps", f"{status['step']:,} of {status['steps']:,}"))
    if status["promoted"] is not None:
        promoted = f"{status['model']} ({status['digest'][:12]}…)"
        told.append(("model", promoted if status["promoted"] else f"not promoted: {'; '.join(status['reasons'])}"))
    return lines([(key, printable(value)) for key, value in told])


def _rows(rows: Mapping[str, int]) -> str:
    told = [f"{count:,} {subset}" for subset, count in rows.items() if subset != "left_out" and count]
    return ", ".join([*told, *([f"{rows['left_out']:,} left out"] if rows["left_out"] else [])])


def _steps(summary: Mapping[str, Any]) -> str:
    best = "" if summary["best_step"] == summary["steps"] else f", the best one {summary['best_step']:,}"
    speed = f": {summary['tokens_per_second']:,.0f} tokens/s" if summary["tokens_per_second"] else ""
    return f"{summary['steps']:,}{best}{speed}, {duration(summary['seconds'])} in all"


def _gate(gate: Mapping[str, Any]) -> str:
    if gate["metric"] is None:
        return "none"
    return f"{gate['metric']} is {number(gate['value'])}: {'passed' if gate['passed'] else 'not passed'}"
