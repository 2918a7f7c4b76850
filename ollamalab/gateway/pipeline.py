"""The gateway's parts, opened in order and wrapped round each other: cache, queue, upstream."""

from __future__ import annotations

import math
import os
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from ollamalab.cache import ResponseCache
from ollamalab.cache.stores import open_store
from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.errors import SettingsError
from ollamalab.gateway.progress import Progress
from ollamalab.gateway.status import UpstreamStatus
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.queueing import RequestQueue
from ollamalab.settings import GatewaySettings, UpstreamSettings

#: The queue bounds what waits for a model; this only keeps file descriptors for everything else.
_MAX_CONNECTIONS = 4096


class Pipeline:
    """Answers requests as the settings ask; used with ``async with``.

    Args:
        settings: The whole gateway.

    Attributes:
        upstream: The outermost part: what requests are sent to.
        cache: None if there is none.
        queue: Who waits.
        progress: The innermost watch over the upstream.
        connection: The upstream itself.
    """

    upstream: Upstream
    cache: ResponseCache | None
    queue: RequestQueue
    progress: Progress
    connection: OllamaConnection

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        settings = self._settings
        first, *others = settings.upstreams
        if others:
            raise SettingsError(
                f"one upstream is served, {len(settings.upstreams)} are given; leave one --upstream"
            )
        async with AsyncExitStack() as stack:
            self.connection = await stack.enter_async_context(_connection_to(first))
            self.progress = Progress(
                self.connection,
                name=first.name,
                request_timeout_s=settings.request_timeout_s,
                load_timeout_s=settings.load_timeout_s,
            )
            self.queue = RequestQueue(settings.queue)
            self.upstream = self.queue.in_front_of(Labelled(self.progress, first.name))
            store = open_store(settings.store, settings.cache)
            self.cache = None
            if store is not None:
                stack.push_async_callback(store.close)
                self.cache = await stack.enter_async_context(
                    ResponseCache(self.upstream, settings.cache, store=store)
                )
                self.upstream = self.cache
            self._stack = stack.pop_all()
        return self

    def statuses(self) -> tuple[UpstreamStatus, ...]:
        """Return how each upstream does, in the order of the settings."""
        connection = self.connection
        status = UpstreamStatus(
            url=connection.url,
            traffic=self.progress.statistics(),
            open_connections=connection.open_connections,
        )
        return (status,)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()


class Labelled:
    """An upstream whose replies say where they come from.

    Args:
        upstream: Who answers.
        name: What it is called.
    """

    def __init__(self, upstream: Upstream, name: str) -> None:
        self._upstream = upstream
        self._name = name

    async def send(self, request: Request) -> Reply:
        """Send one request; raises what the upstream raises."""
        reply = await self._upstream.send(request)
        reply.headers[UPSTREAM_HEADER] = self._name
        return reply


def _connection_to(upstream: UpstreamSettings) -> OllamaConnection:
    """Return the connection pool of an upstream; how long to wait is not its decision."""
    settings = ConnectionSettings(
        max_connections=_MAX_CONNECTIONS,
        progress_timeout_s=math.inf,
        resend_stale=True,
        ca_file=upstream.ca_file,
        verify=upstream.verify,
    )
    key = _key_of(upstream)
    return OllamaConnection(upstream.url, settings, headers={"authorization": f"Bearer {key}"} if key else {})


def _key_of(upstream: UpstreamSettings) -> str | None:
    """Return the bearer token that an upstream wants; None for most.

    Raises:
        SettingsError: The file or variable that should hold it does not.
    """
    if upstream.api_key_env:
        key = os.environ.get(upstream.api_key_env, "").strip()
        if not key:
            raise SettingsError(f"upstream {upstream.name}: the variable {upstream.api_key_env} is not set")
        return key
    if upstream.api_key_file is None:
        return None
    try:
        key = upstream.api_key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise SettingsError(
            f"upstream {upstream.name}: cannot read {upstream.api_key_file}: {reason}"
        ) from error
    if not key or len(key.split()) != 1:
        raise SettingsError(
            f"upstream {upstream.name}: {upstream.api_key_file} must hold one key and nothing else"
        )
    return key
