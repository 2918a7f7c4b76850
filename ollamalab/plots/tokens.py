"""Figures of prompt tokens: how many were sent, and how many of them an engine had to evaluate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ollamalab.plots.style import BAND, INK, MUTED, PALETTE, canvas, legend_above


def token_bars(tokens: pd.DataFrame, *, title: str, caption: str = "") -> Figure:
    """Return a bar per case: tokens sent in grey, the part that was evaluated in colour before it.

    Args:
        tokens: Columns ``label``, ``sent``, ``evaluated`` (means per request) and ``n`` (requests).
        title: The finding.
        caption: What the means are over.
    """
    rows = tokens.reset_index(drop=True)
    places = range(len(rows))
    with canvas(height_in=1.05 + 0.4 * max(1, len(rows)), title=title, caption=caption) as (figure, (axes,)):
        axes.barh(places, rows["sent"], height=0.66, color=BAND, edgecolor=MUTED, lw=0.6, label="sent")
        axes.barh(places, rows["evaluated"], height=0.66, color=PALETTE[0], label="evaluated")
        for place, row in rows.iterrows():
            text, end = f"{row['evaluated']:.0f} of {row['sent']:.0f}", (row["sent"], place)
            axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", color=INK)
        names = [f"{row['label']}  (n = {row['n']})" for _, row in rows.iterrows()]
        axes.set_yticks(places, names)
        axes.set_ylim(len(rows) - 0.45, -0.55)
        most = rows["sent"].max() if len(rows) else 1.0
        axes.set_xlim(0, 1.22 * most)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("prompt tokens per request")
        if rows.empty:
            axes.text(0.5, 0.5, "no engine told", transform=axes.transAxes, ha="center", color=MUTED)
        else:
            legend_above(axes)
    return figure
