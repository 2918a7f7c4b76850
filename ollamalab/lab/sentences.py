"""Findings in words: one sentence each, with their numbers, and titles of figures that say the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ollamalab.compare import Comparison
from ollamalab.lab.watching import Residency


def plural(count: int, noun: str) -> str:
    """Return "1 slot", "4 slots"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(counts: Mapping[str, int | None]) -> str:
    """Return "1 slot: 1, 4 slots: 4"; "n/a" for what is not known."""
    return ", ".join(f"{name}: {'n/a' if count is None else count}" for name, count in counts.items())


def ratio_text(comparison: Comparison) -> str:
    """Return "0.35× (95 % interval 0.31–0.40, 8 pairs)"; "n/a" where the pairs cannot carry it."""
    if comparison.estimate is None or comparison.low is None or comparison.high is None:
        return f"n/a with {plural(comparison.pairs, 'pair')}"
    return (
        f"{comparison.estimate:.2f}× (95 % interval {comparison.low:.2f}–{comparison.high:.2f}, "
        f"{plural(comparison.pairs, 'pair')})"
    )


def verdict_text(comparison: Comparison) -> str:
    """Return the verdict in words, or why there is none."""
    return comparison.verdict.text if comparison.verdict else comparison.reason


def preload_title(comparison: Comparison) -> str:
    """Return the title of the figure of first requests."""
    if comparison.estimate is None:
        return "The first request, cold and preloaded"
    return f"A preload cuts the first request to {comparison.estimate:.0%} of a cold one"


def preload_sentence(comparison: Comparison) -> str:
    """Return what a preload saves."""
    return f"A preloaded first request takes {ratio_text(comparison)} of the time of a cold one."


def tuning_sentence(comparison: Comparison) -> str:
    """Return what the guide's settings do to a warm request."""
    return (
        f"The guide's settings make a warm request {ratio_text(comparison)} of what it was with the "
        f"defaults: {verdict_text(comparison)}."
    )


def ping_sentence(pinged: Residency, kept: Residency, default_s: float) -> str:
    """Return what pings did for a model's stay in memory.

    Args:
        pinged: With a keep-alive far shorter than the time between pings.
        kept: With one that never ends.
        default_s: The server's own keep-alive.
    """
    return (
        f"a plain request keeps the model {default_s:.0f} s; pinged at 72 times its keep-alive it was loaded "
        f"{pinged.loaded_ratio:.0%} of the time and {pinged.cold_pings} of {plural(pinged.pings, 'ping')} "
        f"found it cold; with keep_alive −1, {kept.cold_pings} of {kept.pings} did, the first"
    )


def stages_title(stages: pd.DataFrame) -> str:
    """Return which stage dominates the first row of a table of stages."""
    first = stages.iloc[0].dropna()
    share = first.max() / first.sum()
    return f"{str(first.idxmax()).capitalize()} is {share:.0%} of a cold start ({stages.index[0]})"


def knee_title(contrasts: Sequence[Comparison]) -> str:
    """Return where throughput stops rising.

    Args:
        contrasts: Against the baseline, arms ascending; those of throughput count.
    """
    rates = [item for item in contrasts if item.metric.better == "higher" and item.estimate is not None]
    gains = [item for item in rates if item.low is not None and item.low > 1]
    if not gains:
        return "More slots do not raise throughput here"
    best = max(gains, key=lambda item: item.estimate or 0.0)
    return f"Throughput is highest at {best.arm}: {best.estimate:.2f}× that of {best.baseline}"


def decoding_title(shares: pd.DataFrame) -> str:
    """Return how many sequences decoded at once with the most slots."""
    row = shares.iloc[-1]
    at_once = int(max(count for count, share in row.items() if share > 0))
    return f"With {shares.index[-1]}, up to {at_once} sequences decode at once"


def slots_sentence(comparison: Comparison) -> str:
    """Return what more slots do to the response time."""
    return (
        f"{comparison.arm} instead of {comparison.baseline} make the mean response {ratio_text(comparison)}: "
        f"{verdict_text(comparison)}."
    )
