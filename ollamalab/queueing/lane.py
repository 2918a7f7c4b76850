"""A lane: those who want the same places at an upstream, in bands of priority. Pure.

Waiting promotes: a band counts as one step more urgent for every ``ageing_s`` that its oldest request
has waited. The whole band moves, not the old request alone, so that a client that fills a band does not
overtake the others of its band by the age of what it piled up: within a band fairness decides, always.
Between bands that count alike, the one with the oldest request goes first.
"""

from __future__ import annotations

from ollamalab.queueing.fair_line import FairLine
from ollamalab.queueing.ticket import State, Ticket


class Lane:
    """Who waits for one lane and who is served there.

    Attributes:
        active: How many hold a place.
        waiting: How many wait.
        ageing_s: Wait that is worth one step of priority.
    """

    __slots__ = ("_bands", "active", "ageing_s", "waiting")

    def __init__(self, ageing_s: float) -> None:
        self.active = 0
        self.waiting = 0
        self.ageing_s = ageing_s
        self._bands: dict[int, FairLine] = {}

    @property
    def is_over(self) -> bool:
        """Whether nobody waits or is served."""
        return not self.waiting and not self.active

    def add(self, ticket: Ticket) -> None:
        """Put a new ticket in line."""
        band = self._bands.get(ticket.priority)
        if band is None:
            band = self._bands[ticket.priority] = FairLine()
        band.add(ticket)
        self.waiting += 1

    def admit(self, ticket: Ticket, now_s: float) -> None:
        """Give a new ticket a place at once; nobody may be waiting."""
        band = self._bands.get(ticket.priority)
        if band is None:
            band = self._bands[ticket.priority] = FairLine()
        band.admit(ticket)
        ticket.granted_s = now_s
        self.active += 1

    def remove(self, ticket: Ticket, state: State) -> None:
        """Take a waiting ticket out that will not be served; ``state`` says why."""
        self._bands[ticket.priority].remove(ticket, state)
        self.waiting -= 1
        self._forget_if_over(ticket.priority)

    def peek(self, now_s: float) -> Ticket:
        """Return whose turn it is; at least one must be waiting."""
        return self._next_band(now_s).peek()

    def take(self, ticket: Ticket, now_s: float) -> None:
        """Give a place to the ticket that ``peek`` returned."""
        self._bands[ticket.priority].take()
        ticket.granted_s = now_s
        self.waiting -= 1
        self.active += 1

    def settle(self, ticket: Ticket, state: State, cost_tokens: float) -> None:
        """Take the place back; ``state`` says how it ended, ``cost_tokens`` what it really cost."""
        ticket.state = state
        band = self._bands[ticket.priority]
        band.settle(ticket, cost_tokens)
        self.active -= 1
        if band.is_over:
            del self._bands[ticket.priority]

    def _next_band(self, now_s: float) -> FairLine:
        best: FairLine | None = None
        best_key = (0, 0)
        for priority, band in self._bands.items():
            if band:
                oldest = band.oldest
                aged = priority - int((now_s - oldest.arrived_s) / self.ageing_s)
                key = (max(0, aged), oldest.number)
                if best is None or key < best_key:
                    best, best_key = band, key
        assert best is not None, "nobody is waiting"
        return best

    def _forget_if_over(self, priority: int) -> None:
        if self._bands[priority].is_over:
            del self._bands[priority]
