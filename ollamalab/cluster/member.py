"""A member: one upstream of a cluster, and all that is known of it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from ollamalab.cluster.health import Health
from ollamalab.cluster.replica import Replica
from ollamalab.protocol.upstream import Upstream
from ollamalab.routing import UpstreamView

if TYPE_CHECKING:
    from ollamalab.cluster.booking import Booking


class Member:
    """One upstream of a cluster.

    Args:
        name: What replies and reports call it; no other member has it.
        upstream: Who answers. Its time limits are its own.
        url: Where it is, for reports.
        weight: Its share under weighted routing, a measure of capacity elsewhere; a whole number from 1.
        close: Is awaited once the member has left the cluster and nothing of it is under way.

    Attributes:
        view: What routing sees; what is booked is counted there.
        health: Whether it can be reached.
        replicas: Its models, by key (``ModelName.key``).
        digests: Digest of each model that it lists, by key; None until it has said.
        listed_s: When it was last asked for that; -inf if never.
        listing: Held while it is asked.
        waiting: Requests sent there that have no first byte yet.
        is_leaving: Whether it only finishes what is under way; see ``leave``.
        requests: Sent there for clients, those included that then moved on.
        moved: Of these, sent to another member afterwards.
        failures: Requests without a good answer, by kind (``Verdict``).
        probes: Looks at it.
        failed_probes: Of these, without an answer.
        look: Set to look at it now.
        idle: Set once it is leaving and nothing is under way there any more.
    """

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        *,
        url: str = "",
        weight: int = 1,
        close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name = name
        self.upstream = upstream
        self.url = url
        self.close = close
        self.view = UpstreamView(name=name, weight=weight)
        self.health = Health()
        self.replicas: dict[str, Replica] = {}
        self.digests: Mapping[str, str] | None = None
        self.listed_s = -math.inf
        self.listing = asyncio.Lock()
        self.waiting: set[Booking] = set()
        self.is_leaving = False
        self.requests = 0
        self.moved = 0
        self.failures: Counter[str] = Counter()
        self.probes = 0
        self.failed_probes = 0
        self.look = asyncio.Event()
        self.idle = asyncio.Event()

    def leave(self) -> None:
        """Take nothing new from now on."""
        self.is_leaving = True
        if not self.view.in_flight:
            self.idle.set()


def as_member(upstream: Member | Upstream) -> Member:
    """Return an upstream as a member, named by its address; a member as it is."""
    if isinstance(upstream, Member):
        return upstream
    url = str(getattr(upstream, "url", ""))
    return Member(url.rpartition("/")[2] or f"upstream-{id(upstream):x}", upstream, url=url)
