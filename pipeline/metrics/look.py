"""How all pictures look: colors, an empty figure, its finish, and the PNG. No display is needed."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from pipeline.metrics.libraries import library

INK, PALE, GRID = "#22303c", "#7b8894", "#e4e8ec"
BLUE, LIGHT_BLUE, ORANGE, GREEN = "#2f6fad", "#8bb8de", "#d9772b", "#3d8f6a"
_DOTS_PER_INCH = 150


def figure(width_inches: float, height_inches: float) -> Any:
    """An empty figure of its own; the constrained layout keeps names inside it."""
    return library("matplotlib.figure").Figure((width_inches, height_inches), layout="constrained")


def finish(axes: Any, title: str | None = None, spines: Sequence[str] = ("left", "bottom")) -> None:
    """The same look for all: ink that is not black, a light grid behind, no box around."""
    if title is not None:
        axes.set_title(title, loc="left", fontsize=12, color=INK, pad=12, fontweight="bold", parse_math=False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in spines)
        spine.set_color(GRID)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if spines:
        axes.grid(color=GRID, linewidth=0.8, zorder=0, axis="both" if "left" in spines else "x")
        axes.set_axisbelow(True)


def png(drawn: Any) -> bytes:
    """The picture; without the date and version of the library, so that equal figures give equal files."""
    canvas = library("matplotlib.backends.backend_agg").FigureCanvasAgg(drawn)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as an empty box: no reason to trouble anybody.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        canvas.print_figure(
            picture, format="png", dpi=_DOTS_PER_INCH, bbox_inches="tight", pad_inches=0.15, metadata={"Software": None}
        )
    return picture.getvalue()
