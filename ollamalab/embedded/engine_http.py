"""HTTP to an engine: one request on a connection of its own, and its answer as it arrives.

As in Ollama, nothing is pooled: llama.cpp hangs up after a stream without having said so, a connection
that lay idle may close under the next request, and a new one acknowledges small packets at once. It
costs 0.2 ms on loopback.

By hand rather than with aiohttp's client, because the engine computes on the cores that this runs on and
fills their caches with weights, token by token: what counts is how much code a token touches. Measured
with one stream on 2 cores, CPU time of the whole front per token and per request: about 200 us and 2.7 ms
with aiohttp, 180 us and 2.0 ms with this.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ollamalab.errors import BadReply

_END_OF_HEAD = b"\r\n\r\n"
_MAX_HELD_BYTES = 256 * 1024  # more than that is left in the socket until somebody reads


async def send(url: str, method: str, path: str, body: bytes = b"") -> EngineReply:
    """Send a request and return its answer when status and headers are there.

    Args:
        url: Of the engine, ``http://HOST:PORT``.
        method: Such as POST.
        path: Such as ``/completion``.
        body: JSON, or nothing.

    Raises:
        OSError: Nobody listens, or the connection broke.
        BadReply: The answer is not HTTP.
    """
    address = url.removeprefix("http://")
    host, _, port = address.rpartition(":")
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    request = head.encode() + body
    _, reply = await loop.create_connection(lambda: EngineReply(request), host, int(port))
    try:
        await reply.begin()
    except BaseException:
        reply.close()
        raise
    return reply


class EngineReply(asyncio.Protocol):
    """An answer whose body is still arriving; ``close`` it in any case.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, request: bytes) -> None:
        """Take what to send; ``send`` does the rest."""
        self.status = 0
        self._request = request
        self._held = b""
        self._is_paused = False
        self._loop = asyncio.get_running_loop()
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self._body: Unframed

    async def begin(self) -> None:
        """Wait for status and headers.

        Raises:
            OSError: The connection broke.
            BadReply: The answer is not HTTP.
        """
        while _END_OF_HEAD not in self._held:
            await self._more()
        head, _, self._held = self._held.partition(_END_OF_HEAD)
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            self.status = int(first.split(" ")[1])
            is_chunked = headers.get("transfer-encoding") == "chunked"
            self._body = Unframed(None if is_chunked else int(headers.get("content-length", "0")))
        except (ValueError, IndexError) as error:
            raise BadReply(f"the answer is not HTTP ({error})") from error

    async def chunk(self) -> bytes:
        """Return what has come of the body since the last call, waiting for some; nothing at its end.

        Raises:
            OSError: The connection broke.
            BadReply: The body broke off, or its framing makes no sense.
        """
        while not self._body.is_whole:
            if not self._held:
                await self._more()
            data, self._held = self._held, b""
            if body := self._body.feed(data):
                return body
        return b""

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            OSError: The connection broke.
            BadReply: The body broke off, or its framing makes no sense.
        """
        parts = []
        while part := await self.chunk():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def _more(self) -> asyncio.Future[None]:
        """Return what is done when more of the answer has come; called with nothing left to do."""
        if self._failure:
            raise self._failure
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        self._waiter = self._loop.create_future()
        return self._waiter

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Keep a part of the answer, and tell whoever waits."""
        self._held = self._held + data if self._held else data
        if len(self._held) > _MAX_HELD_BYTES and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remember why nothing more is coming."""
        self._failure = exc or BadReply("the answer broke off")
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


class Unframed:
    """A body without its framing: HTTP's chunks, or a known length. Pure.

    Attributes:
        is_whole: Whether the end has come.
    """

    def __init__(self, length_bytes: int | None) -> None:
        """Take the length of the body; None if it comes in chunks."""
        self.is_whole = length_bytes == 0
        self._is_chunked = length_bytes is None
        self._left_bytes = length_bytes or 0  # of the body, or of the chunk
        self._line = b""  # the beginning of one that is not complete yet

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body that is in these bytes; what follows the end is left out.

        Raises:
            BadReply: No chunk begins where one should.
        """
        if self._line:
            data, self._line = self._line + data, b""
        body = b""
        at = 0
        while at < len(data) and not self.is_whole:
            if self._left_bytes:
                part = data[at : at + self._left_bytes]
                body = body + part if body else part
                at += len(part)
                self._left_bytes -= len(part)
                self.is_whole = not self._is_chunked and not self._left_bytes
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._line = data[at:]
                break
            if line_end > at:  # an empty line ends the chunk before
                self._left_bytes = _chunk_size(data[at:line_end])
                self.is_whole = not self._left_bytes
            at = line_end + 2
        return body


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line, 16)
    except ValueError:
        size = -1
    if size < 0:
        raise BadReply(f"no chunk begins with {line[:40]!r}")
    return size
