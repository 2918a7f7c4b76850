"""What a lane's requests were like lately: how long they took, how much they said. Pure.

Both are running means that forget: a value counts for half after about seven later ones.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_FORGETTING = 0.1
_MOST_LANES = 256  # lanes are named by clients, so their number needs a bound


@dataclass(slots=True)
class _Means:
    service_s: float | None = None
    output_tokens: float | None = None


class History:
    """Running means per lane; of the lanes that were used last."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, _Means] = OrderedDict()

    def note(self, lane: str, *, service_s: float, output_tokens: int | None) -> None:
        """Remember a request that was answered to the end.

        Args:
            lane: Where.
            service_s: Seconds from its place to its end.
            output_tokens: What it generated; None if that is not known.
        """
        means = self._lanes.get(lane)
        if means is None:
            means = self._lanes[lane] = _Means()
        self._lanes.move_to_end(lane)
        means.service_s = _mixed(means.service_s, service_s)
        if output_tokens is not None:
            means.output_tokens = _mixed(means.output_tokens, output_tokens)
        if len(self._lanes) > _MOST_LANES:
            self._lanes.popitem(last=False)

    def service_s(self, lane: str) -> float | None:
        """Return how long a request has its place, on average; None before the first."""
        means = self._lanes.get(lane)
        return means.service_s if means else None

    def output_tokens(self, lane: str) -> float | None:
        """Return how many tokens a request generates, on average; None before the first."""
        means = self._lanes.get(lane)
        return means.output_tokens if means else None


def _mixed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _FORGETTING * (value - mean)
