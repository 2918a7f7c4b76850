"""What the queue in front of a cluster asks and tells: how many places there are, how requests go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from ollamalab.cluster.booking import Booking
from ollamalab.cluster.roster import Roster
from ollamalab.queueing import State, Work


class Journey(msgspec.Struct, eq=False):
    """One request that got a place in the queue; its observer there is the booking it has at the time.

    Attributes:
        booking: Where it went last; None while it is on its way.
        is_answered: Whether its answer has come whole, so that its end here is its end there.
    """

    booking: Booking | None = None
    is_answered: bool = False

    def begun(self, now_s: float) -> None:  # noqa: ARG002 - bookings have the clock of their cluster
        """A stream has given its first bytes."""
        if self.booking is not None:
            self.booking.begun()

    def ended(self, now_s: float, state: State, work: Work | None) -> None:  # noqa: ARG002
        """The body has come to its end, or the request to another."""
        if self.booking is None:
            return
        if self.is_answered:
            self.booking.ended(state, work)
        else:
            self.booking.release(state, work)


class ClusterCapacity:
    """The places of all members that may take requests for a model; a ``queueing.Capacity``.

    Args:
        roster: Who they are.
        clock: Monotonic seconds.
    """

    def __init__(self, roster: Roster, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._clock = clock

    def limit(self, lane: str) -> int:
        """Return how many requests for a model may be under way at once."""
        return self._roster.limit(lane, self._clock())

    def begin(self, lane: str, now_s: float) -> Journey:  # noqa: ARG002
        """Return what will know where the request has gone."""
        return Journey()

    def limits(self) -> Mapping[str, int]:
        """Return what has been learnt, without places on trial."""
        return self._roster.learnt()
