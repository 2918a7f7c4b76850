"""What a queue has seen: counts, peaks, waits, clients. Pure.

At any time total = completed + failed + rejected + timed_out + cancelled + waiting + active.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

from ollamalab.metrics import Summary, summarise
from ollamalab.queueing.ticket import State, Ticket

#: Waits that the percentiles are of: the latest. A p99 needs 662.
_WAITS = 2048

#: Clients that are told apart; the one heard of least recently is forgotten first.
_CLIENTS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientStatistics:
    """One client in the queue.

    Attributes:
        requests: How many it sent.
        served: How many of them got a place.
        wait_mean_s: Their mean wait; None if none got one.
        wait_max_s: Their longest wait; None if none got one.
        tokens: What its ended requests cost, as fairness counts.
    """

    requests: int
    served: int
    wait_mean_s: float | None
    wait_max_s: float | None
    tokens: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueStatistics:
    """A queue since its start.

    Attributes:
        total: Requests that came.
        completed: Answered to the end.
        failed: Got a place, but the upstream answered with an error or broke off.
        rejected: Refused for want of room.
        timed_out: Refused after waiting too long, or because their deadline had passed.
        cancelled: Given up by their client, waiting or served.
        waiting: Waiting now.
        active: Holding a place now.
        peak_waiting: Most that waited at once.
        peak_active: Most places in use at once.
        wait: Seconds until they got a place, of the latest 2,048 that did.
        clients: Of the 256 heard of last, by name.
        limits: How many at once, by lane; of lanes in use, or learnt.
    """

    total: int
    completed: int
    failed: int
    rejected: int
    timed_out: int
    cancelled: int
    waiting: int
    active: int
    peak_waiting: int
    peak_active: int
    wait: Summary
    clients: Mapping[str, ClientStatistics]
    limits: Mapping[str, int]


@dataclass(slots=True)
class _Client:
    requests: int = 0
    served: int = 0
    wait_s: float = 0.0
    wait_max_s: float = 0.0
    tokens: float = 0.0

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(
            requests=self.requests,
            served=self.served,
            wait_mean_s=self.wait_s / self.served if self.served else None,
            wait_max_s=self.wait_max_s if self.served else None,
            tokens=self.tokens,
        )


class Tally:
    """Keeps the counts.

    Attributes:
        waiting: How many wait now.
        active: How many hold a place now.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self.active = 0
        self._total = 0
        self._over: Counter[State] = Counter()
        self._peak_waiting = 0
        self._peak_active = 0
        self._waits_s: deque[float] = deque(maxlen=_WAITS)
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def admitted(self, client: str) -> None:
        """Count a new request that gets its place at once."""
        self._total += 1
        found = self._client(client)
        found.requests += 1
        self._got_place(found, 0.0)

    def refused(self, client: str, state: State) -> None:
        """Count a new request that is refused at once; ``state`` says why."""
        self._total += 1
        self._over[state] += 1
        self._client(client).requests += 1

    def queued(self, client: str) -> None:
        """Count a new request that waits."""
        self._total += 1
        self.waiting += 1
        self._client(client).requests += 1

    def granted(self, ticket: Ticket) -> None:
        """Count that one that waited has its place."""
        self.waiting -= 1
        self._got_place(self._client(ticket.client), ticket.wait_s or 0.0)

    def left(self, ticket: Ticket) -> None:
        """Count that one that waited is over without a place."""
        self.waiting -= 1
        self._over[ticket.state] += 1

    def ended(self, ticket: Ticket, tokens: float) -> None:
        """Count that one that had its place is over, and what it cost."""
        self.active -= 1
        self._over[ticket.state] += 1
        client = self._clients.get(ticket.client)
        if client is not None:  # else others have been heard of since
            client.tokens += tokens

    def note_waiting(self) -> None:
        """Note how many wait, once nobody does who would get a place at once."""
        self._peak_waiting = max(self._peak_waiting, self.waiting)

    def statistics(self, limits: Mapping[str, int]) -> QueueStatistics:
        """Return everything so far.

        Args:
            limits: Places by lane.
        """
        over = self._over
        return QueueStatistics(
            total=self._total,
            completed=over[State.COMPLETED],
            failed=over[State.FAILED],
            rejected=over[State.REJECTED],
            timed_out=over[State.TIMED_OUT],
            cancelled=over[State.CANCELLED],
            waiting=self.waiting,
            active=self.active,
            peak_waiting=self._peak_waiting,
            peak_active=self._peak_active,
            wait=summarise(self._waits_s),
            clients={name: client.statistics() for name, client in self._clients.items()},
            limits=dict(limits),
        )

    def _got_place(self, client: _Client, wait_s: float) -> None:
        self.active += 1
        if self.active > self._peak_active:
            self._peak_active = self.active
        self._waits_s.append(wait_s)
        client.served += 1
        client.wait_s += wait_s
        if wait_s > client.wait_max_s:
            client.wait_max_s = wait_s

    def _client(self, name: str) -> _Client:
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
            if len(self._clients) > _CLIENTS:
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end(name)
        return client
