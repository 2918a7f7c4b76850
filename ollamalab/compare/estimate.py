"""Estimate and exact interval of a shift, from paired differences, free of any distribution.

The *Walsh averages* of n differences are the means of every two of them, each with itself included:
n(n + 1)/2 values. Their median is the Hodges-Lehmann estimate; the exact distribution of Wilcoxon's
signed-rank statistic says which two of them bound the interval. Source: Hollander, Wolfe and Chicken,
Nonparametric Statistical Methods, sections 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The centre of n paired differences; None where n cannot carry the figure.

    Attributes:
        n: Differences.
        centre: Hodges-Lehmann estimate; from 1 on.
        low: Lower end of the exact 95 % interval; from 6 on.
        high: Upper end.
        low90: Lower end of the exact 90 % interval; from 5 on.
        high90: Upper end.
        p_value: Two-sided, of "the centre is 0"; it is at most 5 % exactly when the 95 % interval
            leaves 0 out.
        detectable: Shift that a test of this size finds in four of five cases: 2.8 sd/sqrt(n).
    """

    n: int
    centre: float | None = None
    low: float | None = None
    high: float | None = None
    low90: float | None = None
    high90: float | None = None
    p_value: float | None = None
    detectable: float | None = None


def hodges_lehmann(differences: Sequence[float]) -> Estimate:
    """Return estimate, intervals and p-value of the centre of symmetric differences.

    Ties and zeros make the intervals and the p-value conservative, never too bold.

    Args:
        differences: Finite, in any order.
    """
    n = len(differences)
    if n == 0:
        return Estimate(n=0)
    values = np.sort(np.asarray(differences, dtype=float))
    rows, columns = np.triu_indices(n)
    walsh = np.sort((values[rows] + values[columns]) / 2)
    low, high = _interval(walsh, n, 0.05)
    low90, high90 = _interval(walsh, n, 0.10)
    # What speaks against the majority, zeros included, is the smaller signed-rank statistic.
    against = len(walsh) - max(int((walsh > 0).sum()), int((walsh < 0).sum()))
    return Estimate(
        n=n,
        centre=float(np.median(walsh)),
        low=low,
        high=high,
        low90=low90,
        high90=high90,
        p_value=min(1.0, 2 * float(signed_rank_cdf(n)[against])),
        detectable=2.8 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None,
    )


def _interval(walsh: NDArray[np.float64], n: int, alpha: float) -> tuple[float | None, float | None]:
    outside = int(np.searchsorted(signed_rank_cdf(n), alpha / 2, side="right"))
    if outside == 0:
        return None, None
    return float(walsh[outside - 1]), float(walsh[-outside])


@lru_cache(maxsize=256)
def signed_rank_cdf(n: int) -> NDArray[np.float64]:
    """Return P(T <= t) for t = 0 ... n(n + 1)/2, T being Wilcoxon's signed-rank statistic under no effect.

    Exact: rank k is added with probability one half, for one k after the other.

    Args:
        n: Differences, at least 1.
    """
    probabilities = np.ones(1)
    for rank in range(1, n + 1):
        gap = np.zeros(rank)
        probabilities = (np.concatenate((probabilities, gap)) + np.concatenate((gap, probabilities))) / 2
    cdf: NDArray[np.float64] = np.cumsum(probabilities)
    cdf.setflags(write=False)  # shared by all callers
    return cdf
