"""Who goes next, who waits, who is refused. Pure: no clock, no tasks; moments are passed in.

The order of dispatch in a lane: priority band, with ageing (``lane``) -> the client that was served
fewest tokens -> its earliest deadline -> its first arrival (``fair_line``).

The bound on the waiting is one for all lanes. Nobody can take all of it from the others: while others
wait, a client may fill its share; and once the queue is full, a client that has fewer waiting takes the
place of the last request of the one that has most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import msgspec

from ollamalab.errors import OllamaLabError, QueueFull, ShareExceeded, WaitTimeout
from ollamalab.protocol.bodies import SERVER_BUSY
from ollamalab.queueing.history import History
from ollamalab.queueing.lane import Lane
from ollamalab.queueing.shares import Shares
from ollamalab.queueing.tally import QueueStatistics, Tally
from ollamalab.queueing.ticket import State, Ticket
from ollamalab.settings.queueing import QueueSettings


class Applicant(msgspec.Struct, kw_only=True):
    """A request that wants a place.

    Attributes:
        lane: What it wants a place in.
        client: Whom fairness counts it for.
        priority: 0 first to 9 last.
        deadline_s: Moment after which nobody wants the answer; None = no limit.
        cost_tokens: What it will probably cost.
    """

    lane: str
    client: str = ""
    priority: int = 5
    deadline_s: float | None = None
    cost_tokens: float = 1.0


class Admission:
    """Decides for one queue.

    Args:
        settings: Bounds.
        limit: How many may be served at once in a lane; at least 1. Asked anew for each decision.

    Attributes:
        history: What requests were like lately.
    """

    def __init__(self, settings: QueueSettings, limit: Callable[[str], int]) -> None:
        self.settings = settings
        self.history = History()
        self._limit = limit
        self._lanes: dict[str, Lane] = {}
        self._shares = Shares()
        self._tally = Tally()
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._tally.waiting

    @property
    def active(self) -> int:
        """How many hold a place."""
        return self._tally.active

    def arrive(self, applicant: Applicant, now_s: float) -> tuple[Ticket, list[Ticket]]:
        """Take a new request in; return its ticket, and other tickets whose wait this ended.

        Raises:
            WaitTimeout: Its deadline has passed already.
            ShareExceeded: Others wait, and its client has as many waiting as it may then have.
            QueueFull: There is no room, and nobody has more waiting than its client.
        """
        client = applicant.client
        deadline_s = math.inf if applicant.deadline_s is None else applicant.deadline_s
        if deadline_s <= now_s:
            self._tally.refused(client, State.TIMED_OUT)
            raise WaitTimeout("the deadline of the request had passed before it came; send it earlier")
        key, lane = applicant.lane, self._lanes.get(applicant.lane)
        must_wait = lane is not None and (lane.waiting > 0 or lane.active >= self._limit(key))
        moved = self._make_room(applicant) if must_wait else []
        if lane is None or key not in self._lanes:  # whom we pushed out may have been its last
            lane = self._lanes[key] = Lane(self.settings.ageing_s)
        self._arrivals += 1
        latest_s = now_s + self.settings.queue_timeout_s
        ticket = Ticket(
            lane=key,
            client=client,
            priority=applicant.priority,
            deadline_s=deadline_s,
            expires_s=latest_s if latest_s < deadline_s else deadline_s,
            cost_tokens=applicant.cost_tokens,
            arrived_s=now_s,
            number=self._arrivals,
        )
        if not must_wait:
            lane.admit(ticket, now_s)
            self._tally.admitted(client)
            return ticket, moved
        lane.add(ticket)
        self._shares.add(ticket)
        self._tally.queued(client)
        moved += self.dispatch(applicant.lane, now_s)  # more may fit since the last end
        self._tally.note_waiting()
        return ticket, moved

    def dispatch(self, lane_key: str, now_s: float) -> list[Ticket]:
        """Give the free places of a lane away; return all tickets whose wait this ended.

        Those are active now, or timed out: nobody is served who has waited too long.
        """
        lane = self._lanes.get(lane_key)
        moved: list[Ticket] = []
        if lane is not None and lane.waiting:
            limit = self._limit(lane_key)
            while lane.waiting and lane.active < limit:
                ticket = lane.peek(now_s)
                if ticket.expires_s <= now_s:
                    self.leave(ticket, State.TIMED_OUT)
                else:
                    self._grant(lane, ticket, now_s)
                moved.append(ticket)
        return moved

    def dispatch_all(self, now_s: float) -> list[Ticket]:
        """Give the free places of all lanes away, as ``dispatch`` does for one."""
        return [ticket for lane_key in tuple(self._lanes) for ticket in self.dispatch(lane_key, now_s)]

    def leave(self, ticket: Ticket, state: State) -> None:
        """Take a waiting ticket out of the queue; ``state`` says why."""
        lane = self._lanes[ticket.lane]
        lane.remove(ticket, state)
        self._shares.remove(ticket)
        self._tally.left(ticket)
        self._forget_if_over(ticket.lane)

    def release(
        self, ticket: Ticket, state: State, now_s: float, *, cost_tokens: float | None = None
    ) -> list[Ticket]:
        """Take a place back and give it to the next; return all tickets whose wait this ended.

        Args:
            ticket: One that is active.
            state: How it ended.
            now_s: When.
            cost_tokens: What it cost; None if that is not known: the estimate stands.
        """
        cost = ticket.cost_tokens if cost_tokens is None else cost_tokens
        lane = self._lanes[ticket.lane]
        lane.settle(ticket, state, cost)
        self._tally.ended(ticket, cost)
        moved = self.dispatch(ticket.lane, now_s) if lane.waiting else []
        self._forget_if_over(ticket.lane)
        return moved

    def refusal(self, ticket: Ticket, now_s: float) -> OllamaLabError:
        """Return what to tell the client of a ticket whose wait ended without a place."""
        waited_s = now_s - ticket.arrived_s
        if ticket.state is State.REJECTED:
            return ShareExceeded(
                f"client {ticket.client!r} had the most requests waiting in a full queue, and gave this "
                "place to another client; send fewer at once",
                retry_after_s=self.retry_after_s(ticket.lane),
            )
        if ticket.expires_s == ticket.deadline_s:
            return WaitTimeout(
                f"the deadline of the request passed after {waited_s:.1f} s in the queue; "
                "allow more time or send it when less is waiting"
            )
        return WaitTimeout(
            f"the model was busy with other requests for {waited_s:.1f} s; try again when less is waiting"
        )

    def retry_after_s(self, lane_key: str) -> float:
        """Return in how many seconds those who wait in a lane will probably have got their places.

        Waiting, times mean service time, divided by places. Nobody waits longer than the queue timeout,
        so neither is this longer. While nothing has been answered yet, a request counts as long as the
        queue timeout: better late than twice.
        """
        service_s = self.history.service_s(lane_key)
        if service_s is None:
            return self.settings.queue_timeout_s
        lane = self._lanes.get(lane_key)
        ahead = lane.waiting if lane else 0
        return min((ahead + 1) * service_s / self._limit(lane_key), self.settings.queue_timeout_s)

    def statistics(self, limits: Mapping[str, int]) -> QueueStatistics:
        """Return what happened so far.

        Args:
            limits: What is known better of lanes, and of those not in use.
        """
        return self._tally.statistics({**{lane: self._limit(lane) for lane in self._lanes}, **limits})

    def _grant(self, lane: Lane, ticket: Ticket, now_s: float) -> None:
        lane.take(ticket, now_s)
        self._shares.remove(ticket)
        self._tally.granted(ticket)

    def _make_room(self, applicant: Applicant) -> list[Ticket]:
        """Return whom a new request that has to wait pushes out: nobody, or one ticket."""
        shares, client = self._shares, applicant.client
        own = shares.of(client)
        others_wait = shares.clients > (1 if own else 0)
        if others_wait and own >= self.settings.share:
            self._tally.refused(client, State.REJECTED)
            raise ShareExceeded(
                f"client {client!r} has {own} requests waiting, as many as one client may while others wait; "
                "wait for their answers before sending more",
                retry_after_s=self.retry_after_s(applicant.lane),
            )
        if self.waiting < self.settings.max_queue:
            return []
        last = shares.newest_of_largest() if others_wait else None
        if last is None or shares.of(last.client) < own + 2:
            self._tally.refused(client, State.REJECTED)
            raise QueueFull(SERVER_BUSY, retry_after_s=self.retry_after_s(applicant.lane))
        self.leave(last, State.REJECTED)
        return [last]

    def _forget_if_over(self, lane_key: str) -> None:
        lane = self._lanes.get(lane_key)
        if lane is not None and lane.is_over:
            del self._lanes[lane_key]
