"""Figures of what one thing costs in another: one point per arm, with its name and a note beside it."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from ollamalab.plots.style import INK, MUTED, canvas, colours, legend_above

#: Points whose costs are nearer than this share of the axis have their names on different sides.
_NEAR = 0.12


def trade_off(
    points: pd.DataFrame,
    *,
    title: str,
    cost: str,
    quantity: str,
    baseline: str | None = None,
    caption: str = "",
) -> Figure:
    """Return a quantity against what it costs, with intervals; upper left is best.

    Args:
        points: Columns ``x`` (the cost, 0 or more), ``value``, ``low``, ``high`` (a missing interval draws no
            whisker), ``label`` and ``note``, a few words for the legend.
        title: The finding.
        cost: What it costs, with its unit, such as "memory [MB]".
        quantity: What was measured, with its unit.
        baseline: Label of the point that is drawn in grey.
        caption: n per point, kind of interval, condition.
    """
    palette = colours(list(points["label"]), baseline)
    right_end = 1.15 * points["x"].max() if len(points) else 1.0
    with canvas(height_in=3.4, title=title, caption=caption) as (figure, (axes,)):
        places = points.sort_values("x").reset_index(drop=True)
        for index, row in places.iterrows():
            colour, name = palette[row["label"]], f"{row['label']}: {row['note']}".removesuffix(": ")
            axes.vlines(row["x"], row["low"], row["high"], color=colour, lw=2, alpha=0.6)
            axes.plot(row["x"], row["value"], "o", color=colour, ms=8, mec="white", ls="", label=name)
            near = [abs(gap) < _NEAR * right_end for gap in _gaps(places["x"], int(str(index)))]
            is_left = near == [False, True]
            axes.annotate(
                row["label"],
                (row["x"], row["value"]),
                (-9 if is_left else 9, 0),
                textcoords="offset points",
                ha="right" if is_left else "left",
                va="center",
                color=INK,
                fontweight="bold",
            )
        if points.empty:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
        else:
            axes.set_ylim(0, 1.12 * points[["value", "high"]].max().max())
            legend_above(axes, columns=4)
        axes.set_xlim(0, right_end)
        axes.set_xlabel(cost)
        axes.set_ylabel(quantity, color=MUTED)
    return figure


def _gaps(places: pd.Series[float], index: int) -> tuple[float, float]:
    """Return how far the neighbours of a place are, the one below and the one above; infinite for none."""
    around = [math.inf, *places.diff().iloc[1:], math.inf]
    return around[index], around[index + 1]
