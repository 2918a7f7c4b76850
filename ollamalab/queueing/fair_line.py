"""A line of requests that is fair among clients by the tokens they were served. Pure.

Each client has a counter: tokens served, plus the estimates booked for what is being served. The client
with the least goes next; of its requests, the one with the earliest deadline, then the first to arrive.
A client that comes back after having had nothing to do starts no lower than the *level*, the counter of
whoever was served last, so idle time earns no credit.

This is the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024),
with two additions: estimates are booked at dispatch, because a relay learns the true cost only at the
end; and the level leaves bookings out, so that estimates that were too high lift nobody.

Everything costs O(log n): a heap of clients, and per client a heap of requests, both with entries that
went stale left in until they come up or outnumber the others.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict

from ollamalab.queueing.ticket import State, Ticket

#: Clients without requests whose counter is remembered. A forgotten one starts at the level again.
_MOST_IDLE = 1024

#: A heap is tidied when it has this many entries more than twice those that count.
_SLACK = 16


class _Flow:
    """One client in a line.

    Attributes:
        client: Its name.
        served_tokens: Tokens that its finished requests cost.
        booked_tokens: Estimates of those being served.
        waiting: Requests that wait.
        active: Requests being served.
        edition: Number of its entry that counts in the line's heap.
    """

    __slots__ = ("_heap", "active", "booked_tokens", "client", "edition", "served_tokens", "waiting")

    def __init__(self, client: str) -> None:
        self.client = client
        self.served_tokens = 0.0
        self.booked_tokens = 0.0
        self.waiting = 0
        self.active = 0
        self.edition = 0
        self._heap: list[tuple[float, int, Ticket]] = []

    def add(self, ticket: Ticket) -> None:
        heapq.heappush(self._heap, (ticket.deadline_s, ticket.number, ticket))
        self.waiting += 1

    def head(self) -> Ticket:
        """Return whose turn it is; at least one must be waiting."""
        heap = self._heap
        if len(heap) > 2 * self.waiting + _SLACK:
            heap[:] = [entry for entry in heap if entry[2].state is State.WAITING]
            heapq.heapify(heap)
        while heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
        return heap[0][2]


class FairLine:
    """Those who wait for the same lane with the same priority, and those of them being served."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._heap: list[tuple[float, float, int, int, _Flow]] = []
        self._by_age: OrderedDict[Ticket, None] = OrderedDict()
        self._level_tokens = 0.0
        self._active = 0
        self._backlogged = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._by_age)

    @property
    def is_over(self) -> bool:
        """Whether nobody waits or is served, so that all counters may be forgotten."""
        return not self._by_age and not self._active

    @property
    def oldest(self) -> Ticket:
        """Who has waited longest; at least one must be waiting."""
        return next(iter(self._by_age))

    def add(self, ticket: Ticket) -> None:
        """Put a new ticket in line."""
        flow = self._flows.get(ticket.client)
        if flow is None:
            flow = self._flows[ticket.client] = _Flow(ticket.client)
        self._idle.pop(ticket.client, None)
        if not flow.waiting:
            flow.served_tokens = max(flow.served_tokens, self._level_tokens)
            self._backlogged += 1
        flow.add(ticket)
        self._by_age[ticket] = None
        self._enter(flow)

    def admit(self, ticket: Ticket) -> None:
        """Book a new ticket that gets its place at once, as ``add`` and ``take`` would; nobody may wait."""
        flow = self._flows.get(ticket.client)
        if flow is None:
            flow = self._flows[ticket.client] = _Flow(ticket.client)
        if not flow.active:
            self._idle.pop(ticket.client, None)
        if flow.served_tokens > self._level_tokens:
            self._level_tokens = flow.served_tokens
        else:
            flow.served_tokens = self._level_tokens
        flow.booked_tokens += ticket.cost_tokens
        flow.active += 1
        self._active += 1
        ticket.state = State.ACTIVE

    def remove(self, ticket: Ticket, state: State) -> None:
        """Take a ticket out of the line that will not be served; ``state`` says why."""
        flow = self._unlink(ticket, state)
        self._enter(flow)
        self._note_idle(flow)

    def peek(self) -> Ticket:
        """Return whose turn it is; at least one must be waiting."""
        heap = self._heap
        while heap[0][4].edition != heap[0][3]:
            heapq.heappop(heap)
        return heap[0][4].head()

    def take(self) -> Ticket:
        """Take the next out of the line and book its estimate; at least one must be waiting."""
        ticket = self.peek()
        flow = self._unlink(ticket, State.ACTIVE)
        self._level_tokens = max(self._level_tokens, flow.served_tokens)
        flow.booked_tokens += ticket.cost_tokens
        flow.active += 1
        self._active += 1
        self._enter(flow)
        return ticket

    def settle(self, ticket: Ticket, served_tokens: float) -> None:
        """Replace the booking of a ticket that was taken by what it really cost."""
        flow = self._flows[ticket.client]
        flow.active -= 1
        self._active -= 1
        flow.booked_tokens = flow.booked_tokens - ticket.cost_tokens if flow.active else 0.0
        flow.served_tokens += served_tokens
        if flow.waiting:
            self._enter(flow)
        elif not flow.active:
            self._note_idle(flow)

    def counters(self) -> dict[str, float]:
        """Return each remembered client's counter, in tokens."""
        return {client: flow.served_tokens + flow.booked_tokens for client, flow in self._flows.items()}

    def _unlink(self, ticket: Ticket, state: State) -> _Flow:
        ticket.state = state  # by which its entry in the flow's heap is known to be stale
        del self._by_age[ticket]
        flow = self._flows[ticket.client]
        flow.waiting -= 1
        if not flow.waiting:
            self._backlogged -= 1
        return flow

    def _enter(self, flow: _Flow) -> None:
        """Put a client where its counter and the head of its requests now belong."""
        flow.edition += 1
        if not flow.waiting:
            return
        head = flow.head()
        counter = flow.served_tokens + flow.booked_tokens
        # Two entries of one flow differ by edition, those of two flows by number: flows are never compared.
        heapq.heappush(self._heap, (counter, head.deadline_s, head.number, flow.edition, flow))
        if len(self._heap) > 2 * self._backlogged + _SLACK:
            self._heap[:] = [entry for entry in self._heap if entry[4].edition == entry[3]]
            heapq.heapify(self._heap)

    def _note_idle(self, flow: _Flow) -> None:
        if flow.waiting or flow.active:
            return
        self._idle[flow.client] = None
        if len(self._idle) > _MOST_IDLE:
            del self._flows[self._idle.popitem(last=False)[0]]
