"""Figures of where time goes: stages of one request, one bar per scenario."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from ollamalab.plots.style import INK, MUTED, PALETTE, canvas, ink_on, legend_above

#: Unnamed remainder, and what comes before the engine does anything.
_QUIET = "#b6bcc6"


def stage_bars(
    stages: pd.DataFrame,
    *,
    title: str,
    caption: str = "",
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Return one stacked bar per scenario: its stages in the order they happen, in seconds.

    Args:
        stages: Index scenario (first one on top), one column per stage in order, seconds; an absent
            stage did not happen. A stage named "other" is drawn in grey.
        title: The finding.
        caption: n, what the bars are (medians), condition.
        intervals: Scenario to the 95 % interval of its total.
    """
    totals = stages.sum(axis=1)
    names = iter(PALETTE)
    palette = {stage: _QUIET if stage == "other" else next(names) for stage in stages.columns}
    with canvas(height_in=1.25 + 0.46 * len(stages), title=title, caption=caption) as (figure, (axes,)):
        left = pd.Series(0.0, index=stages.index)
        places = range(len(stages))
        for stage in stages.columns:
            seconds = stages[stage].fillna(0.0).astype(float)
            axes.barh(places, seconds, left=left, height=0.62, color=palette[stage], label=stage)
            for place, (start, width) in enumerate(zip(left, seconds, strict=True)):
                if width > 0.085 * totals.max():
                    axes.text(
                        start + width / 2, place, _short(width), ha="center", va="center",
                        color=ink_on(palette[stage]), gid="on-colour", fontsize=8.5,
                    )  # fmt: skip
            left += seconds
        ends = totals.copy()
        for place, scenario in enumerate(stages.index):
            if intervals and scenario in intervals:
                low, high = intervals[scenario]
                axes.plot([low, high], [place + 0.4] * 2, color=INK, lw=1.2, marker="|", ms=5)
                ends[scenario] = max(high, totals[scenario])
            axes.text(
                ends[scenario] + 0.015 * totals.max(), place, _short(totals[scenario]) + " s",
                va="center", fontweight="bold",
            )  # fmt: skip
        axes.set_yticks(places, stages.index)
        axes.invert_yaxis()
        axes.set_xlim(0, ends.max() * 1.12 or 1.0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds", color=MUTED)
        legend_above(axes)
    return figure


def _short(seconds: float) -> str:
    """Return seconds with two to four digits."""
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f}"
