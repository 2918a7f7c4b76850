"""Who has which connection, and who waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque

from ollamalab.connection.failures import CONNECT_ERRORS, Blame
from ollamalab.connection.settings import ConnectionSettings
from ollamalab.connection.wire import Wire


class Pool:
    """Connections to one address; a Keeper of them.

    The connection used last is used next, so that those which a burst needed can grow old and close.
    Who must wait is served in order of arrival: with a connection that has become free, or with the
    right to make one.

    Args:
        host: Name or address; of a name, all addresses are tried in order.
        port: TCP port.
        tls: For https; None for http.
        settings: Limits and timeouts.
        blame: Words the errors.
    """

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, settings: ConnectionSettings, blame: Blame
    ) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._settings = settings
        self._blame = blame
        self._open: set[Wire] = set()
        self._connecting = 0
        self._idle: dict[Wire, float] = {}  # since when; the one used last at the end
        self._waiters: deque[asyncio.Future[Wire | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None  # set by close

    @property
    def open_connections(self) -> int:
        """Open sockets, idle ones included."""
        return len(self._open)

    def take_idle(self) -> Wire | None:
        """Return a connection that is free now; None without one."""
        return self._idle.popitem()[0] if self._idle else None

    async def take(self) -> Wire:
        """Return a new connection, or the next to become free where there may be no more.

        Raises:
            UpstreamUnavailable: None to be had within the connect timeout.
        """
        wire: Wire | None = None
        is_full = not self._has_room()
        if not is_full:
            self._connecting += 1
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                if is_full:
                    wire = await self._turn()
                    is_full = False
                return wire or await self._connect()
        except CONNECT_ERRORS as error:
            if isinstance(error, TimeoutError) and error.errno is None:  # ours, not the system's ETIMEDOUT
                raise self._blame.not_connected_in_time(is_full=is_full) from error
            raise self._blame.unreachable(error) from error

    def drop_idle(self) -> None:
        """Close every idle connection: the server has closed one, so the others are as good as dead."""
        for wire in tuple(self._idle):
            wire.hang_up()

    async def close(self) -> None:
        """Close every connection and wait until their sockets are closed."""
        self._emptied = asyncio.get_running_loop().create_future()
        if self._sweeper is not None:
            self._sweeper.cancel()
        while waiter := self._next_waiter():
            waiter.set_exception(self._blame.closed())
        for wire in tuple(self._open):
            wire.hang_up()
        if self._open:
            await self._emptied

    # Keeper.

    def free(self, wire: Wire) -> None:
        """Hand it to who waits longest, or keep it for a while."""
        if waiter := self._next_waiter():
            waiter.set_result(wire)
            return
        self._idle[wire] = time.perf_counter()
        if self._sweeper is None:
            self._sweep_in(self._settings.idle_timeout_s)

    def closing(self, wire: Wire) -> None:
        """Lend it no more."""
        self._idle.pop(wire, None)

    def lost(self, wire: Wire) -> None:
        """Let somebody make another in its place."""
        self._open.discard(wire)
        if self._emptied is None:
            self._grant()
        elif not self._open and not self._emptied.done():
            self._emptied.set_result(None)

    # The line.

    def _has_room(self) -> bool:
        return len(self._open) + self._connecting < self._settings.max_connections

    async def _connect(self) -> Wire:
        """Make a connection; ``_connecting`` counts it already."""
        try:
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: Wire(self, self._blame, self._settings.progress_timeout_s),
                self._host,
                self._port,
                ssl=self._tls,
            )
            # Counted now, not when it was made: uvloop tells nobody of one that a cancellation undoes.
            if wire.is_open:
                self._open.add(wire)
            if self._emptied is not None:  # too late
                wire.hang_up()
        finally:
            self._connecting -= 1
            self._grant()
        return wire

    async def _turn(self) -> Wire | None:
        """Wait in line; return a connection, or None for the right to make one, counted already."""
        waiter: asyncio.Future[Wire | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiters.remove(waiter)
            elif wire := waiter.result():  # served and cancelled in the same moment
                wire.hang_up()
            else:
                self._connecting -= 1
                self._grant()
            raise

    def _grant(self) -> None:
        """Let those who wait longest make connections, as many as there is room for."""
        while self._has_room() and (waiter := self._next_waiter()):
            self._connecting += 1
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[Wire | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    # Old age.

    def _sweep_in(self, delay_s: float) -> None:
        self._sweeper = asyncio.get_running_loop().call_later(delay_s, self._sweep)

    def _sweep(self) -> None:
        """Close what has been idle for too long; come back when the next will have been."""
        self._sweeper = None
        limit_s = time.perf_counter() - self._settings.idle_timeout_s
        for wire, since_s in tuple(self._idle.items()):
            if since_s > limit_s:
                self._sweep_in(since_s - limit_s)
                return
            wire.hang_up()
