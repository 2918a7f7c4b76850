"""Smooth weighted round robin whose shares are exact over every full turn."""

from __future__ import annotations

import heapq
import math

from ollamalab.routing.candidates import Candidates
from ollamalab.routing.views import UpstreamView, Want


class Weighted:
    """Serves members in proportion to their weights, spread as evenly as they can be.

    The k-th request of a member with weight w is due at (2k + 1)/(2w) of a turn, and the earliest due
    goes next; ties go to the first in order. Due times repeat each turn, so any window of as many
    requests as the weights add up to holds exactly each member's weight. A heap makes a decision
    O(log n); nginx's form of the same idea is O(n). Other members start a new turn.
    """

    def __init__(self) -> None:
        self._candidates: Candidates | None = None
        self._due: list[tuple[int, int, int]] = []

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return whose turn it is.

        Args:
            want: Not looked at.
            candidates: Who may be chosen; the same object until something changes.
        """
        del want
        if candidates is not self._candidates:
            self._begin(candidates)
        due, place, step = self._due[0]
        heapq.heapreplace(self._due, (due + 2 * step, place, step))
        return candidates.members[place]

    def _begin(self, candidates: Candidates) -> None:
        """Start a turn; due times are whole numbers, scaled by what all weights divide."""
        self._candidates = candidates
        weights = [member.weight for member in candidates.members]
        scale = math.lcm(*weights)
        self._due = [(scale // weight, place, scale // weight) for place, weight in enumerate(weights)]
        heapq.heapify(self._due)
