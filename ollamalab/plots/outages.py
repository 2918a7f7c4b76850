"""Figures of what becomes of requests while a server is away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ollamalab.plots.style import INK, MUTED, PALETTE, canvas, legend_above

#: Ends that are no answer, drawn last and in the colour of warnings.
_BAD = {"cut off": "#f0a58b", "lost": "#d55e00"}
_GOOD = tuple(colour for colour in PALETTE if colour != "#d55e00")


def ends_over_time(
    ends: pd.DataFrame,
    marks: pd.DataFrame,
    *,
    title: str,
    bin_s: float = 0.25,
    caption: str = "",
) -> Figure:
    """Return how many requests ended in each moment and how, one panel per row.

    Args:
        ends: Columns ``row``, ``at_s`` and ``kind``: who answered, or "cut off", or "lost".
        marks: Columns ``row``, ``at_s`` and ``text``: moments to name.
        title: The finding.
        bin_s: Width of the bars.
        caption: n, condition.
    """
    rows = list(dict.fromkeys([*ends["row"], *marks["row"]])) or [""]
    kinds = _in_order(ends["kind"])
    colours = {kind: _BAD.get(kind, _GOOD[index % len(_GOOD)]) for index, kind in enumerate(kinds)}
    last_s = max([1.0, *ends["at_s"]])
    edges = [bin_s * step for step in range(math.ceil(last_s / bin_s) + 2)]
    heights = [1.0] * len(rows)
    with canvas(height_in=0.9 + 1.15 * len(rows), title=title, caption=caption, rows=heights) as (
        figure,
        axes,
    ):
        for place, (panel, row) in enumerate(zip(axes, rows, strict=True)):
            own = ends[ends["row"] == row]
            panel.hist(
                [own.loc[own["kind"] == kind, "at_s"].astype(float) for kind in kinds] or [[]],
                bins=edges,
                stacked=True,
                color=[colours[kind] for kind in kinds] or None,
                label=kinds or None,
                rwidth=0.92,
            )
            for _, mark in marks[marks["row"] == row].iterrows():
                panel.axvline(mark["at_s"], color=INK, lw=1.1, ls=(0, (4, 3)))
                panel.annotate(
                    mark["text"], (mark["at_s"], 0.98), xycoords=("data", "axes fraction"),
                    xytext=(3, 0), textcoords="offset points", va="top", color=MUTED, fontsize=8.5,
                )  # fmt: skip
            panel.set_ylim(0, panel.get_ylim()[1] * 1.3)  # room for the marks
            panel.set_ylabel(row.replace(" ", "\n", 1), color=INK)
            panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            if place == 0 and kinds:
                legend_above(panel)
        axes[-1].set_xlim(0, edges[-1])
        axes[-1].set_xlabel(f"seconds since the first request   (requests ended per {bin_s:g} s)")
    return figure


def _in_order(kinds: Sequence[str]) -> list[str]:
    """Return the kinds by name, those that are no answer last."""
    return sorted(set(kinds), key=lambda kind: (kind in _BAD, kind))
