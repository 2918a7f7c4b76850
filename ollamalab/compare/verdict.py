"""One arm against the baseline: numbers and the words that they allow.

*Ratio* metrics (times, rates) are compared as arm / baseline, on the log scale, with 1 for "the same";
*difference* metrics (success and other proportions) as arm - baseline, with 0 for "the same".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from ollamalab.compare.design import Visit, pairs
from ollamalab.compare.estimate import hodges_lehmann

#: Fewer pairs get numbers but no verdict.
LEAST_PAIRS = 8

#: A difference is named when its p-value, corrected where there are many tests, is at most this.
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is compared.

    Attributes:
        name: Identifier with its unit, such as "ttft_s", "output_tokens_per_s", "success_ratio".
        better: Which way is good.
        unit: As shown; "s" makes lower "faster" and higher "slower".
        kind: Whether arms are compared by ratio or by difference.
        margin: What counts as equivalent: 0.1 is 1/1.1 to 1.1, or -0.1 to 0.1 for a difference.
    """

    name: str
    better: Literal["lower", "higher"]
    unit: str = ""
    kind: Literal["ratio", "difference"] = "ratio"
    margin: float = 0.10

    @property
    def is_duration(self) -> bool:
        """Whether lower is "faster"."""
        return self.unit == "s" and self.better == "lower"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a comparison shows.

    Attributes:
        text: In words: "faster", "equivalent within 10 %", "faster, by less than 10 %",
            "no difference shown (-2.1…+8.0 %)".
        direction: Which way the arm differs; None where no difference is shown.
        is_better: Whether that way is good; None where no difference is shown.
        is_equivalent: Whether any difference is less than the margin.
    """

    text: str
    direction: Literal["lower", "higher"] | None
    is_better: bool | None
    is_equivalent: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One metric of one arm against the baseline; None where the pairs cannot carry the figure.

    Attributes:
        metric: What is compared.
        arm: Name of the arm.
        baseline: Name of the baseline.
        arm_value: Mean of the arm's visits, over the pairs that count.
        baseline_value: Mean of the baseline's visits, over the pairs that count.
        pairs: Pairs that count.
        lost_pairs: Pairs that do not, because a visit gave no value (or none that has a ratio).
        estimate: Hodges-Lehmann estimate of arm / baseline, or of arm - baseline.
        low: Lower end of its exact 95 % interval.
        high: Upper end.
        low90: Lower end of its exact 90 % interval, for equivalence.
        high90: Upper end.
        p_value: Two-sided, signed-rank.
        adjusted_p_value: After the correction over a run's tests; None before it.
        detectable: Ratio (above 1) or difference that so many pairs find in four of five cases.
        is_primary: Whether it was declared beforehand to settle a question.
        verdict: None for a secondary comparison and for too few pairs.
        reason: Why there is no verdict; "" if there is one.
    """

    metric: Metric
    arm: str
    baseline: str
    arm_value: float | None
    baseline_value: float | None
    pairs: int
    lost_pairs: int
    estimate: float | None
    low: float | None
    high: float | None
    low90: float | None
    high90: float | None
    p_value: float | None
    detectable: float | None
    is_primary: bool
    verdict: Verdict | None
    reason: str
    adjusted_p_value: float | None = None

    @property
    def effect(self) -> tuple[float, float | None, float | None] | None:
        """Estimate and both ends of its 95 % interval; None without an estimate."""
        return None if self.estimate is None else (self.estimate, self.low, self.high)

    @property
    def outcome(self) -> str:
        """The verdict in words, or why there is none."""
        return self.verdict.text if self.verdict else self.reason


def compare_arms(
    values: Mapping[Visit, float | None], metric: Metric, *, arm: str, baseline: str, is_primary: bool = True
) -> Comparison:
    """Return one arm against the baseline.

    Args:
        values: One per visit, from ``visit_values``; other arms' visits are ignored.
        metric: What the values are.
        arm: Name of the arm.
        baseline: Name of the baseline.
        is_primary: False for a secondary row, which gets its interval but no verdict.
    """
    every = pairs(values, arm=arm, baseline=baseline)
    used = [
        (own, other)
        for own, other in every
        if own is not None and other is not None and _is_comparable(metric, own, other)
    ]
    if metric.kind == "ratio":
        found = hodges_lehmann([math.log(own) - math.log(other) for own, other in used])
    else:
        found = hodges_lehmann([own - other for own, other in used])

    def on_scale(value: float | None) -> float | None:
        return math.exp(value) if value is not None and metric.kind == "ratio" else value

    reason = "" if is_primary else "secondary: interval only"
    if is_primary and len(used) < LEAST_PAIRS:
        reason = f"n/a: {len(used)} pairs, at least {LEAST_PAIRS} needed"
    comparison = Comparison(
        metric=metric,
        arm=arm,
        baseline=baseline,
        arm_value=fmean(own for own, _ in used) if used else None,
        baseline_value=fmean(other for _, other in used) if used else None,
        pairs=len(used),
        lost_pairs=len(every) - len(used),
        estimate=on_scale(found.centre),
        low=on_scale(found.low),
        high=on_scale(found.high),
        low90=on_scale(found.low90),
        high90=on_scale(found.high90),
        p_value=found.p_value,
        detectable=on_scale(found.detectable),
        is_primary=is_primary,
        verdict=None,
        reason=reason,
    )
    return comparison if reason else replace(comparison, verdict=judge(comparison, found.p_value))


def judge(comparison: Comparison, p_value: float | None) -> Verdict | None:
    """Return what the numbers of a comparison show.

    Args:
        comparison: With its intervals.
        p_value: The one to go by: its own, or the one corrected for many tests.

    Returns:
        None without intervals or p-value.
    """
    metric, low, high = comparison.metric, comparison.low, comparison.high
    low90, high90 = comparison.low90, comparison.high90
    if low is None or high is None or low90 is None or high90 is None or p_value is None:
        return None
    bottom, top = (1 / (1 + metric.margin), 1 + metric.margin)
    same, unit = 1.0, "%"
    if metric.kind == "difference":
        bottom, top, same, unit = -metric.margin, metric.margin, 0.0, "points"
    is_equivalent = bottom <= low90 and high90 <= top
    within = f"{100 * metric.margin:g} {unit}"
    if p_value > LEVEL:
        text = f"no difference shown ({_signed(low - same)}…{_signed(high - same)} {unit})"
        return Verdict(
            text=f"equivalent within {within}" if is_equivalent else text,
            direction=None,
            is_better=None,
            is_equivalent=is_equivalent,
        )
    # At most 5 % exactly when the 95 % interval leaves "the same" out, so both ends are on one side.
    direction: Literal["lower", "higher"] = "lower" if high < same else "higher"
    word = {"lower": "faster", "higher": "slower"}[direction] if metric.is_duration else direction
    return Verdict(
        text=f"{word}, by less than {within}" if is_equivalent else word,
        direction=direction,
        is_better=direction == metric.better,
        is_equivalent=is_equivalent,
    )


def _signed(change: float) -> str:
    """Return a change in hundredths with its sign, as precise as such a number deserves."""
    hundredths = 100 * change
    text = f"{abs(hundredths):.1f}" if abs(hundredths) < 10 else f"{abs(hundredths):.0f}"
    return f"{'−' if hundredths < 0 else '+'}{text}"


def _is_comparable(metric: Metric, own: float, other: float) -> bool:
    """Whether two values have a finite ratio or difference; nothing has a ratio to 0."""
    finite = math.isfinite(own) and math.isfinite(other)
    return finite and (metric.kind == "difference" or (own > 0 and other > 0))
