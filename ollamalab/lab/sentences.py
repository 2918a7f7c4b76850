"""Findings in words: one sentence each, with their numbers, and titles of figures that say the finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from ollamalab.compare import LEAST_PAIRS, Comparison
from ollamalab.lab.cold import launch_spread
from ollamalab.lab.trials import Statistic, Trials
from ollamalab.lab.watching import Residency
from ollamalab.metrics import completed_rps

#: A century: servers write "for ever" as a date that is farther away.
_FOREVER_S = 100 * 365.25 * 86400


class Said(str):
    """A sentence that a notebook shows as formatted text."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)


def plural(count: int, noun: str) -> str:
    """Return "1 slot", "4 slots"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(counts: Mapping[str, int | None]) -> str:
    """Return "1 slot: 1, 4 slots: 4"; "n/a" for what is not known."""
    return ", ".join(f"{name}: {'n/a' if count is None else count}" for name, count in counts.items())


def result_text(comparison: Comparison) -> str:
    """Return "0.35× (95 % interval 0.31–0.40, 8 pairs), faster", or why there is no verdict.

    Pairs that were lost are told; what the pairs cannot carry is "n/a". Without any pair only the reason is
    left, such as "not run: ...".
    """
    if not comparison.pairs + comparison.lost_pairs:
        return comparison.reason
    pairs = plural(comparison.pairs, "pair")
    if comparison.lost_pairs:
        pairs += f", {comparison.lost_pairs} lost"
    word = verdict_word(comparison)
    if comparison.estimate is None or comparison.low is None or comparison.high is None:
        return f"n/a ({pairs}), {word}"
    interval = f"95 % interval {comparison.low:.2f}–{comparison.high:.2f}"
    return f"{comparison.estimate:.2f}× ({interval}, {pairs}), {word}"


def verdict_word(comparison: Comparison) -> str:
    """Return the verdict in words, or that there is none and why."""
    return comparison.verdict.text if comparison.verdict else f"no verdict ({comparison.reason})"


def preload_title(comparison: Comparison) -> str:
    """Return the title of the figure of first requests."""
    if comparison.estimate is None or comparison.high is None or comparison.high >= 1:
        return "The first request, cold and preloaded"
    return f"A preload cuts the first request to {comparison.estimate:.0%} of a cold one"


def preload_sentence(comparison: Comparison) -> str:
    """Return what a preload saves."""
    return f"First request, preloaded against cold: {result_text(comparison)}."


def tuning_sentence(comparison: Comparison) -> str:
    """Return what the guide's settings do to a warm request."""
    return f"Warm request, the guide's settings against the defaults: {result_text(comparison)}."


def ping_sentence(pinged: Residency, kept: Residency, default_s: float) -> str:
    """Return what pings did for a model's stay in memory.

    Args:
        pinged: With a keep-alive far shorter than the time between pings.
        kept: With one that never ends.
        default_s: The server's own keep-alive.
    """
    stay = "for ever" if default_s > _FOREVER_S else f"for {default_s:.0f} s"
    return (
        f"a plain request keeps the model {stay}; pinged at 72 times its keep-alive it was loaded "
        f"{pinged.loaded_ratio:.0%} of the time and {pinged.cold_pings} of {plural(pinged.pings, 'ping')} "
        f"found it cold; with keep_alive −1, {kept.cold_pings} of {kept.pings} did (the first always does)"
    )


def spread_note(trials: Trials, statistic: Statistic) -> str:
    """Return how much the arms differ from launch to launch, for a table's caption."""
    spreads = {arm: launch_spread(trials, arm, statistic) for arm in trials.arms}
    texts = [f"{arm} {'n/a' if spread is None else f'{spread:.0%}'}" for arm, spread in spreads.items()]
    return f" Spread from launch to launch, the requests' own noise included: {', '.join(texts)}."


def carry_over_note(trials: Trials, statistic: Statistic, *, arm: str, baseline: str) -> str:
    """Return whether visits depend on the visit before, for a table's caption.

    Told from the middle of blocks ABBA and BAAB; with three or more arms no visit follows its own arm.
    """
    found = trials.carry_over(statistic, arm=arm, baseline=baseline)
    if found.is_shown is None:
        blocks = f"{found.own.n} of the {LEAST_PAIRS} blocks of four visits that it takes"
        return f" Carry-over from visit to visit: too few blocks to tell ({blocks})."
    if found.is_shown:
        return " Carry-over shows: a visit depends on the one before, so a washout visit is due in between."
    return f" No carry-over from visit to visit was shown ({found.own.n} blocks)."


def offered_sentence(trials: Trials, arm: str, rate_rps: float) -> str:
    """Return whether an arm kept up with what was offered: only then do its responses not grow with n."""
    done = trials.per_visit(arm, completed_rps)
    if not done:
        return f"Of {rate_rps:g} requests/s offered, {arm} completed none."
    rate = fmean(done)
    if rate < rate_rps:
        end = "overloaded, so a longer visit would show longer responses"
    else:
        end = "it kept up, so no response waited for long"
    return f"Of {rate_rps:g} requests/s offered, {arm} completed {rate:.1f}: {end}."


def stages_title(stages: pd.DataFrame) -> str:
    """Return which stage dominates the first row of ``stage_medians``."""
    first = stages.iloc[0].dropna() if len(stages) else stages
    if first.empty:
        return "Stages of a cold start"
    share = first.max() / first.sum()
    return f"{str(first.idxmax()).capitalize()} is {share:.0%} of a cold start ({stages.index[0]})"


def knee_title(contrasts: Sequence[Comparison]) -> str:
    """Return the largest gain in throughput that is shown, with its interval.

    Not that it is the highest: the arms are compared with the baseline, not with each other.

    Args:
        contrasts: Against the baseline; those of throughput count.
    """
    rates = [item for item in contrasts if item.metric.better == "higher"]
    if rates and not any(item.pairs + item.lost_pairs for item in rates):
        return "More slots were not run here"
    gains = {item: item.estimate for item in rates if item.estimate and item.low and item.low > 1}
    if not gains:
        return "No gain in throughput from more slots was shown here"
    best = max(gains, key=gains.__getitem__)
    interval = f"95 % interval {best.low:.2f}–{best.high:.2f}"
    return f"{best.arm} give {gains[best]:.2f}× the throughput of {best.baseline} ({interval})"


def decoding_title(shares: pd.DataFrame) -> str:
    """Return how many sequences decoded at once in the arm where it was most, of ``concurrency``."""
    most = {}
    for arm, row in shares.iterrows():
        most[str(arm)] = max(count for count, share in row.items() if share > 0)
    arm = max(most, key=most.__getitem__, default="")
    if not arm or most[arm] < 2:
        return "No two sequences decoded at once"
    return f"With {arm}, up to {most[arm]} sequences decode at once"


def slots_sentence(comparison: Comparison) -> str:
    """Return what more slots do to the response time."""
    return f"Mean response, {comparison.arm} against {comparison.baseline}: {result_text(comparison)}."
