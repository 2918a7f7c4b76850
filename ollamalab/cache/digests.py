"""Which digest a model has now, read from the upstream's own list."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from ollamalab.errors import BadReply, OllamaLabError
from ollamalab.protocol.listed import listed_digests
from ollamalab.protocol.upstream import Request, Upstream

_log = logging.getLogger(__name__)

_FRESH_S = 2.0  #: after a `pull` an old answer may be given for so long
_RETRY_S = 5.0  #: after a failed look at the list
_PATIENCE_S = 1.0  #: for the list; the old one serves if it takes longer
_MAX_LIST_BYTES = 64 * 1024 * 1024
_OK = 200


class Digests(Protocol):
    """Knows the digest of each model."""

    async def digest_of(self, model_key: str) -> str | None:
        """Return a model's digest; None if nobody knows it, and then nothing is cached.

        Args:
            model_key: ``ModelName.key``.
        """
        ...


class UpstreamDigests:
    """Digests from ``GET /api/tags`` of one upstream, looked at again when older than two seconds.

    Looked at on use and not by a timer, so that an idle gateway leaves its upstream alone. What was
    known stays in use while the upstream does not answer.

    Args:
        upstream: Whose models they are.
        clock: Seconds that only grow.
    """

    def __init__(self, upstream: Upstream, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._upstream = upstream
        self._clock = clock
        self._digests: dict[str, str] = {}
        self._due_s = float("-inf")
        self._looking = asyncio.Lock()

    async def digest_of(self, model_key: str) -> str | None:
        """Return a model's digest; None if the upstream does not have it or was never reached."""
        if self._clock() >= self._due_s:
            await self._look()
        return self._digests.get(model_key) or None

    async def _look(self) -> None:
        async with self._looking:
            if self._clock() < self._due_s:
                return  # somebody else has looked meanwhile
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    self._digests = await self._fetch()
            except (OllamaLabError, TimeoutError) as error:
                self._due_s = self._clock() + _RETRY_S
                _log.warning("digests not refreshed: %s: %s", type(error).__name__, error)
            else:
                self._due_s = self._clock() + _FRESH_S

    async def _fetch(self) -> dict[str, str]:
        body = bytearray()
        async with await self._upstream.send(Request(method="GET", path="/api/tags")) as reply:
            if reply.status != _OK:
                raise BadReply(f"GET /api/tags was answered with status {reply.status}")
            async for chunk in reply.chunks():
                body += chunk
                if len(body) > _MAX_LIST_BYTES:
                    break
        return listed_digests(bytes(body))
