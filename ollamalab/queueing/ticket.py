"""A ticket: one request's place in the queue, from its arrival to its one end. Pure data."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class State(StrEnum):
    """Where a request stands. It waits, then has a place, then has ended; it never goes back."""

    __hash__ = str.__hash__  # Enum's own is Python code, and states are counted on every request

    WAITING = "waiting"
    ACTIVE = "active"  #: holds a place at the upstream
    COMPLETED = "completed"  #: the upstream answered it to the end
    FAILED = "failed"  #: the upstream answered with an error, or broke off
    REJECTED = "rejected"  #: no room for it: the queue was full, or its client over its share
    TIMED_OUT = "timed_out"  #: waited too long, or nobody wanted the answer any more
    CANCELLED = "cancelled"  #: the client went away, waiting or served


class Ticket(msgspec.Struct, eq=False, kw_only=True):
    """One request in the queue; moments share one monotonic clock.

    Attributes:
        lane: What it waits for; places are counted per lane.
        client: Whom fairness counts it for.
        priority: 0 first to 9 last.
        deadline_s: Moment after which nobody wants the answer; ``math.inf`` = no limit.
        expires_s: When it has waited long enough: the queue timeout, or the deadline if that is earlier.
        cost_tokens: What it will probably cost; booked while it is served.
        arrived_s: When it came.
        number: In order of arrival.
        state: Where it stands.
        granted_s: When it got its place; None until then.
    """

    lane: str
    client: str
    priority: int
    deadline_s: float
    expires_s: float
    cost_tokens: float
    arrived_s: float
    number: int
    state: State = State.WAITING
    granted_s: float | None = None

    @property
    def wait_s(self) -> float | None:
        """Seconds from arrival to its place; None without one."""
        return None if self.granted_s is None else self.granted_s - self.arrived_s
