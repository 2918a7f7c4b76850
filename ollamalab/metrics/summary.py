"""Many values in a few: mean, percentiles that the sample can carry, shares with their interval.

A percentile needs enough *independent* values: as many as make the second-largest bound it with 99 %
confidence (``least_samples``). Dependent values count for less; *inflation* says by how much: n values
with inflation f carry what n / f independent ones would. Sources: the early-stopping rule of MLPerf's
load generator; Woodruff (1952) for intervals of percentiles of dependent samples; Wilson (1927).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

#: The percentiles of a Summary, as shares of the values at or below them.
PERCENTILES = (0.5, 0.9, 0.95, 0.99)

#: Two-sided 95 % of the normal distribution, in standard deviations.
_Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Mean and percentiles of n values; None where n cannot carry the figure."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    n: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """A proportion of counted things, with its 95 % Wilson interval.

    Attributes:
        count: How many had the property.
        of: How many there were.
        ratio: count / of, 0-1; None when there were none.
        low: Lower end of the interval; None when there were none.
        high: Upper end.
    """

    count: int
    of: int
    ratio: float | None
    low: float | None
    high: float | None


def summarise(values: Iterable[float | None], *, inflation: Mapping[float, float] | None = None) -> Summary:
    """Return mean and percentiles of the values that are present.

    Args:
        values: In any order; None is left out and not counted in n.
        inflation: Percentile share to the factor by which dependence inflates its variance; a
            percentile that is not named has 1.
    """
    present = sorted(value for value in values if value is not None)
    n = len(present)
    factors = inflation or {}
    p50, p90, p95, p99 = (
        percentile(present, share) if n / factors.get(share, 1.0) >= least_samples(share) else None
        for share in PERCENTILES
    )
    mean = math.fsum(present) / n if n else None
    return Summary(mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, n=n)


@lru_cache
def least_samples(share: float) -> int:
    """Return the fewest independent values from which this percentile may be shown.

    The smallest n with P(at most one of n lies above the percentile) <= 1 %: 11 for p50, 24 for p75,
    64 for p90, 130 for p95, 662 for p99, 6,636 for p99.9.

    Args:
        share: The percentile as a share, above 0 and below 1.
    """
    n = 2
    while share**n + n * share ** (n - 1) * (1 - share) > 0.01:
        n += 1
    return n


def percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile, interpolated between the two nearest values (NumPy's default).

    Args:
        values: At least one, in any order.
        share: 0-1.
    """
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    weight = position - below
    if weight == 0 or ordered[below] == ordered[above]:
        return ordered[below]
    # This form stays between its neighbours, where a + w(b - a) can round past b.
    return ordered[below] * (1 - weight) + ordered[above] * weight


def percentile_interval(
    values: Sequence[float], share: float, *, inflation: float = 1.0
) -> tuple[float, float] | None:
    """Return the 95 % interval of a percentile from order statistics, free of any distribution.

    Each end is the value whose rank the binomial distribution leaves outside with at most 2.5 %.

    Args:
        values: In any order.
        share: The percentile, 0-1.
        inflation: Factor by which dependence inflates the variance; ranks are taken for n / inflation
            values and carried over to all of them.

    Returns:
        Lower and upper value, or None when the sample has no value far enough out on either side.
    """
    effective = math.floor(len(values) / inflation)
    ranks = _ranks_around(effective, share, tail=0.025)
    if ranks is None:
        return None
    ordered = sorted(values)
    scale = len(ordered) / effective
    low = max(1, math.floor(ranks[0] * scale))
    high = min(len(ordered), math.ceil(ranks[1] * scale))
    return ordered[low - 1], ordered[high - 1]


def _ranks_around(n: int, share: float, *, tail: float) -> tuple[int, int] | None:
    """Return 1-based ranks (l, u): P(B < l) <= tail and P(B >= u) <= tail for B ~ Binomial(n, share)."""
    if n < 1 or not 0 < share < 1:
        return None
    sd = math.sqrt(n * share * (1 - share))
    k = max(0, math.floor(n * share - 12 * sd))  # below lies less than 1e-30
    probability = math.exp(
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(share)
        + (n - k) * math.log1p(-share)
    )
    below = 0.0  # P(B < k)
    low: int | None = None
    while k <= n:
        if below <= tail and k >= 1:
            low = k
        if 1 - below <= tail:
            return None if low is None else (low, k)
        below += probability
        probability *= (n - k) / (k + 1) * share / (1 - share)
        k += 1
    return None


def design_effect(groups: Sequence[Sequence[float]], share: float) -> float:
    """Return how much grouping inflates the variance of a percentile, at least 1.

    The variance of "share of values above the percentile" between groups, over what independent
    values would give. Gaps between tokens are such groups: those of one request, and those that one
    slow decode step made, go together.

    Args:
        groups: Values per group (for example gaps per request); empty groups are left out.
        share: The percentile, 0-1.

    Returns:
        The inflation; infinite with fewer than two groups, whose spread nobody can tell.
    """
    filled = [group for group in groups if group]
    if len(filled) < 2:
        return math.inf
    values = [value for group in filled for value in group]
    limit = percentile(values, share)
    above = [sum(value > limit for value in group) for group in filled]
    p = sum(above) / len(values)
    if p == 0:  # ties at the top: the percentile is the maximum, no group differs from another
        return 1.0
    squares = sum((k - len(group) * p) ** 2 for k, group in zip(above, filled, strict=True))
    between = squares * len(filled) / (len(filled) - 1) / len(values) ** 2
    return max(1.0, between / (p * (1 - p) / len(values)))


def wilson_share(count: int, of: int) -> Share:
    """Return a proportion with its 95 % Wilson score interval, which never leaves 0-1."""
    if of == 0:
        return Share(count=count, of=of, ratio=None, low=None, high=None)
    ratio = count / of
    z2 = _Z95**2
    centre = (ratio + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z95 / (1 + z2 / of) * math.sqrt(ratio * (1 - ratio) / of + z2 / (4 * of * of))
    low = 0.0 if count == 0 else centre - half
    high = 1.0 if count == of else centre + half
    return Share(count=count, of=of, ratio=ratio, low=low, high=high)
