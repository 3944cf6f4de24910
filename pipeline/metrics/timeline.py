"""Where a run's time went, as a picture: what each process did when, above the share of each stage of the actors' time.

Path("profile.png").write_bytes(timeline(profile, ended, title="16 units of run …"))
"""

from typing import Any

from pipeline.metrics import look
from pipeline.profile import FIRST_PASS, ROLES, WAITING, WAITING_FOR_GPU, Lane, Profile

MOST_LANES = 40
"""Processes that are drawn: the driver, actors, then readers and commit tasks."""

_MOST_SPANS = 20_000
_NAMED = 0.1  # of the whole time: a phase of the driver in which there is room for its name
_FINEST = 2000  # where there are more spans, those shorter than so small a share of the time are not drawn

_COLORS = {
    "imports": "#b9a5d2",
    "weights": "#8d6fb5",
    FIRST_PASS: "#5f4290",
    "tokenise": look.ORANGE,
    "decode": look.GREEN,
    "rest": look.PALE,
    "read": "#e3b98f",
    "tokenizers": "#8d6fb5",
    "parts": "#7fbfa6",
    "receipt": "#c14f5f",
    "commit": "#b7d9cc",
    WAITING: look.GRID,
    WAITING_FOR_GPU: "#c9ccd1",
}
_FORWARD = (look.BLUE, "#5aa0d6", "#1b4468", look.LIGHT_BLUE, "#3f8fa3")
"""Of the annotations, in the order of their seconds."""


def timeline(profile: Profile, ended: float, title: str) -> bytes:
    """`ended`: the last word of a unit, as `Profile.sums` takes it. Raises JobError where matplotlib is missing."""
    lanes = sorted(profile.lanes, key=lambda lane: ("driver", "actor", *ROLES).index(lane.role))
    drawn, left_out = lanes[:MOST_LANES], len(lanes) - MOST_LANES
    sums = profile.sums(ended)
    stages = sums.get("actors", {})
    colors = _COLORS | dict(zip([each for each in stages if each.startswith("forward")], _FORWARD * 20, strict=False))
    figure = look.figure(11, 2.4 + 0.24 * len(drawn) + 0.26 * len(stages))
    above, below = figure.subplots(2, 1, height_ratios=[1.2 + 0.24 * len(drawn), 0.6 + 0.26 * len(stages)])
    whole = max([ended, *(each.began + each.seconds for lane in drawn for _, each in lane.spans)]) - profile.began
    shortest = whole / _FINEST if sum(len(lane.spans) for lane in drawn) > _MOST_SPANS else 0.0
    for place, lane in enumerate(drawn):
        _draw(above, place, lane, profile.began, shortest, colors)
        for stage, each in lane.spans if lane.role == "driver" else []:
            if each.seconds > _NAMED * whole:
                middle = each.began - profile.began + each.seconds / 2
                above.text(middle, place, stage, ha="center", va="center", fontsize=7, color=look.INK, zorder=9)
    above.set_yticks(range(len(drawn)), _names(drawn), fontsize=8, parse_math=False)
    above.tick_params(axis="y", length=0)
    more = f"; {left_out} more processes are in the trace" if left_out > 0 else ""
    above.set(xlim=(0, whole), ylim=(len(drawn) - 0.4, -0.6), xlabel=f"seconds since the command began{more}")
    every = sum(stages.values())
    below.barh(list(stages), stages.values(), 0.7, color=[colors.get(each, look.PALE) for each in stages], zorder=2)
    for place, seconds in enumerate(stages.values()):
        told = f"{seconds / every:.1%}, {seconds:,.1f} s" if every else ""
        below.annotate(told, (seconds, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
    told = f"seconds of {profile.actors} actor{'' if profile.actors == 1 else 's'} together, {every:,.1f} in all"
    below.set(xlim=(0, 1.15 * max(stages.values(), default=1)), ylim=(len(stages) - 0.4, -0.6), xlabel=told)
    below.tick_params(axis="y", length=0, labelsize=8)
    look.finish(above, title, spines=("bottom",))
    look.finish(below, spines=("bottom",))
    return look.png(figure)


def _draw(axes: Any, place: int, lane: Lane, began: float, shortest: float, colors: dict[str, str]) -> None:
    """A bar for each span; what is inside another is drawn over it."""
    bars: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for stage, each in lane.spans:
        if each.seconds >= shortest:
            bars.setdefault((each.depth, stage), []).append((each.began - began, each.seconds))
    for (depth, stage), spans in sorted(bars.items()):
        color = colors.get(stage, look.LIGHT_BLUE)
        edge = "white" if lane.role == "driver" else "none"
        axes.broken_barh(spans, (place - 0.4, 0.8), color=color, edgecolor=edge, linewidth=0.5, zorder=2 + depth)


def _names(lanes: list[Lane]) -> list[str]:
    """`actor 4711`, with its node where there are several."""
    several = len({lane.process.rpartition(":")[0] for lane in lanes}) > 1
    return [f"{lane.role} {lane.process if several else lane.process.rpartition(':')[2]}" for lane in lanes]
