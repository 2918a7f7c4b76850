"""A reply: what has come of it so far, and its reader."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ollamalab.errors import UpstreamError

if TYPE_CHECKING:
    from ollamalab.connection.wire import Wire
    from ollamalab.protocol.calls import Call

#: A reader who lags further behind than this stops the reading from the socket: then the server's own
#: socket fills up and the server waits, instead of our memory growing. One read may overshoot it.
HELD_LIMIT_BYTES = 256 * 1024


class HttpReply:
    """A reply over HTTP whose body is still arriving; one reader.

    Its wire fills it (``begin``, ``add``, ``end``, ``fail``, then ``wake`` once per read); it outlives
    the exchange on the wire, so that a connection is free as soon as the last byte has come, not when
    the last byte has been taken.

    Attributes:
        status: HTTP status.
        headers: Names in lower case, those of the hop left out; of a repeated header, all values joined
            by ", ".
        connected_s: When a new connection stood (``time.perf_counter``), TLS included; None on a reused one.
        sent_end_s: When the last byte of the request had been handed to the socket; None while it has not.
        received_s: When the socket gave what was returned last: the head, then each chunk. Free of the
            task switch between the read and its reader.
        failure: What ended the reply early.
        held_bytes: Of the body, come and not taken.
        is_started: Whether status and headers have come.
        is_ended: Whether nothing more will come, for better or worse.
        waiting_since_s: Since when the reader waits for a byte; None while it does not.
    """

    __slots__ = (
        "_call",
        "_held",
        "_is_read",
        "_is_resting",
        "_waiter",
        "_wire",
        "connected_s",
        "failure",
        "headers",
        "held_bytes",
        "is_ended",
        "is_started",
        "received_s",
        "sent_end_s",
        "status",
        "waiting_since_s",
    )

    def __init__(self, wire: Wire, *, connected_s: float | None, call: Call | None = None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.connected_s = connected_s
        self.sent_end_s: float | None = None
        self.received_s = 0.0
        self.failure: UpstreamError | None = None
        self.held_bytes = 0
        self.is_ended = False
        self.waiting_since_s: float | None = None
        self._call = call
        self._held: deque[tuple[float, bytes]] = deque()
        self._is_resting = False
        self._is_read = False
        self.is_started = False
        self._waiter: asyncio.Future[None] | None = None
        self._wire = wire

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives: what one read brought is one chunk.

        Raises:
            UpstreamTimeout: No byte within the progress timeout.
            BadReply: The body broke off.
        """
        self._is_read = True
        held = self._held
        while True:
            while held:
                self.received_s, chunk = held.popleft()
                self.held_bytes -= len(chunk)
                if not self.is_ended and self._wire.is_paused and self.held_bytes <= HELD_LIMIT_BYTES // 2:
                    self._wire.resume()
                yield chunk
            if self.failure is not None:
                raise self.failure
            if self.is_ended:
                return
            if self._call is not None and self._call.rest_until_s:
                await self._rest(self._call)
            else:
                await self.news()

    @property
    def whole(self) -> bytes | None:
        """The body, if all of it has come and nothing of it was taken; ``chunks`` gives it no less."""
        if self._is_read or not self.is_ended or self.failure is not None or len(self._held) > 1:
            return None
        return self._held[0][1] if self._held else b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()

    async def news(self) -> None:
        """Wait until more has come, or the end, or a failure."""
        self._waiter = self._wire.loop.create_future()
        self.waiting_since_s = time.perf_counter()
        try:
            await self._waiter
        finally:
            self._waiter = self.waiting_since_s = None

    def leave(self) -> None:
        """Hang up on a reply that has not ended; its connection is of no more use."""
        if not self.is_ended:
            self._wire.hang_up()

    def begin(self, status: int, headers: dict[str, str], at_s: float) -> None:
        """Take status and headers."""
        self.status, self.headers, self.received_s = status, headers, at_s
        self.is_started = True

    def add(self, chunk: bytes, at_s: float) -> None:
        """Take what one read brought of the body."""
        self._held.append((at_s, chunk))
        self.held_bytes += len(chunk)

    def end(self) -> None:
        """Take note that the body is whole."""
        self.is_ended = True
        self.wake()

    def fail(self, failure: UpstreamError) -> None:
        """End early; what has come before is still given."""
        self.failure, self.is_ended = failure, True
        self.wake()

    def wake(self) -> None:
        """Let the reader look again, if it waits."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self.is_ended or not self._is_resting):
            waiter.set_result(None)

    async def _rest(self, call: Call) -> None:
        """Gather what comes for as long as the reader wants nothing, but not past the body's end.

        Reading goes on. To stop it too, and leave the gathering to the kernel, was tried: it costs as much
        as it saves, and the end of a body waited for the end of the rest.
        """
        rest_s = call.rest_until_s - time.perf_counter()
        call.rest_until_s = 0.0
        if rest_s <= 0:
            return
        timer = self._wire.loop.call_later(rest_s, self._end_rest)
        self._is_resting = True
        try:
            await self.news()
        finally:
            self._is_resting = False
            timer.cancel()
        if len(self._held) > 1:
            first_s = self._held[0][0]
            gathered = b"".join([chunk for _, chunk in self._held])
            self._held.clear()
            self._held.append((first_s, gathered))

    def _end_rest(self) -> None:
        self._is_resting = False
        self.wake()
