"""A stretch of the way between a client and a server: it sees what passes, and breaks it when told to.

Placed before a server it gives the server's side of the account: each request as it arrived there and each
answer as it left, judged by the same rules as at the client. What differs between the two was lost between.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httptools
import msgspec

from ollamalab.client.capture import Capture
from ollamalab.errors import BadReply, SettingsError
from ollamalab.protocol.upstream import Request
from ollamalab.records import RequestRecord

_GENERATIONS = ("/api/chat", "/api/generate")
_READ_BYTES = 64 * 1024
_STEPS_PER_S = 10  # of a slow reader

#: What a slow reader's socket holds; the kernel doubles it and takes no less than about this.
_NARROW_BYTES = 2048


class Trouble(StrEnum):
    """What goes wrong with an answer on its way."""

    CUT = "cut"  #: the connection breaks after the first piece, towards both sides
    LOSE = "lose"  #: all of it is taken from the server, then the connection to the client breaks


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One request that went through.

    Attributes:
        prompt: What it said, by which it is recognised at both ends.
        record: What was seen of it, from the server's side.
    """

    prompt: str
    record: RequestRecord


def prompt_of(request: Request) -> str:
    """Return what a request of ``/api/generate`` says; "" for others."""
    return _prompt(request.body)


class Tap:
    """Passes everything on to one server, over http; used with ``async with``.

    Attributes:
        url: Where it listens.
        passed: The generations that are over, in the order of their ends.
        troubles: Prompts whose answers something happens to.
    """

    def __init__(self, upstream: str, *, pace_bytes_s: float | None = None) -> None:
        """Prepare; nothing is opened yet.

        Args:
            upstream: URL of the server.
            pace_bytes_s: How fast answers are read from it; None for as fast as they come.

        Raises:
            SettingsError: It wants TLS, through which nothing can be seen.
        """
        if not upstream.startswith("http://"):
            raise SettingsError(f"{upstream}: what passes cannot be seen through TLS; give an http address")
        self.url = ""
        self.passed: list[Passed] = []
        self.troubles: dict[str, Trouble] = {}
        self._upstream = upstream
        self._pace_bytes_s = pace_bytes_s
        self._under_way: set[_Exchange] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._moved = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def under_way(self) -> int:
        """Generations that are being answered."""
        return len(self._under_way)

    async def until_text(self) -> None:
        """Wait until some answer is under way and a first piece of it has come."""
        while not any(exchange.capture.reads for exchange in self._under_way):
            self._moved.clear()
            await self._moved.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side closes it."""
        try:
            server_reader, server_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self._begin, self._end)
        there = asyncio.ensure_future(self._to_server(reader, server_writer, link))
        back = asyncio.ensure_future(self._to_client(server_reader, writer, link))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            link.close(is_server_gone=back.done() and not link.is_cut)
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            link.close(is_server_gone=False)
            server_writer.transport.abort()
            if link.is_cut:
                writer.transport.abort()
            writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = urlsplit(self._upstream)
        host, port = address.hostname or "", address.port or 80
        if self._pace_bytes_s is None:
            return await asyncio.open_connection(host, port)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, peer = found[0]
        narrow = socket.socket(family, kind, protocol)
        try:
            # Before it connects: the window that it announces follows from it.
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
            narrow.setblocking(False)
            await asyncio.get_running_loop().sock_connect(narrow, peer)
            return await asyncio.open_connection(sock=narrow, limit=_NARROW_BYTES)
        except BaseException:
            narrow.close()
            raise

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        with suppress(ConnectionError, httptools.HttpParserError):
            while data := await reader.read(_READ_BYTES):
                link.ask(data)
                writer.write(data)
                await writer.drain()

    async def _to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link
    ) -> None:
        with suppress(ConnectionError, httptools.HttpParserError):
            while data := await self._read(reader):
                link.answer(data)
                self._moved.set()
                if link.is_cut:
                    return
                if not link.is_held:
                    writer.write(data)
                    await writer.drain()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        if self._pace_bytes_s is None:
            return await reader.read(_READ_BYTES)
        await asyncio.sleep(1 / _STEPS_PER_S)
        return await reader.read(max(1, round(self._pace_bytes_s / _STEPS_PER_S)))

    def _begin(self, exchange: _Exchange) -> None:
        exchange.trouble = self.troubles.get(exchange.prompt)
        self._under_way.add(exchange)

    def _end(self, exchange: _Exchange) -> None:
        self._under_way.discard(exchange)
        exchange.capture.end_s = time.perf_counter()
        self.passed.append(Passed(prompt=exchange.prompt, record=exchange.capture.record(self._upstream)))


@dataclass(eq=False, slots=True)
class _Exchange:
    """One generation that is being answered."""

    prompt: str
    capture: Capture
    trouble: Trouble | None = None


class _Link:
    """One connection as both of its ends see it: which exchange is under way on it.

    Attributes:
        is_cut: Whether it is to be broken now.
        is_held: Whether what comes is not to be passed on.
    """

    def __init__(self, begin: Callable[[_Exchange], None], end: Callable[[_Exchange], None]) -> None:
        self.is_cut = self.is_held = False
        self._begin = begin
        self._end = end
        self._exchange: _Exchange | None = None
        self._asking = _Question(self._asked)
        self._request = httptools.HttpRequestParser(self._asking)
        self._response = httptools.HttpResponseParser(self)

    def ask(self, data: bytes) -> None:
        """Take bytes of a request."""
        self._request.feed_data(data)

    def answer(self, data: bytes) -> None:
        """Take bytes of an answer."""
        exchange, before = self._exchange, self._reads
        self._response.feed_data(data)
        if exchange is None or exchange.trouble is None:
            return
        is_over = self._exchange is None
        if exchange.trouble is Trouble.CUT:
            self.is_cut = is_over or 0 < before < len(exchange.capture.reads)
        else:
            self.is_held, self.is_cut = True, is_over
        if self.is_cut and not is_over:
            self.close(is_server_gone=False)

    def close(self, *, is_server_gone: bool) -> None:
        """End the exchange that is under way, if there is one: the connection has closed."""
        if self._exchange is not None:
            if is_server_gone:
                self._exchange.capture.failure = BadReply("the server closed the connection")
            else:
                self._exchange.capture.is_cancelled = True
            self._finish()

    @property
    def _reads(self) -> int:
        return len(self._exchange.capture.reads) if self._exchange is not None else 0

    def _asked(self, request: Request) -> None:
        if request.path in _GENERATIONS:
            now_s = time.perf_counter()
            capture = Capture(request=request, intended_s=now_s, sent_s=now_s)
            self._exchange = _Exchange(_prompt(request.body), capture)
            self._begin(self._exchange)

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._end(exchange)

    # The parser of answers calls these.

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.capture.status = self._response.get_status_code()
            self._exchange.capture.headers_s = time.perf_counter()

    def on_body(self, piece: bytes) -> None:
        if self._exchange is not None:
            self._exchange.capture.reads.append((time.perf_counter(), piece))

    def on_message_complete(self) -> None:
        self._finish()


class _Question:
    """Puts the requests of one connection together, for their parser."""

    def __init__(self, asked: Callable[[Request], None]) -> None:
        self._asked = asked
        self._path = self._body = b""

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, part: bytes) -> None:
        self._path += part

    def on_body(self, piece: bytes) -> None:
        self._body += piece

    def on_message_complete(self) -> None:
        self._asked(Request(method="POST", path=self._path.decode(), body=self._body))


class _Said(msgspec.Struct):
    prompt: str = ""


def _prompt(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Said).prompt
    except msgspec.MsgspecError:
        return ""
