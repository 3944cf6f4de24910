"""Pictures of what was measured, as PNG bytes: confusion, calibration, F1 of each label, a training's course.

    Path("confusion.png").write_bytes(confusion(measured.tables["confusion"], title="section of 4,096 packages"))

Each takes a table as `Measured.tables` holds it, or the steps that a training logged. No display is needed, and what
another part of the process draws with matplotlib is not touched. L labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import JobError
from pipeline.metrics import look
from pipeline.metrics.libraries import library

_FIGURES_IN_CELLS = 20  # labels; with more the cells are too small to hold numbers
_FEW_STEPS = 25
_LONGEST_NAME = 28  # characters of a label beside an axis


def confusion(table: Mapping[str, Any], title: str = "Confusion") -> bytes:
    """Rows gold, columns predicted: the share of each gold label's rows, darker where it is higher.

    Labels are grouped as their names sort; a label that is never gold has an empty row.
    """
    labels: list[str] = table["labels"]
    counts_LL = np.array(table["counts"], np.float64).reshape(len(labels), len(labels))
    gold_L1 = (counts_LL.sum(1) + np.array(table["without_prediction"], np.float64))[:, None]
    shares_LL = np.divide(counts_LL, gold_L1, out=np.zeros_like(counts_LL), where=gold_L1 > 0)
    side = min(3.2 + 0.17 * len(labels), 24) if len(labels) > _FIGURES_IN_CELLS else 3.2 + 0.42 * len(labels)
    names = [_short(label) for label in labels]
    beside = 0.085 * max(map(len, names), default=0)
    figure = look.figure(side + beside + 0.8, side + beside)
    axes = figure.add_subplot()
    # The square root lets 2% of a row be seen beside 90%: confusions are what one looks for.
    norm = library("matplotlib.colors").PowerNorm(0.5, 0, 1)
    image = axes.imshow(shares_LL, cmap=_shades(), norm=norm, interpolation="nearest")
    size = 8 if len(labels) <= 60 else max(2.5, 480 / len(labels))
    places = np.arange(len(labels))
    axes.set_xticks(places, names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places, names, fontsize=size, parse_math=False)
    axes.set_xticks(places[1:] - 0.5, minor=True)
    axes.set_yticks(places[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set(xlabel="predicted", ylabel="gold")
    if len(labels) <= _FIGURES_IN_CELLS:
        for row, column in zip(*np.nonzero(counts_LL), strict=True):
            axes.text(
                column,
                row,
                f"{int(counts_LL[row, column]):,}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if shares_LL[row, column] > 0.35 else look.INK,
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, shrink=0.6, ticks=[0, 0.02, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "2%", "10%", "25%", "50%", "100%"], fontsize=8)
    bar.set_label("of the rows of a gold label")
    bar.outline.set_visible(False)
    look.finish(axes, title, spines=())
    return look.png(figure)


def reliability(bins: Sequence[Mapping[str, Any]], title: str = "Calibration", ece: float | None = None) -> bytes:
    """What is right at each confidence, beside the diagonal where both agree; below, how many rows lie there.

    `bins` as `tables["reliability"]` holds them.
    """
    figure = look.figure(5.6, 6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    middles = [(each["low"] + each["high"]) / 2 for each in bins]
    widths = [0.94 * (each["high"] - each["low"]) for each in bins]
    right, confidence = ([each[name] for each in bins] for name in ("right", "confidence"))
    above.plot([0, 1], [0, 1], color=look.PALE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    above.bar(middles, right, widths, color=look.BLUE, alpha=0.85, label="share that is right", zorder=2)
    above.vlines(confidence, right, confidence, color=look.ORANGE, linewidth=2, zorder=3)
    above.scatter(confidence, confidence, s=14, color=look.ORANGE, label="mean confidence", zorder=4)
    above.set(ylabel="share that is right", ylim=(0, 1.02), xlim=(0, 1))
    above.legend(frameon=False, loc="upper left", fontsize=9, labelcolor=look.INK, reverse=True)
    below.bar(middles, [each["rows"] for each in bins], widths, color=look.PALE, zorder=2)
    below.set(xlabel="confidence", ylabel="rows")
    below.yaxis.set_major_locator(library("matplotlib.ticker").MaxNLocator(3, integer=True))
    below.yaxis.set_major_formatter(_thousands())
    look.finish(above, title if ece is None else f"{title}: expected error {ece:.3f}")
    look.finish(below)
    return look.png(figure)


def classes(per_class: Sequence[Mapping[str, Any]], title: str = "F1 of each label") -> bytes:
    """A bar for each label, the most frequent first, with its interval and how often it is gold.

    `per_class` as `tables["per_class"]` holds it.
    """
    lines = sorted(per_class, key=lambda line: (-line["gold"], line["label"]))
    places = np.arange(len(lines))
    figure = look.figure(7, 1.4 + 0.19 * max(4, len(lines)))
    axes = figure.add_subplot()
    axes.barh(places, [line["f1"] for line in lines], 0.72, color=look.LIGHT_BLUE, zorder=2)
    known = [(place, line) for place, line in enumerate(lines) if line["f1_low"] is not None]
    axes.hlines(
        [place for place, _ in known],
        [line["f1_low"] for _, line in known],
        [line["f1_high"] for _, line in known],
        color=look.INK,
        linewidth=1.3,
        zorder=3,
    )
    for place, line in enumerate(lines):
        axes.text(1.015, place, f"{line['gold']:,}", va="center", fontsize=8, color=look.PALE)
    axes.text(1.015, -1, "gold", va="center", fontsize=8, color=look.PALE)
    axes.set_yticks(places, [_short(line["label"]) for line in lines], fontsize=8, parse_math=False)
    axes.set(xlim=(0, 1), ylim=(len(lines) - 0.4, -0.6), xlabel="F1")
    axes.tick_params(axis="y", length=0)
    look.finish(axes, title, spines=("bottom",))
    return look.png(figure)


def course(steps: Sequence[Mapping[str, float]], title: str = "Training") -> bytes:
    """Loss and learning rate over the steps of a training, and what was measured in between.

    A step is {"step": 20, "loss": 1.3, "learning_rate": 2e-4}, or {"step": 100, "eval_loss": 0.9, "eval_accuracy": …},
    as transformers.Trainer logs them; names that are missing are passed over.

    Raises JobError: no step has a loss.
    """
    if not (_series(steps, "loss") or _series(steps, "eval_loss")):
        raise JobError("there is no loss to draw: no logged step holds `loss` or `eval_loss`")
    figures = sorted({name for each in steps for name in each if _is_measured(name)})
    rates = _series(steps, "learning_rate")
    heights = [3, *[1.6] * bool(figures), *[1.1] * bool(rates)]
    figure = look.figure(7.2, 1.4 + 1.1 * sum(heights))
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    training = _series(steps, "loss")
    _line(panels[0], training, look.BLUE, linewidth=0.8, alpha=0.35)
    if training:
        _line(panels[0], _smooth(training), look.BLUE, label="training")
    if held_out := _series(steps, "eval_loss"):
        _line(panels[0], held_out, look.ORANGE, label="validation")
    panels[0].set(ylabel="loss")
    if figures:
        palette = library("matplotlib").colormaps["tab10"].colors
        for place, name in enumerate(figures):
            label = name.removeprefix("eval_").replace("_", " ")
            _line(panels[1], _series(steps, name), palette[place % len(palette)], label=label)
        panels[1].set(ylabel="validation")
    if rates:
        _line(panels[-1], rates, look.GREEN)
        panels[-1].set(ylabel="learning rate")
        panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    panels[-1].set(xlabel="step")
    panels[-1].xaxis.set_major_locator(library("matplotlib.ticker").MaxNLocator(integer=True, min_n_ticks=1))
    panels[-1].xaxis.set_major_formatter(_thousands())
    for axes in panels:
        look.finish(axes, title if axes is panels[0] else None)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9, ncols=3, labelcolor=look.INK)
    return look.png(figure)


def _line(axes: Any, series: Sequence[tuple[float, float]], color: Any, **options: Any) -> None:
    """A line through steps; where they are few, each has its mark."""
    mark = {"marker": "o", "markersize": 4} if len(series) <= _FEW_STEPS else {}
    axes.plot(
        [step for step, _ in series], [value for _, value in series], color=color, zorder=3, **{**mark, **options}
    )


def _is_measured(name: str) -> bool:
    """A figure of the validation rows; not how long they took."""
    return name.startswith("eval_") and name != "eval_loss" and not name.endswith(("_runtime", "_per_second"))


def _series(steps: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
    return [(each["step"], each[name]) for each in steps if name in each and np.isfinite(each[name])]


def _smooth(series: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of each step's neighbourhood, a fortieth of the course to each side."""
    reach = len(series) // 40
    values = np.array([value for _, value in series])
    return [
        (step, float(values[max(0, place - reach) : place + reach + 1].mean()))
        for place, (step, _) in enumerate(series)
    ]


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_NAME else f"{label[: _LONGEST_NAME - 1]}…"


def _thousands() -> Any:
    return library("matplotlib.ticker").FuncFormatter(lambda value, _: f"{value:,.0f}")


def _shades() -> Any:
    return library("matplotlib.colors").LinearSegmentedColormap.from_list(
        "blues", ["#f6f8fa", "#c5dbef", "#7fb0d8", look.BLUE, "#173f69"]
    )


def rates(figures: Mapping[str, tuple[float, float, float]], unit: str, title: str) -> bytes:
    """A bar for each name, in the order given, the first one in colour: median, least and most of several rounds."""
    names = [_short(name) for name in figures]
    medians_N, least_N, most_N = np.array(list(figures.values()), np.float64).T
    places_N = np.arange(len(names))
    figure = look.figure(7.6, 1.1 + 0.42 * len(names))
    axes = figure.add_subplot()
    axes.barh(places_N, medians_N, color=[look.BLUE, *[look.LIGHT_BLUE] * (len(names) - 1)], height=0.62, zorder=2)
    spans = [medians_N - least_N, most_N - medians_N]
    axes.errorbar(medians_N, places_N, xerr=spans, fmt="none", ecolor=look.INK, elinewidth=1, capsize=2.5, zorder=3)
    for place, median, most in zip(places_N, medians_N, most_N, strict=True):
        axes.annotate(
            f"{median:,.0f}", (most, place), (6, 0), textcoords="offset points", va="center", fontsize=9, color=look.INK
        )
    axes.set_yticks(places_N, names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16 * most_N.max())
    axes.xaxis.set_major_formatter(library("matplotlib.ticker").StrMethodFormatter("{x:,.0f}"))
    axes.set(xlabel=unit)
    look.finish(axes, title, spines=("bottom",))
    axes.tick_params(axis="y", length=0)
    return look.png(figure)
