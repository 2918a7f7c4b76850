"""HTTP in: an HTTP/1.1 server that gives each request, read whole, to one handler."""

from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate
from http import HTTPStatus

from ollamalab.gateway.client_connection import ClientConnection, Handler
from ollamalab.gateway.incoming import Gate, Incoming
from ollamalab.gateway.outgoing import Outgoing
from ollamalab.settings.limits import ServerLimits

__all__ = ["Handler", "HttpServer", "Incoming", "Outgoing", "ServerLimits"]

_SWEEP_INTERVAL_S = 1.0
_WAITING_TO_BE_ACCEPTED = 1024


class HttpServer:
    """Serves HTTP on one listening socket.

    Args:
        handler: Answers one request; it is cancelled when its client hangs up. A request whose
            ``problem`` is set wants that problem as its answer.
        limits: What one client may take.
        gate: Asked about a request with a long body before that is read; None lets everybody send it.
    """

    def __init__(
        self, handler: Handler, limits: ServerLimits | None = None, gate: Gate | None = None
    ) -> None:
        self.handler = handler
        self.gate = gate
        self.limits = limits or ServerLimits()
        self.is_stopping = False
        self.connections: set[ClientConnection] = set()
        self._first_lines: dict[int, bytes] = {}  # status line and Date by status; of this second
        self._listener: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """How many clients are connected."""
        return len(self.connections)

    @property
    def active_requests(self) -> int:
        """How many requests are being answered."""
        return sum(connection.is_busy for connection in self.connections)

    async def start(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: ClientConnection(self, loop), sock=sock, backlog=_WAITING_TO_BE_ACCEPTED
        )
        self._sweep(loop)

    async def stop(self, deadline_s: float) -> None:
        """Stop accepting, let requests that are being answered finish, then cut.

        Args:
            deadline_s: Seconds that they get; 0 cuts at once.
        """
        self.is_stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.finish()
        try:
            async with asyncio.timeout(deadline_s):
                await self._until_empty()
        except TimeoutError:
            for connection in list(self.connections):
                connection.cut()
            await self._until_empty()
        finally:
            if self._sweeping is not None:
                self._sweeping.cancel()
        if self._listener is not None:
            await self._listener.wait_closed()

    def status_and_date(self, status: int) -> bytes:
        """Return status line and ``Date``."""
        lines = self._first_lines.get(status)
        if lines is None:
            date = formatdate(usegmt=True)
            lines = f"HTTP/1.1 {status} {_phrase(status)}\r\ndate: {date}\r\n".encode()
            self._first_lines[status] = lines
        return lines

    def forget(self, connection: ClientConnection) -> None:
        """Note that a connection and its task are over."""
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()

    async def _until_empty(self) -> None:
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at every connection's patience: one timer for all costs less than one for each."""
        self._first_lines.clear()
        now_s = time.perf_counter()
        for connection in list(self.connections):
            connection.check(now_s)
        limits = self.limits
        patience_s = min(
            limits.idle_timeout_s,
            limits.head_timeout_s,
            limits.body_timeout_s,
            limits.write_timeout_s,
            limits.linger_s,
        )
        self._sweeping = loop.call_later(min(_SWEEP_INTERVAL_S, patience_s / 2), self._sweep, loop)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
