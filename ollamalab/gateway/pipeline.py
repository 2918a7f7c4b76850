"""The gateway's parts, opened in order and wrapped round each other: cache, queue, cluster."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ollamalab.cache import ResponseCache
from ollamalab.cache.stores import open_store
from ollamalab.cluster import Cluster
from ollamalab.gateway.upstreams import Upstreams
from ollamalab.protocol.upstream import Upstream
from ollamalab.queueing import RequestQueue
from ollamalab.settings import GatewaySettings, WarmupSettings
from ollamalab.warmup import Warmer


class Pipeline:
    """Answers requests as the settings ask; used with ``async with``.

    Args:
        settings: The whole gateway.

    Attributes:
        upstream: The outermost part: what requests are sent to.
        cache: None if there is none.
        queue: Who waits.
        cluster: Who answers.
        warmer: Keeps models in memory; None if none were ever to be kept.
    """

    upstream: Upstream
    cache: ResponseCache | None
    queue: RequestQueue
    cluster: Cluster
    warmer: Warmer | None

    def __init__(self, settings: GatewaySettings) -> None:
        self.warmer = None
        self._settings = settings
        self._stack = AsyncExitStack()
        self._upstreams = Upstreams(
            request_timeout_s=settings.request_timeout_s, load_timeout_s=settings.load_timeout_s
        )

    async def __aenter__(self) -> Self:
        settings = self._settings
        members = await self._upstreams.members(settings.upstreams)
        self._warmer = Warmer(settings.warmup)
        async with AsyncExitStack() as stack:
            store = open_store(settings.store, settings.cache)  # first: it may be refused
            if store is not None:
                stack.push_async_callback(store.close)
            self.cluster = await stack.enter_async_context(
                Cluster(
                    members,
                    route=settings.route,
                    settings=settings.cluster,
                    max_concurrent=settings.queue.max_concurrent,
                    visits=self._warmer,
                )
            )
            await stack.enter_async_context(self._warmer)
            self._keep_warm(settings.warmup)
            self.queue = RequestQueue(settings.queue, capacity=self.cluster.capacity)
            self.cluster.on_more_room(self.queue.refill)
            self.upstream = self.queue.in_front_of(self.cluster)
            self.cache = None
            if store is not None:
                self.cache = await stack.enter_async_context(
                    ResponseCache(self.upstream, settings.cache, store=store, digests=self.cluster)
                )
                self.upstream = self.cache
            self._stack = stack.pop_all()
        return self

    async def take(self, wanted: GatewaySettings) -> None:
        """Take what can be changed while requests are under way: upstreams, and which models are warm.

        New upstreams join, those that are gone finish what is under way there.

        Raises:
            SettingsError: An upstream cannot be used; then all stays as it is.
        """
        self.cluster.set_members(await self._upstreams.members(wanted.upstreams))
        self._keep_warm(wanted.warmup)

    def open_connections(self) -> Mapping[str, int]:
        """Return how many connections to upstreams are open, idle ones included, by address."""
        return self._upstreams.open_connections()

    def _keep_warm(self, settings: WarmupSettings) -> None:
        """Warm models as these settings say; where they want none, nobody is even asked what is loaded."""
        self._warmer.take(settings)
        members = self.cluster.members if settings.is_on else ()
        self._warmer.set_upstreams({member.name: member.upstream for member in members})
        if settings.is_on:
            self.warmer = self._warmer

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()
