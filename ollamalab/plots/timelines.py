"""Figures over time, on the clock of the tokens: who decodes when, and what the machine does."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ollamalab.plots.style import BASELINE, INK, MUTED, PALETTE, canvas, legend_above, percent

_WAITING = "#cfd4dc"


def slot_timeline(
    requests: pd.DataFrame,
    *,
    title: str,
    cpu: pd.DataFrame | None = None,
    slots: int | None = None,
    caption: str = "",
) -> Figure:
    """Return every request as a bar - waiting, then decoding - and below it the CPU share.

    Args:
        requests: Columns ``intended_s``, ``first_token_s``, ``last_token_s`` of ``Experiment.records``; a
            request without a token is left out.
        title: The finding.
        cpu: Columns ``at_s`` and ``value`` (0 to 1), on the same clock; None leaves the panel out.
        slots: Configured slots, drawn as a line over the number that decode at once.
        caption: n, condition.
    """
    known = requests.dropna(subset=["first_token_s", "last_token_s"]).sort_values("intended_s")
    origin_s = float(known["intended_s"].min()) if len(known) else 0.0
    starts = (known["intended_s"] - origin_s).astype(float)
    firsts = (known["first_token_s"] - origin_s).astype(float)
    lasts = (known["last_token_s"] - origin_s).astype(float)
    lanes = assign_lanes(list(zip(starts, lasts, strict=True)))
    heights = [max(1.2, 0.16 * (max(lanes, default=0) + 1)), 0.9, *([0.8] if cpu is not None else [])]
    with canvas(height_in=sum(heights) + 1.1, title=title, caption=caption, rows=heights) as (figure, axes):
        axes[0].barh(lanes, firsts - starts, left=starts, height=0.72, color=_WAITING)
        axes[0].barh(lanes, lasts - firsts, left=firsts, height=0.72, color=PALETTE[0])
        axes[0].set_yticks([])
        axes[0].set_ylim(max(lanes, default=0) + 0.7, -0.7)
        axes[0].set_ylabel("requests")
        handles = [
            Patch(color=_WAITING, label="waiting and prefill"),
            Patch(color=PALETTE[0], label="decoding"),
        ]
        legend_above(axes[0], handles=handles)
        moments, counts = decoding_at_once(list(zip(firsts, lasts, strict=True)))
        axes[1].fill_between(moments, counts, step="post", color=PALETTE[0], alpha=0.85, lw=0)
        if slots is not None:
            axes[1].axhline(slots, color=BASELINE, lw=1.2, ls=(0, (5, 3)))
            axes[1].annotate(
                "1 slot" if slots == 1 else f"{slots} slots", (1.0, slots),
                xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", color=MUTED, fontsize=8.5,
            )  # fmt: skip
        axes[1].set_ylim(0, max([1, slots or 0, *counts]) * 1.12)
        axes[1].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[1].set_ylabel("decoding\nat once")
        if cpu is not None:
            axes[2].plot(cpu["at_s"] - origin_s, cpu["value"], color=INK, lw=1.4)
            axes[2].set_ylim(0, 1.05)
            axes[2].yaxis.set_major_formatter(FuncFormatter(percent))
            axes[2].set_ylabel("CPU")
        axes[-1].set_xlim(0, float(lasts.max()) if len(lasts) else 1.0)
        axes[-1].set_xlabel("seconds since the first planned send")
    return figure


def assign_lanes(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return for each span, in order of start, the lowest lane that is free then."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes = []
    for start, end in spans:
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (end, lane))
        lanes.append(lane)
    return lanes


def decoding_at_once(spans: Sequence[tuple[float, float]]) -> tuple[list[float], list[int]]:
    """Return the moments at which the number of open spans changes, and the number from then on."""
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    moments, counts, count = [0.0], [0], 0
    for moment, change in changes:
        count += change
        moments.append(moment)
        counts.append(count)
    return moments, counts
