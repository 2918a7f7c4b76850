"""Draws the figures: each takes saved data, says its finding in the title, and is closed when returned."""

from ollamalab.plots.clock import token_clock, usage_scatter
from ollamalab.plots.comparisons import latency_ecdf, latency_strip, ratio_forest
from ollamalab.plots.outages import ends_over_time
from ollamalab.plots.outcomes import outcome_bars
from ollamalab.plots.stages import stage_bars
from ollamalab.plots.sweeps import concurrency_bars, sweep_lines
from ollamalab.plots.timelines import slot_timeline
from ollamalab.plots.tokens import token_bars
from ollamalab.plots.trades import trade_off

__all__ = [
    "concurrency_bars",
    "ends_over_time",
    "latency_ecdf",
    "latency_strip",
    "outcome_bars",
    "ratio_forest",
    "slot_timeline",
    "stage_bars",
    "sweep_lines",
    "token_bars",
    "token_clock",
    "trade_off",
    "usage_scatter",
]
