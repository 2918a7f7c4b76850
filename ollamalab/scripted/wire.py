"""Just enough HTTP/1.1 to be measured: one request at a time, kept-alive connections, chunked bodies."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast


class Exchange(Protocol):
    """A request in progress, as its connection sees it."""

    def hang_up(self) -> None:
        """The client went away."""
        ...


#: Given the connection, method, path, body and the moment the request was complete; returns what
#: is still in progress, or None if it has been answered.
Handler = Callable[["Connection", str, str, bytes, float], Exchange | None]


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, handler: Handler, opened: set[Connection]) -> None:
        self._handler = handler
        self._opened = opened
        self._buffer = bytearray()
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport; small writes leave at once."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._opened.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """End what was in progress."""
        self._opened.discard(self)
        if self._exchange is not None:
            self._exchange.hang_up()

    def data_received(self, data: bytes) -> None:
        """Collect bytes; a whole request goes to the handler."""
        at_s = time.perf_counter()
        self._buffer += data
        if self._exchange is None:
            self._take_request(at_s)

    def respond(self, status: int, body: bytes, *, content_type: str = "application/json") -> None:
        """Write a whole reply."""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {content_type}\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._next()

    def start_stream(self) -> None:
        """Write the head of an NDJSON stream."""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def write_line(self, line: bytes) -> None:
        """Write one line as one chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(line), line))

    def end_stream(self) -> None:
        """Write the proper end of a stream."""
        self._transport.write(b"0\r\n\r\n")
        self._next()

    def break_protocol(self) -> None:
        """Write bytes that are no HTTP, and hang up."""
        self._transport.write(b"\x16\x03\x01 not HTTP\r\n\r\n")
        self._transport.close()

    def reset(self) -> None:
        """Hang up in the middle: the client sees a reset."""
        linger = struct.pack("ii", 1, 0)
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._transport.abort()

    def _next(self) -> None:
        self._exchange = None
        if self._buffer:
            self._take_request(time.perf_counter())

    def _take_request(self, at_s: float) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *fields = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
        whole = end + 4 + int(headers.get("content-length", 0))
        if len(self._buffer) < whole:
            return
        body = bytes(self._buffer[end + 4 : whole])
        del self._buffer[:whole]
        method, path, _ = first.split(" ", 2)
        exchange = self._handler(self, method, path, body, at_s)
        if exchange is not None:
            self._exchange = exchange
