"""Figures on the clock of the tokens: tokens as they arrive above what was sampled meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ollamalab.plots.style import BAND, INK, MUTED, PALETTE, canvas, colours, legend_above, percent

_WASHES = ("#f7f8fa", BAND)  # of spans, in turn


def token_clock(
    tokens: pd.DataFrame,
    panels: Mapping[str, pd.DataFrame],
    *,
    title: str,
    spans: pd.DataFrame,
    caption: str = "",
) -> Figure:
    """Return tokens as they arrived, with samples below, all over the same seconds.

    Args:
        tokens: Columns ``at_s`` and ``value``: how many had arrived by then.
        panels: Axis label, with the unit, to samples: columns ``at_s`` and ``value``.
        title: The finding.
        spans: Columns ``name``, ``start_s``, ``end_s``: stretches that are shaded in turn and named. The
            first begins the axis of time.
        caption: Condition, sampling interval.
    """
    origin_s = float(spans["start_s"].min()) if len(spans) else 0.0
    heights = [1.5, *([0.9] * len(panels))]
    with canvas(height_in=sum(heights) + 1.2, title=title, caption=caption, rows=heights) as (figure, axes):
        for part in axes:
            _shade(part, spans, origin_s)
        steps = tokens.assign(at_s=tokens["at_s"] - origin_s)
        axes[0].step(steps["at_s"], steps["value"], where="post", color=PALETTE[0], lw=2)
        axes[0].plot(steps["at_s"], [0.0] * len(steps), "|", color=PALETTE[0], ms=6, mew=0.6, alpha=0.6)
        axes[0].set_ylabel("tokens,\nas they arrive")
        for part, (label, data) in zip(axes[1:], panels.items(), strict=True):
            part.plot(data["at_s"] - origin_s, data["value"], ".-", color=INK, lw=1.3, ms=4)
            part.set_ylabel(label)
        for part in axes:
            part.set_ylim(0, max(1e-9, part.dataLim.y1) * 1.12)
            part.yaxis.set_major_locator(MaxNLocator(4))
        _name(axes[0], spans, origin_s)
        if len(spans):
            axes[-1].set_xlim(0, float(spans["end_s"].max()) - origin_s)
        axes[-1].set_xlabel("seconds on the clock of the tokens")
    return figure


def _shade(axes: Axes, spans: pd.DataFrame, origin_s: float) -> None:
    for place, (start_s, end_s) in enumerate(zip(spans["start_s"], spans["end_s"], strict=True)):
        axes.axvspan(start_s - origin_s, end_s - origin_s, color=_WASHES[place % 2], lw=0, zorder=0)


def _name(axes: Axes, spans: pd.DataFrame, origin_s: float) -> None:
    """Write the names of spans above them, on two lines in turn so that short ones find room."""
    for place, (name, start_s, end_s) in enumerate(
        zip(spans["name"], spans["start_s"], spans["end_s"], strict=True)
    ):
        axes.annotate(
            str(name),
            ((start_s + end_s) / 2 - origin_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3 + 11 * (place % 2)),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=MUTED,
        )


def usage_scatter(
    points: pd.DataFrame, *, title: str, resource: str, quantity: str, caption: str = ""
) -> Figure:
    """Return one dot per visit: what came out over how much of a resource was used.

    Args:
        points: Columns ``series`` (its colour), ``x`` (0 to 1) and ``y``.
        title: The finding.
        resource: What x is a share of, such as "CPU".
        quantity: What y is, with its unit.
        caption: n, condition.
    """
    names: Sequence[str] = list(dict.fromkeys(points["series"]))
    with canvas(height_in=3.4, title=title, caption=caption) as (figure, (axes,)):
        for name, colour in colours(names).items():
            dots = points[points["series"] == name]
            axes.plot(dots["x"], dots["y"], "o", color=colour, ms=7, mec="white", alpha=0.85, label=name)
        axes.set_xlim(0, max(1.0, points["x"].max() if len(points) else 0.0) * 1.03)
        axes.set_ylim(0, (points["y"].max() if len(points) else 1.0) * 1.12)
        axes.xaxis.set_major_formatter(FuncFormatter(percent))
        axes.set_xlabel(f"{resource} in use, share of the visit")
        axes.set_ylabel(quantity)
        if len(points):
            legend_above(axes)
        else:
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color=MUTED)
            axes.set_yticks([])
    return figure
