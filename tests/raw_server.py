"""A server that does what a test says, byte by byte; and the ways to check that nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ollamalab.protocol.upstream import Reply

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """One connection to the server, seen from the server.

    Attributes:
        number: Which connection this is, from 0.
        requests: What it has sent so far: head and body of each.
    """

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.requests: list[bytes] = []
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Read one request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lengths = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
        self.requests.append(head + await self.reader.readexactly(sum(lengths)))
        return self.requests[-1]

    async def write(self, data: bytes) -> None:
        """Write; wait where the client does not take it."""
        self.writer.write(data)
        await self.writer.drain()

    async def hung_up(self) -> None:
        """Wait until the client has closed; it sends nothing more."""
        with contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
            assert await self.reader.read() == b""


Handler = Callable[[Peer], Awaitable[None]]


class RawServer:
    """What a test sees of its server.

    Attributes:
        url: Where it listens.
        peers: Connections so far, in order.
    """

    def __init__(self, handle: Handler) -> None:
        self.url = ""
        self.peers: list[Peer] = []
        self._handle = handle
        self._ended = 0
        self._changed = asyncio.Event()

    @property
    def requests(self) -> list[bytes]:
        """All requests, those of the first connection first."""
        return [request for peer in self.peers for request in peer.requests]

    async def ended(self, count: int) -> None:
        """Wait until so many connections are done with."""
        while self._ended < count:
            self._changed.clear()
            await self._changed.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Do what the test says on one connection, then close it."""
        peer = Peer(len(self.peers), reader, writer)
        self.peers.append(peer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has gone
                await self._handle(peer)
        finally:
            writer.close()
            self._ended += 1
            self._changed.set()


@asynccontextmanager
async def raw(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    """Run a server that handles each connection so; the connection closes when the handler returns."""
    server = RawServer(handle)
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                failures.append(outcome)
        for peer in server.peers:
            peer.writer.transport.abort()
    assert failures == []


def always(answer: bytes) -> Handler:
    """Give every request on every connection this answer."""

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.write(answer)

    return handle


def once(answer: bytes) -> Handler:
    """Give the first request on every connection this answer, then close."""

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(answer)

    return handle


async def body_of(reply: Reply) -> bytes:
    """Return the whole body."""
    return b"".join([chunk async for chunk in reply.chunks()])


async def until(fact: Callable[[], bool]) -> None:
    """Turn the loop until something is so."""
    while not fact():  # noqa: ASYNC110 - sockets close without an event for us
        await asyncio.sleep(0.001)


def open_sockets() -> int:
    """Return how many sockets this process has open."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found += str(entry.readlink()).startswith("socket:")
    return found


def claims(names: Mapping[str, Any]) -> list[Callable[[], Coroutine[None, None, None]]]:
    """Return the tests of a module that are coroutines without parameters, to run on another loop."""
    return [
        found
        for name, found in names.items()
        if name.startswith("test_")
        and inspect.iscoroutinefunction(found)
        and not inspect.signature(found).parameters
    ]
