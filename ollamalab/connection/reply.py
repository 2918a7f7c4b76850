"""A reply: what has come of it so far, and its reader."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from ollamalab.errors import UpstreamError
from ollamalab.protocol.upstream import Sink

if TYPE_CHECKING:
    from ollamalab.connection.wire import Wire
    from ollamalab.protocol.calls import Call

#: A reader who lags further behind than this stops the reading from the socket: then the server's own
#: socket fills up and the server waits, instead of our memory growing. One read may overshoot it.
HELD_LIMIT_BYTES = 256 * 1024

#: During a rest a read waits for so much, or so long: the end of a body is not seen later than that.
_GATHERED_BYTES = 8192
_MOMENT_S = 0.002

#: Event loops count milliseconds.
_TIMER_S = 0.001


class HttpReply(msgspec.Struct, eq=False):
    """A reply over HTTP whose body is still arriving; one reader.

    Its wire fills it (``begin``, ``add``, ``end``, ``fail``, then ``wake`` once per read); it outlives
    the exchange on the wire, so that a connection is free as soon as the last byte has come, not when
    the last byte has been taken.

    Attributes:
        status: HTTP status.
        headers: Names in lower case, those of the hop left out; of a repeated header, all values joined
            by ", ".
        whole: The body, once all of it has come in one piece, if nothing of it was taken; ``chunks`` gives
            it no less.
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

    _wire: Wire
    connected_s: float | None
    _call: Call | None = None
    status: int = 0
    headers: dict[str, str] = msgspec.field(default_factory=dict)
    whole: bytes | None = None
    sent_end_s: float | None = None
    received_s: float = 0.0
    failure: UpstreamError | None = None
    held_bytes: int = 0
    is_started: bool = False
    is_ended: bool = False
    waiting_since_s: float | None = None
    _held: deque[tuple[float, bytes]] = msgspec.field(default_factory=deque)
    _is_gathered: bool = False
    _is_read: bool = False
    _error: Exception | None = None  # of the sink
    _lag: asyncio.Future[None] | None = None
    _rest: asyncio.TimerHandle | None = None
    _rest_until_s: float = 0.0
    _sink: Sink | None = None
    _waiter: asyncio.Future[None] | None = None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives: what one read brought is one chunk.

        Raises:
            UpstreamTimeout: No byte within the progress timeout.
            BadReply: The body broke off.
        """
        self._is_read, self.whole = True, None
        held = self._held
        while True:
            while held:
                yield self._take()
            if self.failure is not None:
                raise self.failure
            if self.is_ended:
                return
            self._begin_rest()
            await self.news()

    async def pour(self, sink: Sink) -> None:
        """Give the body to a sink, each chunk from within the read that brought it.

        Raises:
            UpstreamTimeout: No byte within the progress timeout.
            BadReply: The body broke off.
        """
        self._is_read, self.whole = True, None
        held = self._held
        while True:
            while held:
                lag = sink(self._take())
                if lag is not None:
                    await lag
            if self.failure is not None:
                raise self.failure
            if self.is_ended:
                return
            self._begin_rest()
            self._sink = sink
            try:
                await self.news()
            finally:
                self._sink = None
            if self._error is not None:
                raise self._error
            if self._lag is not None:
                lag, self._lag = self._lag, None
                await lag

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
        """Wait until there is more to take, or the end, or a failure."""
        self._waiter = self._wire.loop.create_future()
        self.waiting_since_s = time.perf_counter()
        try:
            await self._waiter
        finally:
            self._waiter = self.waiting_since_s = None
            if self._rest is not None:
                self._stop_resting()

    def leave(self) -> None:
        """Hang up on a reply that has not ended; its connection is of no more use."""
        if not self.is_ended:
            self._wire.hang_up()

    def begin(self, status: int, headers: dict[str, str], at_s: float) -> None:
        """Take status and headers."""
        self.status, self.headers, self.received_s = status, headers, at_s
        self.is_started = True

    def add(self, chunk: bytes, at_s: float) -> None:
        """Take what one read brought of the body; who waits for it must then be woken."""
        if self._sink is None or self._rest is not None:
            self._held.append((at_s, chunk))
            self.held_bytes += len(chunk)
            if self._rest is not None:
                self._look_away(at_s)
        else:
            self.received_s = at_s
            self._give(self._sink, chunk)

    def end(self) -> None:
        """Take note that the body is whole."""
        self.is_ended = True
        held = self._held
        if not self._is_read and len(held) < 2:
            self.whole = held[0][1] if held else b""
        self.wake()

    def fail(self, failure: UpstreamError) -> None:
        """End early; what has come before is still given."""
        self.failure, self.is_ended = failure, True
        self.wake()

    def wake(self) -> None:
        """Let the reader look again, if it waits."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self.is_ended or (self._sink is None and self._rest is None):
            waiter.set_result(None)

    def _take(self) -> bytes:
        """Return what is held: one chunk, or all that a rest has gathered."""
        held = self._held
        self.received_s, chunk = held.popleft()
        self.held_bytes -= len(chunk)
        if held and self._is_gathered:
            chunk = b"".join((chunk, *(later for _, later in held)))
            held.clear()
            self.held_bytes = 0
        self._is_gathered = False
        if not self.is_ended and self._wire.is_paused and self.held_bytes <= HELD_LIMIT_BYTES // 2:
            self._wire.resume()
        return chunk

    def _give(self, sink: Sink, chunk: bytes) -> None:
        """Give a chunk to a sink that waits for it; wake the reader if it has to wait or went wrong."""
        try:
            self._lag = sink(chunk)
        except Exception as error:  # it is the reader's to raise, not the connection's
            self._error = error
        if self._lag is None and self._error is None:
            self._begin_rest()
        else:
            self._sink = None
            self.wake()

    def _begin_rest(self) -> None:
        """Gather what comes for as long as the reader wants nothing, but not past the body's end.

        The kernel gathers: reads wait until there is much to read, or it is time to look for the end.
        """
        call = self._call
        if call is None or not call.rest_until_s:
            return
        self._rest_until_s, call.rest_until_s = call.rest_until_s, 0.0
        now_s = time.perf_counter()
        if self._rest_until_s > now_s:
            self._is_gathered = True
            self._look_away(now_s)

    def _look_away(self, now_s: float) -> None:
        """Read nothing for a moment."""
        if self._rest is not None:
            self._rest.cancel()
        self._wire.read_from(_GATHERED_BYTES)
        moment_s = min(_MOMENT_S, max(0.0, self._rest_until_s - now_s))
        self._rest = self._wire.loop.call_later(moment_s, self._look)

    def _look(self) -> None:
        """Read what has come; if the rest is over, give what it has gathered."""
        self._wire.read_from(1)
        left_s = self._rest_until_s - time.perf_counter()
        if left_s > _TIMER_S:
            self._rest = self._wire.loop.call_later(left_s, self._look)
            return
        self._rest = None
        if self._held and self._sink is not None:
            self._give(self._sink, self._take())
        if self._held:
            self.wake()

    def _stop_resting(self) -> None:
        assert self._rest is not None
        self._rest.cancel()
        self._rest = None
        self._wire.read_from(1)
