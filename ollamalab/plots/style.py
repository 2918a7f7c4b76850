"""How every figure looks: colours, type, and the words around the axes.

The title says the finding, the caption n and interval. Colours are Okabe and Ito's, told apart by
readers with any colour vision; whatever is a baseline is grey.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure

INK = "#1f2430"
MUTED = "#6b7280"
GRID = "#e3e5ea"
BASELINE = "#8b93a1"
BAND = "#eceef2"

#: Source: Okabe and Ito, "Color Universal Design" (2008); black and yellow are left out.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")

#: Narrow, so that letters can still be read where a phone shows a figure in 350 pixels.
WIDTH_IN = 6.2

#: Letters that stand side by side in a figure, by their size, and those that a legend's key takes.
_TITLE_CHARACTERS, _LEGEND_CHARACTERS, _CAPTION_CHARACTERS = 62, 79, 101
_KEY_CHARACTERS = 5

_RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.linewidth": 1.0,
    "axes.spines.bottom": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 120,  # at 110 the bold digits of DejaVu come out with serifs
    "figure.facecolor": "white",
    "figure.titlesize": 11.5,
    "figure.titleweight": "bold",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
    "ytick.left": False,
}


@contextmanager
def canvas(
    *, height_in: float, title: str, caption: str, rows: Sequence[float] = (1.0,)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Give a figure in the house style to draw on; it is closed afterwards, so that it shows once.

    Args:
        height_in: Height of the axes in inches.
        title: The finding, with the condition.
        caption: n, kind of interval; "" for none.
        rows: Relative heights of axes that stand above each other and share x.
    """
    with mpl.rc_context(_RC):
        figure, grid = plt.subplots(
            len(rows),
            1,
            figsize=(WIDTH_IN, height_in),
            sharex=True,
            squeeze=False,
            height_ratios=list(rows),
            layout="constrained",
        )
        axes = [row[0] for row in grid]
        # Over the whole figure, not the axes: beside long labels a long title would run off the page.
        figure.suptitle("\n".join(textwrap.wrap(title, _TITLE_CHARACTERS)), x=0.01, ha="left", color=INK)
        try:
            yield figure, axes
            if caption:
                figure.text(
                    0.01,
                    -0.01,
                    "\n".join(textwrap.wrap(caption, _CAPTION_CHARACTERS)),
                    gid="caption",
                    fontsize=8,
                    color=MUTED,
                    va="top",
                )
        finally:
            plt.close(figure)


def colours(names: Sequence[Any], baseline: Any = None) -> dict[Any, str]:
    """Return a colour for each name, in order; the baseline is grey."""
    others = [name for name in names if name != baseline]
    chosen = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(others)}
    return {name: chosen.get(name, BASELINE) for name in names}


def shades(count: int) -> list[str]:
    """Return colours from light to dark for things that are counted, such as 0, 1, 2 ... sequences."""
    blend = LinearSegmentedColormap.from_list("shades", ["#e1ecf5", "#5aa5d4", "#005f96"])
    return [to_hex(blend(place / max(1, count - 1))) for place in range(count)]


def ink_on(colour: str) -> str:
    """Return the text colour that can be read on a colour: white or ink."""
    red, green, blue = mpl.colors.to_rgb(colour)
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.58 else INK


def percent(share: float, _place: int | None = None) -> str:
    """Return a share as "40 %"; fits matplotlib's ``FuncFormatter``."""
    return f"{share:.0%}".replace("%", "\u202f%")


def legend_above(axes: Axes, columns: int = 6, handles: Sequence[Any] | None = None) -> None:
    """Put the legend between title and axes, where it costs no width; long labels get more rows."""
    shown = axes.get_legend_handles_labels()[0] if handles is None else handles
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns_that_fit([str(handle.get_label()) for handle in shown], columns),
        borderaxespad=0.1,
        columnspacing=1.4,
        handlelength=1.5,
        handletextpad=0.5,
    )


def columns_that_fit(labels: Sequence[str], most: int) -> int:
    """Return the number of legend columns, ``most`` at best, whose labels fit the width of a figure."""
    for count in range(min(most, len(labels)), 1, -1):
        rows = math.ceil(len(labels) / count)
        widest = (max(map(len, labels[start : start + rows])) for start in range(0, len(labels), rows))
        if sum(width + _KEY_CHARACTERS for width in widest) <= _LEGEND_CHARACTERS:
            return count
    return 1
