"""Figures of one setting that is turned: lines with intervals, and shares that add up to one."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from ollamalab.plots.style import BASELINE, MUTED, canvas, colours, ink_on, legend_above, percent, shades


def sweep_lines(
    points: pd.DataFrame,
    *,
    title: str,
    setting: str,
    quantity: str,
    baseline: tuple[str, float] | None = None,
    is_linear: bool = False,
    caption: str = "",
) -> Figure:
    """Return a quantity against a setting, with intervals.

    Args:
        points: Columns ``x`` (positive), ``value``, ``low``, ``high`` and, for several lines, ``series``;
            a point without interval is drawn without whisker.
        title: The finding.
        setting: What was turned, such as "parallel slots".
        quantity: What was measured, with its unit, such as "output [tokens/s]".
        baseline: Name and value of something to compare with, drawn as a dashed line.
        is_linear: Whether the setting is counted, such as turns; else it is doubled, such as slots.
        caption: n per point, kind of interval, condition.
    """
    if "series" not in points:
        points = points.assign(series="")
    series = list(dict.fromkeys(points["series"]))
    ticks = sorted(set(points["x"]))
    with canvas(height_in=3.2, title=title, caption=caption) as (figure, (axes,)):
        if baseline is not None:
            axes.axhline(baseline[1], color=BASELINE, lw=1.2, ls=(0, (4, 2)), label=baseline[0])
        for name, colour in colours(series).items():
            line = points[points["series"] == name].sort_values("x")
            axes.plot(
                line["x"], line["value"], "o-", color=colour, lw=2, ms=6, mec="white", label=name or None
            )
            axes.vlines(line["x"], line["low"], line["high"], color=colour, lw=2, alpha=0.6)
        if not is_linear:
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        most = points[["value", "high"]].max().max()
        axes.set_ylim(0, 1.08 * most if most > 0 else 1.0)
        axes.set_xlabel(setting)
        axes.set_ylabel(quantity, color=MUTED)
        if len(series) > 1 or baseline is not None:
            legend_above(axes)
        if points.empty:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
    return figure


def concurrency_bars(shares: pd.DataFrame, *, title: str, setting: str, caption: str = "") -> Figure:
    """Return how many sequences decoded at the same time, as shares of the time, one bar per setting.

    Args:
        shares: Index the setting (such as slots), one column per number of sequences, ascending; each
            row adds up to 1.
        title: The finding.
        setting: What the rows are, such as "parallel slots".
        caption: What the time is counted over, n.
    """
    palette = shades(len(shares.columns))
    with canvas(height_in=1.3 + 0.42 * len(shares), title=title, caption=caption) as (figure, (axes,)):
        left = pd.Series(0.0, index=shares.index)
        for colour, (count, column) in zip(palette, shares.items(), strict=True):
            share = column.fillna(0.0).astype(float)
            bars = axes.barh(
                range(len(shares)),
                share,
                left=left,
                height=0.66,
                color=colour,
                edgecolor="white",
                linewidth=0.8,
                label=str(count),
            )
            labels = [percent(part) if part >= 0.06 else "" for part in share]
            axes.bar_label(
                bars, labels, label_type="center", fontsize=8.5, color=ink_on(colour), gid="on-colour"
            )
            left += share
        axes.set_yticks(range(len(shares)), [str(value) for value in shares.index])
        axes.set_ylabel(setting, color=MUTED)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
        axes.grid(visible=False)
        axes.set_xlabel("share of the time, by sequences decoding at once")
        legend_above(axes, columns=12)
    return figure
