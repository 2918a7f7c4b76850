"""A gateway as tests use it: on the tests' own loop, in front of whatever they give it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from ollamalab.gateway.run import Running, opened
from ollamalab.settings.files import gateway_settings

HELLO = [{"role": "user", "content": "Say hello."}]


@dataclass(frozen=True)
class Reply:
    """A reply that has been read.

    Attributes:
        status: HTTP status.
        headers: Names in any case.
        body: All of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of NDJSON, or the one of JSON."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]


@dataclass(frozen=True)
class Service:
    """A running gateway.

    Attributes:
        url: Where it listens.
        http: A client session for it.
        running: The gateway itself.
    """

    url: str
    http: aiohttp.ClientSession
    running: Running

    async def status(self) -> dict[str, Any]:
        """Return ``/lab/status``."""
        async with self.http.get("/lab/status") as reply:
            return json.loads(await reply.read())

    async def until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status says so, and return it; nothing tells when."""
        while not is_so(status := await self.status()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return status

    async def at_rest(self) -> dict[str, Any]:
        """Wait until nothing is under way but the question itself; return the status."""
        return await self.until(
            lambda now: (
                now["active_requests"] <= 1
                and now["queue"]["active"] == now["queue"]["waiting"] == 0
                and all(upstream["in_flight"] == 0 for upstream in now["upstreams"])
            )
        )

    async def chat(self, **fields: Any) -> Reply:
        """Return the answer to a chat."""
        headers = fields.pop("headers", None)
        return await self.post("/api/chat", {"model": "scripted", "messages": HELLO, **fields}, headers)

    async def post(self, path: str, body: object, headers: Mapping[str, str] | None = None) -> Reply:
        """Return the answer to a POST."""
        async with self.http.post(path, json=body, headers=headers) as reply:
            return Reply(reply.status, reply.headers, await reply.read())


@asynccontextmanager
async def gateway(*upstreams: str, **options: Any) -> AsyncIterator[Service]:
    """Give a gateway on a free port.

    Args:
        upstreams: Addresses, as ``--upstream`` takes them.
        options: Keys of its settings.
    """
    settings = gateway_settings(
        options={"upstream": list(upstreams), "port": 0, "stop_timeout": 0, **options}
    )
    async with (
        opened(settings) as running,
        aiohttp.ClientSession(running.url, connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        yield Service(running.url, http, running)
