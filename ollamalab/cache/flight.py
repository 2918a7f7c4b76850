"""One upstream call for everybody who asks the same at the same time.

Terms: a *flight* is one upstream call, run by a task of its own, so that no member can cut it by
leaving; its *members* are the requests that read it. The first of them is its leader in name only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from ollamalab.cache.sse import UsageFilter
from ollamalab.errors import UpstreamUnavailable
from ollamalab.protocol.calls import QUEUED, Call, call_of
from ollamalab.protocol.upstream import Request, Upstream

_OK = 200
_GIVEN_UP = "the request was given up before its answer was there"
_MOST_CHUNKS_AT_ONCE = 64  # for a member that is behind: few writes, yet no long backlog at once


class Flight:
    """One upstream call and what has come of it.

    While it is small enough to be kept, all of it stays, and each member reads at its own pace. Past
    that, what every member has read is let go, nobody joins any more, and the slowest member holds the
    upstream back: memory stays bounded.

    Attributes:
        status: HTTP status; None until the first byte of the body (or its end) is there.
        headers: Of the reply; names in lower case.
        error: What ended it before its proper end; None if nothing did.
        is_over: Whether nothing more will come, and members know it.
        chunks: What the upstream sent, as it came; only while ``is_whole``.
        offsets_s: Seconds from the first chunk to each.
        is_whole: Whether all of it is still there.
        upstream_s: Seconds from the request to the last byte; 0 until that.
        passengers: How many have ever been its members.
    """

    def __init__(
        self,
        upstream: Upstream,
        request: Request,
        *,
        keep_bytes: int,
        hides_usage: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare a flight; ``start`` begins it.

        Args:
            upstream: Who answers.
            request: What is asked.
            keep_bytes: How much of the answer may stay in memory.
            hides_usage: Whether members read the events without the usage that they carry.
            clock: Seconds that only grow.
        """
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.error: BaseException | None = None
        self.is_over = False
        self.chunks: list[bytes] = []
        self.offsets_s: list[float] = []
        self.is_whole = True
        self.upstream_s = 0.0
        self.passengers = 0
        self._loop = asyncio.get_running_loop()
        self._upstream = upstream
        self._request = request
        self._keep_bytes = keep_bytes
        self._filter = UsageFilter() if hides_usage else None
        self._clock = clock
        self._shown = self.chunks if self._filter is None else []
        self._let_go = 0  # chunks at the begin of what was shown that are no longer there
        self._held_bytes = 0
        self._first_s = 0.0
        self._is_read = False  # to its proper end
        self._members: set[Member] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Return the task that does the work of this flight, of which ``run`` is a part."""
        self._task = self._loop.create_task(work)
        return self._task

    def end(self) -> None:
        """Tell the members that nothing more will come; a second time nothing happens."""
        if not self.is_over:
            if not self._is_read and self.error is None:
                self.error = UpstreamUnavailable(_GIVEN_UP)
            self.is_over = True
            self._wake()

    def is_open_to(self, call: Call) -> bool:
        """Whether a request that comes now gets all of it, and no later than by itself.

        A more urgent one would be later while the flight waits in a queue, where it stands as urgent as
        the request that it was begun for. It begins another, which all who come after it join: one call
        too many at most for each step of urgency. To move the waiting call up instead would spare it, but
        takes a way from here into the queue, and moves one client's place at another's word.
        """
        is_going_on = self.error is None and not self._is_read and not self.is_over
        if not (is_going_on and self._members and self.is_whole):
            return False
        if self.status is not None:
            return self.status == _OK
        leader = call_of(self._request)
        return leader.priority <= call.priority or QUEUED in leader.ledger

    @property
    def is_complete(self) -> bool:
        """Whether all of a successful answer is there."""
        return self._is_read and self.is_whole and self.status == _OK

    def join(self) -> Member:
        """Return a new member, who begins at the beginning."""
        member = Member(self)
        self._members.add(member)
        self.passengers += 1
        return member

    def leave(self, member: Member) -> None:
        """Let a member go; with the last one the upstream call ends."""
        self._members.discard(member)
        if not self.is_over:
            self._wake()  # the slowest may have been this one
            if not self._members and self._task is not None:
                self._task.cancel()

    async def run(self) -> None:
        """Ask the upstream and note what comes; members hear of the end by ``end``, as that of an error."""
        started_s = self._clock()
        try:
            async with await self._upstream.send(self._request) as reply:
                chunks = reply.chunks()
                # Ollama sends its headers with the first line; an error up to there is one before the
                # first byte, after which members may still ask again.
                first = await anext(chunks, b"")
                self.headers, self.status = reply.headers, reply.status
                if self._filter is not None:
                    self.headers.pop("content-length", None)
                self._first_s = self._clock()
                self._note(first)
                async for chunk in chunks:
                    self._note(chunk)
                    if not self.is_whole:
                        await self._held_back()
            if self._filter is not None and (rest := self._filter.rest()):
                self._show(rest)
            self._is_read = True
        except Exception as error:  # whatever it is, members must not wait for ever
            self.error = error
        self.upstream_s = self._clock() - started_s

    async def news(self) -> None:
        """Wait until there is more to read, room to write, or an end."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def shown_from(self, position: int) -> list[bytes]:
        """Return what members see from a position on, at most a handful."""
        start = position - self._let_go
        return self._shown[start : start + _MOST_CHUNKS_AT_ONCE]

    def progressed(self) -> None:
        """Note that a member has read on."""
        if not self.is_whole and not self.is_over:
            self._wake()

    def _note(self, chunk: bytes) -> None:
        if not chunk:
            return
        if self._filter is None:
            self._show(chunk)
        else:
            if self.is_whole:
                self.chunks.append(chunk)
            if shown := self._filter.feed(chunk):
                self._show(shown)
        if self.is_whole:
            self.offsets_s.append(self._clock() - self._first_s)

    def _show(self, chunk: bytes) -> None:
        self._shown.append(chunk)
        self._held_bytes += len(chunk)
        if self.is_whole and self._held_bytes > self._keep_bytes:
            self.is_whole = False
            if self._filter is not None:
                self.chunks = []
        self._wake()

    async def _held_back(self) -> None:
        """Let go of what all have read; wait while the slowest has too much before it."""
        while True:
            read = min((member.position for member in self._members), default=self._let_go)
            gone = self._shown[: read - self._let_go]
            del self._shown[: len(gone)]
            self._held_bytes -= sum(map(len, gone))
            self._let_go = read
            if self._held_bytes <= self._keep_bytes:
                return
            await self.news()

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


class Member:
    """A request that reads a flight: a Reply once ``opened`` has returned.

    Attributes:
        status: HTTP status.
        headers: Its own copy; names in lower case.
        position: How many chunks it has read.
    """

    def __init__(self, flight: Flight) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.position = 0
        self._flight = flight

    async def opened(self) -> None:
        """Wait for the first byte of the body.

        Raises:
            OllamaLabError: What ended the flight before that.
        """
        flight = self._flight
        while flight.status is None:
            if flight.is_over and flight.error is not None:
                raise flight.error
            await flight.news()
        self.status, self.headers = flight.status, dict(flight.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body: at once what is there, then what comes.

        Raises:
            UpstreamError: The body broke off or did not come in time, for all members alike.
        """
        flight = self._flight
        while True:
            if new := flight.shown_from(self.position):
                self.position += len(new)
                flight.progressed()
                yield new[0] if len(new) == 1 else b"".join(new)
            elif not flight.is_over:
                await flight.news()
            elif flight.error is not None:
                raise flight.error
            else:
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the flight."""
        self.leave()

    def leave(self) -> None:
        """Leave the flight; a second time nothing happens."""
        self._flight.leave(self)
