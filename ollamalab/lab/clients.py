"""The client libraries that people use, each with a connection that is kept or made anew.

Terms. *Kept*: one client, whose pool keeps its connection. *New connection*: one client that closes its
connection after each request. *New client*: a client built for each request and closed after it, which is
what the one-line calls ``requests.post`` and ``httpx.post`` do. *Health check first*: a kept connection,
and a cheap question over it before each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec

from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.errors import BadReply
from ollamalab.protocol.upstream import Request

#: A question that costs the server next to nothing and that every library can ask.
CHEAP = Request(method="GET", path="/api/ps")

_TIMEOUT_S = 60.0


class Reuse(StrEnum):
    """What becomes of the connection."""

    KEPT = "kept"
    RECONNECTED = "new connection"
    REBUILT = "new client"
    CHECKED = "health check first"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A whole reply."""

    status: int
    body: bytes


Send = Callable[[Request], Awaitable[Answered]]

#: Opens a client of a URL; the flag says whether it keeps its connection.
Opener = Callable[[str, bool], AbstractAsyncContextManager[Send]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """A client library.

    Attributes:
        name: As it is imported.
        open: Opens a client.
        ways: What it can do with a connection.
    """

    name: str
    open: Opener
    ways: tuple[Reuse, ...] = (Reuse.KEPT, Reuse.RECONNECTED, Reuse.REBUILT)

    def arms(self, load: str) -> dict[str, Reuse]:
        """Return its ways by the names of their arms under a load."""
        return {arm_of(load, self.name, way): way for way in self.ways}

    @property
    def why_absent(self) -> str | None:
        """Why it cannot be measured; None if it can."""
        return None if find_spec(self.name) else f"the package {self.name} is not installed"


def arm_of(load: str, library: str, way: Reuse) -> str:
    """Return the name of the arm of a library with its way under a load, "cheap: httpx, kept"."""
    return f"{load}: {library}, {way}"


# The libraries. Each refusal of theirs becomes ours; what they build on opening is part of a new client.


@asynccontextmanager
async def _ours(url: str, is_kept: bool) -> AsyncIterator[Send]:
    async def exchange(connection: OllamaConnection, request: Request) -> Answered:
        async with await connection.send(request) as reply:
            return Answered(status=reply.status, body=b"".join([chunk async for chunk in reply.chunks()]))

    async def send_anew(request: Request) -> Answered:
        async with OllamaConnection(url, settings) as connection:
            return await exchange(connection, request)

    settings = ConnectionSettings(progress_timeout_s=_TIMEOUT_S)
    if not is_kept:
        yield send_anew
        return
    async with OllamaConnection(url, settings) as kept:

        async def send(request: Request) -> Answered:
            return await exchange(kept, request)

        yield send


@asynccontextmanager
async def _httpx(url: str, is_kept: bool) -> AsyncIterator[Send]:
    import httpx

    limits = httpx.Limits() if is_kept else httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=_TIMEOUT_S, trust_env=False) as client:

        async def send(request: Request) -> Answered:
            with _refusals(url, httpx.HTTPError):
                reply = await client.request(request.method, request.path, content=request.body)
            return Answered(status=reply.status_code, body=reply.content)

        yield send


@asynccontextmanager
async def _aiohttp(url: str, is_kept: bool) -> AsyncIterator[Send]:
    import aiohttp

    connector = aiohttp.TCPConnector(force_close=not is_kept)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout) as session:

        async def send(request: Request) -> Answered:
            with _refusals(url, aiohttp.ClientError, TimeoutError):
                async with session.request(request.method, request.path, data=request.body) as reply:
                    return Answered(status=reply.status, body=await reply.read())

        yield send


@asynccontextmanager
async def _ollama(url: str, is_kept: bool) -> AsyncIterator[Send]:
    import httpx
    import ollama

    limits = httpx.Limits() if is_kept else httpx.Limits(max_keepalive_connections=0)
    async with ollama.AsyncClient(url, limits=limits, timeout=_TIMEOUT_S, trust_env=False) as client:

        async def send(request: Request) -> Answered:
            with _refusals(url, httpx.HTTPError, ConnectionError):
                try:
                    if request.path == CHEAP.path:
                        said: Any = await client.ps()
                    else:
                        said = await client.generate(**msgspec.json.decode(request.body))
                except ollama.ResponseError as error:
                    return Answered(status=error.status_code, body=str(error).encode())
            return Answered(status=200, body=said.model_dump_json().encode())

        yield send


@asynccontextmanager
async def requests_session(
    url: str, is_kept: bool, *, retry: Mapping[str, Any] | None = None
) -> AsyncIterator[Send]:
    """Give calls through a ``requests.Session``.

    Args:
        url: The server.
        is_kept: Whether it keeps its connections.
        retry: Arguments of urllib3's ``Retry`` for its adapter; None for none.
    """
    requests = import_module("requests")  # has no types of its own

    def exchange(request: Request) -> Answered:
        where = f"{url}{request.path}"
        reply = session.request(request.method, where, data=request.body, timeout=_TIMEOUT_S)
        if not is_kept:  # "Connection: close" would leave it to the server
            session.get_adapter(where).close()
        return Answered(status=reply.status_code, body=reply.content)

    with requests.Session() as session:
        session.trust_env = False
        if retry is not None:
            again = import_module("urllib3.util.retry").Retry(**retry)
            session.mount(url, import_module("requests.adapters").HTTPAdapter(max_retries=again))

        async def send(request: Request) -> Answered:
            with _refusals(url, requests.RequestException):
                # It blocks, so it gets a thread: 0.1 ms for each of its arms.
                return await asyncio.to_thread(exchange, request)

        yield send


@contextmanager
def _refusals(url: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise BadReply(f"{url}: {type(error).__name__}: {error}", url=url) from error


#: Measured by notebook 04, in order. Ours has no way to give up a connection but to close.
LIBRARIES = (
    Library(name="ollamalab", open=_ours, ways=(Reuse.KEPT, Reuse.RECONNECTED, Reuse.CHECKED)),
    Library(name="httpx", open=_httpx),
    Library(name="aiohttp", open=_aiohttp),
    Library(name="requests", open=requests_session),
    Library(name="ollama", open=_ollama),
)


@asynccontextmanager
async def calls(library: Library, url: str, way: Reuse) -> AsyncIterator[Send]:
    """Give a function that sends one request to a server and reads the whole reply, in one of the ways.

    Building and closing a new client is part of each call, and so is a health check.
    """
    if way is Reuse.REBUILT:

        async def build_and_send(request: Request) -> Answered:
            async with library.open(url, True) as send:
                return await send(request)

        yield build_and_send
        return
    async with library.open(url, way is not Reuse.RECONNECTED) as send:

        async def check_and_send(request: Request) -> Answered:
            await send(CHEAP)
            return await send(request)

        yield check_and_send if way is Reuse.CHECKED else send
