"""What a queue must do: Lindley's recursion, load, growth past saturation, dependence near it.

With these a load generator is checked against arithmetic, and a percentile near saturation is held
back until there are enough requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ollamalab.metrics.summary import PERCENTILES

#: Offered load to the inflation of p50 and of p99 in an M/D/1 queue, by simulation (METHOD).
_MD1_INFLATION = ((0.0, 1.0, 1.0), (0.5, 2.0, 6.0), (0.7, 6.0, 16.0), (0.8, 14.0, 42.0), (0.9, 57.0, 162.0))


def lindley_response_s(planned_s: Sequence[float], service_s: Sequence[float]) -> list[float]:
    """Return the response time of each request to one slot that serves in order of arrival.

    Lindley's recursion: W1 = 0, W(k+1) = max(0, W(k) + s(k) - (a(k+1) - a(k))), response = W + s.

    Args:
        planned_s: Planned arrivals, ascending.
        service_s: Service times, one per arrival.

    Raises:
        ValueError: The two differ in length.
    """
    responses: list[float] = []
    wait_s = 0.0
    previous: tuple[float, float] | None = None
    for arrival_s, own_s in zip(planned_s, service_s, strict=True):
        if previous is not None:
            wait_s = max(0.0, wait_s + previous[1] - (arrival_s - previous[0]))
        responses.append(wait_s + own_s)
        previous = (arrival_s, own_s)
    return responses


def offered_load_ratio(rate_rps: float, service_s: float, *, slots: int = 1) -> float:
    """Return the offered load: rate x service time / slots; 1 and above cannot be kept up with."""
    return rate_rps * service_s / slots


def growth_per_request_s(rate_rps: float, service_s: float, *, slots: int = 1) -> float | None:
    """Return by how much each response exceeds the one before in an overloaded queue.

    service / slots - 1 / rate. Shown instead of percentiles, which then only measure how long the run
    was. None below saturation, where responses settle.
    """
    if offered_load_ratio(rate_rps, service_s, slots=slots) < 1:
        return None
    return service_s / slots - 1 / rate_rps


def md1_inflation(load_ratio: float) -> dict[float, float]:
    """Return, per percentile, by how much n must be divided at this offered load.

    Open-loop response times near saturation depend on each other: a burst delays all behind it.
    Between the simulated loads the factor is interpolated, which errs to the safe side as the curve is
    convex; above 0.9 it is infinite, so that no percentile is shown. Percentiles above the median take
    the factor of p99.

    Args:
        load_ratio: Offered load, 0 and up.
    """
    median = tail = math.inf
    for (low, low_median, low_tail), (high, high_median, high_tail) in pairwise(_MD1_INFLATION):
        if low <= load_ratio <= high:
            weight = (load_ratio - low) / (high - low)
            median = low_median + weight * (high_median - low_median)
            tail = low_tail + weight * (high_tail - low_tail)
            break
    return {share: median if share <= 0.5 else tail for share in PERCENTILES}
