"""One answer on its way to the client: head, body, and how its end is marked on the wire."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ollamalab.gateway.client_connection import ClientConnection
    from ollamalab.gateway.incoming import Incoming

_NO_CONTENT, _NOT_MODIFIED = 204, 304

#: Of an upstream's reply: made anew on this hop, or ours to say.
_OWN_HEADERS = frozenset(
    ("connection", "content-length", "date", "keep-alive", "proxy-connection", "server", "trailer")
) | {"transfer-encoding", "upgrade"}

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class Outgoing:
    """Writes the answer to one request.

    The head is held back until the first piece of the body, and leaves with it in one write.

    Args:
        connection: Where it goes.
        incoming: The request.
    """

    __slots__ = (
        "_connection",
        "_has_body",
        "_head",
        "_is_chunked",
        "_is_http_1_0",
        "_left_bytes",
        "closes",
        "is_over",
        "is_started",
    )

    def __init__(self, connection: ClientConnection, incoming: Incoming) -> None:
        self.is_started = False  #: whether a status was given
        self.is_over = False  #: whether nothing more can be written
        self.closes = incoming.is_last  #: whether the connection closes after this answer
        self._connection = connection
        self._head = b""
        self._has_body = incoming.method != "HEAD"
        self._is_http_1_0 = incoming.is_http_1_0
        self._is_chunked = False
        self._left_bytes: int | None = None  # of a body of known length

    @property
    def backlog_bytes(self) -> int:
        """What was written and the system has not taken yet, since the client is behind."""
        connection = self._connection
        return 0 if connection.is_lost else connection.transport.get_write_buffer_size()

    def start(self, status: int, headers: Mapping[str, str], *, length: int | None) -> None:
        """Give status and headers.

        Args:
            status: From 200 on.
            headers: Names in lower case; those of the hop are left out.
            length: Bytes of the body; None if its end will tell.

        Raises:
            ValueError: A header that would break the head in two, or is not Latin-1.
        """
        if self.is_started:
            raise RuntimeError("this answer has its status already")
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if name not in _OWN_HEADERS]
        block = "".join(lines).encode("latin-1")
        if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines):
            raise ValueError("a header with a line break in it")
        self.is_started = True
        framing = self._frame(status, length)
        if self.closes or self._connection.is_stopping:
            self.closes = True
            framing += b"connection: close\r\n"
        elif self._is_http_1_0:
            framing += b"connection: keep-alive\r\n"
        self._head = b"%b%b%b\r\n" % (self._connection.status_and_date(status), block, framing)

    def write(self, data: bytes) -> None:
        """Write a part of the body.

        Raises:
            ValueError: It is longer than announced.
        """
        if not data or not self._has_body or self.is_over:
            return
        is_first = self._head
        framed = self._framed(data)
        if is_first or not self._is_chunked:
            self._connection.write(framed)
        else:
            self._connection.write_soon(framed)

    def lag(self) -> asyncio.Future[None] | None:
        """Return what to wait for until the client has taken enough; None if it has.

        A client that takes nothing for too long is dropped.
        """
        return self._connection.unblocked() if self._connection.is_blocked else None

    def end(self, data: bytes = b"") -> None:
        """Say that the body is whole; a last part given here leaves in the same write.

        Raises:
            ValueError: It is shorter or longer than announced.
        """
        if self.is_over:
            return
        last = self._framed(data if self._has_body else b"")
        if self._left_bytes:
            raise ValueError(f"a body {self._left_bytes} bytes shorter than announced")
        if self._is_chunked:
            last += b"0\r\n\r\n"
        if last:
            self._connection.write(last)
        self.is_over = True

    def abort(self) -> None:
        """Cut the answer off, so that it does not look whole to the client."""
        if self.is_over:
            return
        self.is_over = self.closes = True
        self._head = b""
        connection = self._connection
        connection.write(b"")  # what is held
        if connection.is_lost:
            return
        if self.is_started and self._has_body and not self._is_chunked and self._left_bytes is None:
            # The end of such a body is the end of the connection: only a reset can say "not whole".
            peer: socket.socket = connection.transport.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            connection.drop()
        else:
            connection.transport.close()

    def _frame(self, status: int, length: int | None) -> bytes:
        """Decide how the end of the body is marked; return the header that says so."""
        if status in (_NO_CONTENT, _NOT_MODIFIED):
            self._has_body = False
        elif length is not None:
            self._left_bytes = length if self._has_body else 0
            return b"content-length: %d\r\n" % length
        elif self._has_body and self._is_http_1_0:
            self.closes = True
        elif self._has_body:
            self._is_chunked = True
            return b"transfer-encoding: chunked\r\n"
        return b""

    def _framed(self, data: bytes) -> bytes:
        """Return a part of the body as it goes on the wire, behind the head if that is still here."""
        head, self._head = self._head, b""
        if self._is_chunked:
            return b"%b%x\r\n%b\r\n" % (head, len(data), data) if data else head
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                raise ValueError("a body longer than announced")
        return head + data if head else data
