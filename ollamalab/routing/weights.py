"""Policies that go by turns: one after the other, or in exact proportion to weights."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from ollamalab.routing.candidates import Candidates
from ollamalab.routing.views import UpstreamView, Want

#: Sets of members whose turns are remembered; there are as many as models live in different places.
_MOST_SETS = 256

Turn = TypeVar("Turn")


class Turns(Generic[Turn]):
    """A turn for each set of members, so that models in different places do not disturb each other.

    Args:
        begin: Returns a new turn of these members.
    """

    def __init__(self, begin: Callable[[Sequence[UpstreamView]], Turn]) -> None:
        self._begin = begin
        self._turns: dict[int, tuple[Sequence[UpstreamView], Turn]] = {}

    def of(self, members: Sequence[UpstreamView]) -> Turn:
        """Return the turn of a set; the same object is the same set."""
        known = self._turns.get(id(members))  # held beside its turn, so the number stays its own
        if known is not None:
            return known[1]
        if len(self._turns) >= _MOST_SETS:
            self._turns.clear()
        turn = self._begin(members)
        self._turns[id(members)] = members, turn
        return turn


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._turns = Turns(itertools.cycle)

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return the next member."""
        del want
        return next(self._turns.of(candidates.members))


class Weighted:
    """Serves members in proportion to their weights, spread as evenly as they can be.

    The k-th request of a member with weight w is due at (2k + 1)/(2w) of a turn, and the earliest due
    goes next; ties go to the first in order. Due times repeat each turn, so any window of as many
    requests as the weights add up to holds exactly each member's weight. A heap makes a decision
    O(log n); nginx's form of the same idea is O(n). Other members start a new turn.
    """

    def __init__(self) -> None:
        self._turns = Turns(_due)

    def choose(self, want: Want, candidates: Candidates) -> UpstreamView:
        """Return whose turn it is.

        Args:
            want: Not looked at.
            candidates: Who may be chosen; the same members object until something changes.
        """
        del want
        due_times = self._turns.of(candidates.members)
        due, place, step = due_times[0]
        heapq.heapreplace(due_times, (due + 2 * step, place, step))
        return candidates.members[place]


def _due(members: Sequence[UpstreamView]) -> list[tuple[int, int, int]]:
    """Return a heap of due time, place and step; whole numbers, scaled by what all weights divide."""
    weights = [member.weight for member in members]
    scale = math.lcm(*weights)
    due_times = [(scale // weight, place, scale // weight) for place, weight in enumerate(weights)]
    heapq.heapify(due_times)
    return due_times
