"""Whose requests fill the queue. Pure.

Every operation takes constant time: clients are grouped by how many of their requests wait.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from ollamalab.queueing.ticket import Ticket


class Shares:
    """How many requests of each client wait, over all lanes."""

    def __init__(self) -> None:
        self._waiting: dict[str, OrderedDict[Ticket, None]] = {}
        self._with_count: defaultdict[int, dict[str, None]] = defaultdict(dict)
        self._largest = 0

    @property
    def clients(self) -> int:
        """How many clients have requests waiting."""
        return len(self._waiting)

    def of(self, client: str) -> int:
        """Return how many requests of a client wait."""
        return len(self._waiting.get(client, ()))

    def newest_of_largest(self) -> Ticket:
        """Return the last request of a client that has the most waiting; somebody must be waiting."""
        client = next(iter(self._with_count[self._largest]))
        return next(reversed(self._waiting[client]))

    def add(self, ticket: Ticket) -> None:
        """Count a request that begins to wait."""
        tickets = self._waiting.setdefault(ticket.client, OrderedDict())
        tickets[ticket] = None
        self._regroup(ticket.client, len(tickets) - 1, len(tickets))

    def remove(self, ticket: Ticket) -> None:
        """Count a request no more."""
        tickets = self._waiting[ticket.client]
        del tickets[ticket]
        self._regroup(ticket.client, len(tickets) + 1, len(tickets))
        if not tickets:
            del self._waiting[ticket.client]

    def _regroup(self, client: str, before: int, now: int) -> None:
        if before:
            group = self._with_count[before]
            del group[client]
            if not group:
                del self._with_count[before]
        if now:
            self._with_count[now][client] = None
        if now > self._largest or self._largest not in self._with_count:
            self._largest = now  # counts change by one: an emptied top group moved just below
