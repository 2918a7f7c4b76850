"""Figures of what one thing costs in another: one point per arm, with its name and a note beside it."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ollamalab.plots.style import INK, MUTED, canvas, colours


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
            whisker), ``label`` and ``note``, a few words that stand under the label.
        title: The finding.
        cost: What it costs, with its unit, such as "memory [MB]".
        quantity: What was measured, with its unit.
        baseline: Label of the point that is drawn in grey.
        caption: n per point, kind of interval, condition.
    """
    palette = colours(list(points["label"]), baseline)
    with canvas(height_in=3.6, title=title, caption=caption) as (figure, (axes,)):
        for row in points.itertuples():
            colour = palette[row.label]
            axes.vlines(row.x, row.low, row.high, color=colour, lw=2, alpha=0.6)
            axes.plot(row.x, row.value, "o", color=colour, ms=8, mec="white")
            place: dict[str, Any] = {"textcoords": "offset points", "va": "center"}
            axes.annotate(row.label, (row.x, row.value), (9, 6), color=INK, fontweight="bold", **place)
            axes.annotate(row.note, (row.x, row.value), (9, -7), color=MUTED, fontsize=8.5, **place)
        if points.empty:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=MUTED)
        else:
            # Room at the right for the words beside the last point.
            axes.set_xlim(0, 1.35 * points["x"].max())
            axes.set_ylim(0, 1.12 * points[["value", "high"]].max().max())
        axes.set_xlabel(cost)
        axes.set_ylabel(quantity, color=MUTED)
    return figure
