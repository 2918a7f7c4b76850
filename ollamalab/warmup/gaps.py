"""How long a model is usually left alone: the gaps between its requests, remembered by length.

A *gap* is the time from the end of the last request to the begin of the next, which is also what
Ollama's keep-alive counts. Lengths fall into buckets, eight to an octave, and each gap's weight halves
every two days: yesterday's rhythm counts, last month's does not. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

_PER_OCTAVE = 8
_SHORTEST_S = 1.0
_LONGEST_S = 30 * 86400.0
_HALF_LIFE_S = 2 * 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What is expected of a stretch of idle time.

    Attributes:
        use_ratio: Chance that the next request comes within it.
        held_s: Seconds of it until then, on average; all of it where none comes.
    """

    use_ratio: float
    held_s: float


class Usage(Protocol):
    """What foretells when a model will be wanted."""

    def note(self, gap_s: float, now_s: float) -> None:
        """Remember a gap that has just ended."""
        ...

    def forecast(self, *, idle_s: float, start_s: float, end_s: float, now_s: float) -> Forecast:
        """Return what to expect of a stretch of the gap that runs now; all counted from its begin."""
        ...


@dataclass(slots=True)
class _Bucket:
    weight: float
    mean_s: float
    noted_s: float

    def weight_at(self, now_s: float) -> float:
        return self.weight * math.exp2((self.noted_s - now_s) / _HALF_LIFE_S)


class IdleGaps:
    """The gaps of one model on one upstream."""

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}

    def note(self, gap_s: float, now_s: float) -> None:
        """Remember a gap that has just ended."""
        length_s = min(max(gap_s, _SHORTEST_S), _LONGEST_S)
        bucket = self._buckets.setdefault(
            math.floor(math.log2(length_s) * _PER_OCTAVE), _Bucket(0.0, 0.0, now_s)
        )
        before = bucket.weight_at(now_s)
        bucket.mean_s = (bucket.mean_s * before + length_s) / (before + 1)
        bucket.weight, bucket.noted_s = before + 1, now_s

    def forecast(self, *, idle_s: float, start_s: float, end_s: float, now_s: float) -> Forecast:
        """Return what to expect of the stretch from ``start_s`` to ``end_s`` of the gap that runs now.

        Each remembered gap that was longer than this one is so far is replayed. Beside them always stands
        one that never ends: what nothing is known of is not paid for.

        Args:
            idle_s: How long the gap has lasted.
            start_s: From its begin; at least ``idle_s``.
            end_s: From its begin.
            now_s: For how much a gap of long ago counts.
        """
        total, used, held_s = 1.0, 0.0, end_s - start_s
        for bucket in self._buckets.values():
            length_s = bucket.mean_s
            if length_s <= idle_s:
                continue
            weight = bucket.weight_at(now_s)
            total += weight
            if length_s > start_s:
                held_s += weight * (min(length_s, end_s) - start_s)
                used += weight if length_s <= end_s else 0.0
        return Forecast(use_ratio=used / total, held_s=held_s / total)
