"""Figures of arms against each other: ratios with intervals, and whole distributions."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ollamalab.plots.style import BAND, BASELINE, INK, MUTED, PALETTE, canvas, colours, legend_above, percent

#: Ratios inside 1/1.1 ... 1.1 count as equal; the same band as in ``compare``.
EQUIVALENCE = 1.1


def ratio_forest(ratios: pd.DataFrame, *, title: str, quantity: str, caption: str = "") -> Figure:
    """Return one row per comparison: estimate and interval of a ratio, on a log axis around 1.

    Args:
        ratios: Columns ``label``, ``estimate``, ``low``, ``high`` (ends of the 95 % interval) and ``n``
            (pairs); rows without an estimate are shown as "n/a".
        title: The finding.
        quantity: What the ratio is of, such as "time to first token, after / before".
        caption: Kind of interval and condition; the number of pairs stands in the rows.
    """
    rows = ratios.reset_index(drop=True)
    known = rows.dropna(subset=["estimate", "low", "high"])
    reach = max([1.25, *(1 / known["low"]), *known["high"]]) * 1.08
    texts = {index: _interval(row) for index, row in known.iterrows()}
    with canvas(height_in=0.95 + 0.36 * len(rows), title=title, caption=caption) as (figure, (axes,)):
        axes.axvspan(1 / EQUIVALENCE, EQUIVALENCE, color=BAND, lw=0, zorder=0)
        axes.axvline(1.0, color=BASELINE, lw=1.2, zorder=1)
        for index, row in rows.iterrows():
            if index in known.index:
                differs = row["low"] > 1 or row["high"] < 1
                colour = PALETTE[0] if differs else MUTED
                axes.plot([row["low"], row["high"]], [index, index], color=colour, lw=2.2)
                axes.plot(row["estimate"], index, "o", color=colour, ms=6.5)
            count = "" if pd.isna(row["n"]) else f"n = {int(row['n'])}"
            _beside(axes, index, texts.get(index, "n/a"), 0, INK)
            _beside(axes, index, count, max(map(len, texts.values()), default=3), MUTED)
        axes.set_xscale("log")
        axes.set_xlim(1 / reach, reach)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_ratio_text))
        axes.set_yticks(range(len(rows)), rows["label"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{quantity}   (band: equal within 10 %)")
        _set_ratio_ticks(figure, axes, reach)
    return figure


def _interval(row: pd.Series) -> str:
    return f"{row['estimate']:.2f}× ({row['low']:.2f}–{row['high']:.2f})"


def _ratio_text(ratio: float, _place: int | None = None) -> str:
    """Return a tick's label: "0.667×", "10000×"."""
    return f"{ratio:.3g}×" if ratio < 1000 else f"{ratio:.0f}×"


def _beside(axes: Axes, row: Any, text: str, after_characters: int, colour: str) -> None:
    """Write to the right of a row, so many characters after its end, however wide the axes are."""
    axes.annotate(
        text,
        (1, row),
        xycoords=axes.get_yaxis_transform(),
        xytext=(8 + 6 * after_characters, 0),
        textcoords="offset points",
        va="center",
        color=colour,
    )


def latency_ecdf(
    values: pd.DataFrame,
    *,
    title: str,
    quantity: str,
    unit: str = "s",
    baseline: str | None = None,
    counted: str = "requests",
    caption: str = "",
) -> Figure:
    """Return, by arm, the share of requests that were at most so long; dots mark the medians.

    Args:
        values: Columns ``arm`` and ``value``, one row per request; absent values are left out.
        title: The finding.
        quantity: What was measured, such as "time to first token".
        unit: Of the values.
        baseline: Arm drawn in grey.
        counted: What the values are, if not of requests.
        caption: Condition; the n of each arm stands in the legend.
    """
    known = values.dropna(subset=["value"])
    arms = list(dict.fromkeys(values["arm"]))
    palette = colours(arms, baseline)
    with canvas(height_in=3.3, title=title, caption=caption) as (figure, (axes,)):
        for arm in arms:
            column = known.loc[known["arm"] == arm, "value"].astype(float)
            label = f"{arm} (n = {len(column)})"
            if column.empty:
                axes.plot([], [], color=palette[arm], label=label)
                continue
            axes.ecdf(column, color=palette[arm], lw=2, label=label)
            axes.plot(column.median(), 0.5, "o", color=palette[arm], ms=6, mec="white", mew=1.2, zorder=5)
        axes.set_ylim(0, 1.02)
        _scale_latencies(axes, known["value"])
        axes.yaxis.set_major_formatter(FuncFormatter(percent))
        axes.set_ylabel(f"share of {counted}")
        axes.set_xlabel(f"{quantity} [{unit}]")
        legend_above(axes, columns=4)
    return figure


def latency_strip(
    values: pd.DataFrame,
    *,
    title: str,
    quantity: str,
    unit: str = "s",
    baseline: str | None = None,
    caption: str = "",
) -> Figure:
    """Return, by arm, every request as a dot and the median as a line; for arms of few requests.

    Args:
        values: Columns ``arm`` and ``value``, one row per request; absent values are left out.
        title: The finding.
        quantity: What was measured.
        unit: Of the values.
        baseline: Arm drawn in grey.
        caption: Condition; the n of each arm stands at its name.
    """
    known = values.dropna(subset=["value"])
    arms = list(dict.fromkeys(values["arm"]))
    with canvas(height_in=0.95 + 0.55 * len(arms), title=title, caption=caption) as (figure, (axes,)):
        # Dots are spread over the height of their row by their order, not at random: same data, same figure.
        for index, (arm, colour) in enumerate(colours(arms, baseline).items()):
            column = known.loc[known["arm"] == arm, "value"].astype(float)
            heights = [index + 0.44 * ((place * 0.618034) % 1 - 0.5) for place in range(len(column))]
            axes.plot(column, heights, "o", color=colour, alpha=0.55, ms=5, mew=0)
            if not column.empty:
                axes.plot([column.median()] * 2, [index - 0.34, index + 0.34], color=INK, lw=2)
        counts = known["arm"].value_counts()
        axes.set_yticks(range(len(arms)), [f"{arm}  (n = {counts.get(arm, 0)})" for arm in arms])
        axes.set_ylim(len(arms) - 0.45, -0.55)
        _scale_latencies(axes, known["value"])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{quantity} [{unit}]   (line: median)")
    return figure


def _scale_latencies(axes: Axes, values: pd.Series) -> None:
    """Let a linear axis begin at 0; take a logarithmic one where values span much."""
    if _spans_little(values):
        axes.set_xlim(left=0)
    else:
        axes.set_xscale("log")


def _spans_little(values: pd.Series) -> bool:
    """Return whether values fit a linear axis: less than a factor of 30 between least and most."""
    return bool(values.empty or values.min() <= 0 or values.max() / values.min() < 30)


def _set_ratio_ticks(figure: Figure, axes: Axes, reach: float) -> None:
    """Put ticks around 1, as fine as there is room for their labels: long names of rows leave little."""
    for steps in _RATIO_STEPS:
        if reach > steps[-1] * 1.6 and steps != _RATIO_STEPS[-1]:
            continue
        inside = [step for step in steps if step <= reach]
        below = [round(1 / step, 5 - math.ceil(math.log10(1 / step))) for step in reversed(inside)]
        axes.xaxis.set_major_locator(FixedLocator([*below, 1.0, *inside]))
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        if all(left.x1 < right.x0 for left, right in pairwise(boxes)):
            return
    axes.xaxis.set_major_locator(FixedLocator([1.0]))


#: Ticks above 1, from fine to coarse; those below are their reciprocals.
_RATIO_STEPS = (
    (1.1, 1.25),
    (1.25, 1.5, 2.0),
    (1.5, 2.0),
    (2.0, 4.0, 8.0),
    (2.0, 8.0),
    (10.0, 100.0, 1000.0, 10000.0),
    (100.0, 10000.0),
    (10000.0,),
)
