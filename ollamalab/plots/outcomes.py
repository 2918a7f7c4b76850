"""Figures of how requests ended."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ollamalab.plots.style import INK, MUTED, PALETTE, canvas, ink_on, legend_above
from ollamalab.records import Outcome

#: Good ends in blue; those that tell the client what went wrong in warm colours.
_COLOURS = {
    Outcome.OK: PALETTE[0],
    Outcome.EMPTY: PALETTE[5],
    Outcome.TRUNCATED: INK,
    Outcome.ERROR_LINE: PALETTE[3],
    Outcome.HTTP_ERROR: PALETTE[1],
    Outcome.TIMEOUT: PALETTE[4],
    Outcome.REFUSED: MUTED,
    Outcome.CANCELLED: "#b6bcc6",
}


def outcome_bars(counts: pd.DataFrame, *, title: str, caption: str = "") -> Figure:
    """Return one stacked bar per row: which share of its requests ended how.

    Args:
        counts: Index what was tried (first one on top), one column per ``Outcome`` value that occurred,
            requests; a row without requests has no bar.
        title: The finding.
        caption: What the rows are, conditions; n stands at each row's name.
    """
    totals = counts.sum(axis=1)
    shares = counts.div(totals.where(totals > 0), axis=0).fillna(0.0)
    with canvas(height_in=1.4 + 0.3 * len(counts), title=title, caption=caption) as (figure, (axes,)):
        left = pd.Series(0.0, index=counts.index)
        for name in counts.columns:
            outcome = Outcome(name)
            colour = _COLOURS[outcome]
            bars = axes.barh(
                range(len(counts)),
                shares[name],
                left=left,
                height=0.7,
                color=colour,
                edgecolor="white",
                linewidth=0.8,
                label=outcome.value.replace("_", " "),
            )
            labels = [
                str(int(count)) if share >= 0.06 else ""
                for count, share in zip(counts[name], shares[name], strict=True)
            ]
            axes.bar_label(
                bars, labels, label_type="center", fontsize=8.5, color=ink_on(colour), gid="on-colour"
            )
            left += shares[name]
        names = [f"{name}  (n = {int(total)})" for name, total in totals.items()]
        axes.set_yticks(range(len(counts)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.set_xlabel("requests by how they ended")
        legend_above(axes, columns=4)
    return figure
