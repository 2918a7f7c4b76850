"""One client's connection to our HTTP server: whose turn it is, and what becomes of a client that goes.

A client that goes away cancels the handler of its request at once, streaming or not. A client that only
shuts down its sending half has gone away too, as in Go's net/http, hence as in Ollama: what the handler
can answer without waiting still reaches it, what would have to wait is cancelled. As there, a request
pipelined behind the running one hides the end of input until its own turn: the ones before it are
answered, and the last is cancelled where it first waits.

Requests of one connection are answered in order, one at a time; while one waits behind the one that is
being answered, nothing more is read from that client. Each gives the other connections a turn before the
next, and waits until the client has taken what it was sent.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from ollamalab.gateway.incoming import Incoming, RequestReader
from ollamalab.gateway.outgoing import Outgoing

if TYPE_CHECKING:
    from ollamalab.gateway.server import HttpServer

#: A client that is behind has to take so much, as a mean over its write timeout: one that took a byte now
#: and then could hold its place at an upstream for hours. Kestrel's ``MinResponseDataRate`` is the same.
SLOWEST_BYTES_PER_S = 240

#: Answers one request; cancelled when its client hangs up.
Handler = Callable[[Incoming, Outgoing], Awaitable[None]]

logger = logging.getLogger(__name__)

#: What may wait for a turn of the loop: small pieces, and not many.
_HELD_BYTES = 4096
_HELD_PIECES = 64

_INTERNAL_ERROR = 500
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JSON_TYPE = "application/json; charset=utf-8"
_BROKEN = b'{"error":"internal server error"}'
_TOO_MANY_BODY = b'{"error":"too many connections"}'
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json; charset=utf-8\r\n"
    b"content-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%b"
    % (len(_TOO_MANY_BODY), _TOO_MANY_BODY)
)


class ClientConnection(asyncio.Protocol):
    """One client's connection.

    Attributes:
        transport: Where answers are written.
        is_lost: Whether nothing can be written any more.
        is_blocked: Whether the client is far behind in taking what was written.
        written_bytes: All that was handed to the transport.
        status_and_date: The server's.
    """

    __slots__ = (
        "_handler",
        "_held",
        "_is_busy",
        "_is_half_closed",
        "_is_lingering",
        "_is_over",
        "_limits",
        "_loop",
        "_quiet_since_s",
        "_read_s",
        "_reader",
        "_server",
        "_slow_since_s",
        "_taken_bytes",
        "_task",
        "_unblocked",
        "_wanted",
        "is_blocked",
        "is_lost",
        "status_and_date",
        "transport",
        "written_bytes",
    )

    transport: asyncio.Transport
    _reader: RequestReader

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self.is_lost = False
        self.is_blocked = False
        self.written_bytes = 0
        self.status_and_date = server.status_and_date
        self._server = server
        self._handler = server.handler
        self._limits = server.limits
        self._loop = loop
        self._is_busy = False
        self._task: asyncio.Task[None] | None = None  # answers one request after the other
        self._wanted: asyncio.Future[Incoming] | None = None  # what it waits for when it has none
        self._held: list[bytes] = []
        self._unblocked: asyncio.Future[None] | None = None
        self._is_half_closed = False
        self._is_lingering = False
        self._is_over = False
        self._taken_bytes = 0
        self._read_s = self._quiet_since_s = self._slow_since_s = time.perf_counter()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self._is_busy

    @property
    def is_stopping(self) -> bool:
        """Whether the server is, so that this answer is the connection's last."""
        return self._server.is_stopping

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in, or say that there are too many."""
        self.transport = cast("asyncio.Transport", transport)  # which uvloop's do not inherit from
        peer = transport.get_extra_info("peername")
        is_tcp = isinstance(peer, tuple)
        if is_tcp:  # asyncio's own loop leaves Nagle's algorithm on if the listener has no protocol number
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = RequestReader(self._limits, peer[0] if is_tcp else "", self._server.gate)
        server = self._server
        server.connections.add(self)
        if server.is_stopping:
            transport.close()
        elif len(server.connections) > self._limits.max_connections:
            self._reader.is_over = True
            self.write(_TOO_MANY)
            self._linger()

    def data_received(self, data: bytes) -> None:
        """Read what arrived, and begin to answer what is whole."""
        self._read_s = time.perf_counter()
        reader = self._reader
        reader.feed(data, self._read_s)
        if not self._is_busy:
            if reader.ready:
                self._answer()
            elif reader.wants_continue:
                self._send_continue()
        if reader.ready:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client has hung up, or sends no more and may read on; the module says what that means."""
        self._is_half_closed = True
        if not self._is_busy:
            return False
        if not self._reader.ready:
            self._loop.call_soon(self._cancel)  # after its first step, which is in the loop's queue before
        return True

    def connection_lost(self, _error: Exception | None) -> None:
        """Cancel whatever was being answered."""
        self.is_lost = self._is_over = True
        self._reader.ready.clear()
        if not self._is_busy:
            self._server.forget(self)
        self._cancel()

    def pause_writing(self) -> None:
        """Note that the client is far behind."""
        self.is_blocked = True

    def resume_writing(self) -> None:
        """Let the handler go on."""
        self.is_blocked = False
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    # What the server and the answers call.

    def write(self, data: bytes) -> None:
        """Send bytes as they are, behind those that are held; drop them if the connection is lost."""
        if self._held:
            data = b"".join((*self._held, data))
            self._held.clear()
        if data and not self.is_lost:
            self.written_bytes += len(data)
            self.transport.write(data)

    def write_soon(self, data: bytes) -> None:
        """Send bytes after one more turn of the event loop, with all that comes until then.

        An idle loop turns within microseconds. A busy one reads more of the same stream meanwhile, and two
        lines in one write cost it, the kernel and the client little more than one.
        """
        held = self._held
        if len(data) > _HELD_BYTES or len(held) >= _HELD_PIECES:
            self.write(data)
            return
        held.append(data)
        if len(held) == 1:
            self._loop.call_soon(self._loop.call_soon, self.write, b"")

    def unblocked(self) -> asyncio.Future[None]:
        """Return what is done once the client has caught up."""
        if self._unblocked is None or self._unblocked.done():
            self._unblocked = self._loop.create_future()
        return self._unblocked

    def finish(self) -> None:
        """Close after the answer that is being given."""
        if not self._is_busy and not self._is_lingering:
            self.transport.close()

    def cut(self) -> None:
        """Close now, and give up what is being answered."""
        self._cancel()
        self.drop()

    def drop(self) -> None:
        """Close now; what the client has not taken is lost. Then ``connection_lost`` follows."""
        self.is_lost = True
        self.transport.abort()

    def check(self, now_s: float) -> None:
        """Drop the client if its time is up."""
        if self.is_lost:
            return
        if self._is_too_slow(now_s):
            self.drop()
        elif self._is_busy:
            return
        elif self._is_lingering:
            if now_s - self._quiet_since_s > self._limits.linger_s:
                self.drop()
        elif self._reader.is_inside:
            self._check_reading(now_s)
        elif now_s - self._quiet_since_s > self._limits.idle_timeout_s:
            self.transport.close()

    def _check_reading(self, now_s: float) -> None:
        reader, quiet_s = self._reader, self._quiet_since_s  # while it was busy, nobody told it to go on
        if reader.has_head:
            is_late = now_s - max(self._read_s, quiet_s) > self._limits.body_timeout_s
        else:
            is_late = now_s - max(reader.began_s, quiet_s) > self._limits.head_timeout_s
        if is_late:
            reader.refuse_as_too_slow()
            self._answer()

    @property
    def untaken_bytes(self) -> int:
        """What was written and the client's system has not taken, neither from us nor from our system.

        Ours takes a good deal at once, then nothing until a third of it has gone: seen from here alone, a
        client that reads steadily would seem to stand still for minutes.
        """
        sock = self.transport.get_extra_info("socket")
        try:
            in_system = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
        except OSError:  # it has just been closed, and we shall hear of it
            in_system = b""
        return self.transport.get_write_buffer_size() + int.from_bytes(in_system, sys.byteorder)

    def _is_too_slow(self, now_s: float) -> bool:
        """Whether the client is behind, and has taken too little for as long as it may."""
        timeout_s = self._limits.write_timeout_s
        if not self.transport.get_write_buffer_size():
            self._taken_bytes, self._slow_since_s = 0, now_s
        else:
            taken_bytes = self.written_bytes - self.untaken_bytes
            if taken_bytes - self._taken_bytes >= SLOWEST_BYTES_PER_S * timeout_s:
                self._taken_bytes, self._slow_since_s = taken_bytes, now_s
        return now_s - self._slow_since_s > timeout_s

    def _answer(self) -> None:
        """Have the next request answered; all of a connection by one task, since a new one costs more."""
        incoming = self._reader.ready.popleft()
        self._is_busy = True
        if self._wanted is not None:
            self._wanted.set_result(incoming)
        else:
            self._task = self._loop.create_task(self._serve(incoming))

    async def _serve(self, incoming: Incoming) -> None:
        """Answer a request, those that wait behind it by then, and those that come later."""
        waiting = self._reader.ready
        while True:
            outgoing = Outgoing(self, incoming)
            try:
                while True:
                    try:
                        await self._handler(incoming, outgoing)
                        if not outgoing.is_over:
                            raise RuntimeError("the handler left its answer unfinished")
                    except Exception:
                        logger.exception("event=handler_failed method=%s", incoming.method)
                        _give_up(outgoing)
                    if self.is_blocked and not outgoing.closes:
                        await self.unblocked()  # what is answered without waiting would pile up here
                    elif waiting:
                        await asyncio.sleep(0)  # one read brings thousands, and others want their turn
                    if not waiting or self._is_at_end(outgoing):
                        break
                    incoming = waiting.popleft()
                    outgoing = Outgoing(self, incoming)
                    if not waiting:
                        self._read_on()
            finally:
                self._rest(incoming, outgoing)
            self._wanted = self._loop.create_future()
            incoming = await self._wanted
            self._wanted = None

    def _cancel(self) -> None:
        """Give up what is being answered; the connection is then over, too."""
        if self._task is not None:
            self._task.cancel()

    def _is_at_end(self, outgoing: Outgoing) -> bool:
        return outgoing.closes or self.is_lost or self._server.is_stopping

    def _read_on(self) -> None:
        """Read again, now that nothing waits behind the request whose turn it is."""
        if self._is_half_closed:
            self._loop.call_soon(self._cancel)
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _rest(self, incoming: Incoming, outgoing: Outgoing) -> None:
        """Turn to what follows the last answer: the next request, or the end."""
        self._is_busy = False
        self._quiet_since_s = time.perf_counter()
        if self._is_over:
            self._server.forget(self)
        elif self.transport.is_closing():
            return
        elif not outgoing.is_over:  # cancelled
            outgoing.abort()
        elif incoming.problem is not None and not self._is_half_closed:
            self._linger()
        elif self._is_half_closed or self._is_at_end(outgoing):
            self.transport.close()
        elif self._reader.wants_continue:
            self._send_continue()

    def _linger(self) -> None:
        """Read on a while before closing: bytes left unread would reset the connection, answer and all."""
        self._is_lingering = True
        self._quiet_since_s = time.perf_counter()
        self.transport.write_eof()
        self.transport.resume_reading()

    def _send_continue(self) -> None:
        self._reader.wants_continue = False
        self.write(_CONTINUE)


def _give_up(outgoing: Outgoing) -> None:
    """Answer for a handler that failed."""
    if outgoing.is_started:
        outgoing.abort()
    else:
        outgoing.start(_INTERNAL_ERROR, {"content-type": _JSON_TYPE}, length=len(_BROKEN))
        outgoing.end(_BROKEN)
