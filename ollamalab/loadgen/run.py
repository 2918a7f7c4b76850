"""One run of load: the loops that send, and what they have seen so far."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from ollamalab.client.capture import Capture
from ollamalab.connection import HttpReply
from ollamalab.errors import UpstreamError, UpstreamTimeout
from ollamalab.loadgen.settings import LoadSettings
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.records import RequestRecord

#: Given the number of a request, what to send; called just before the send.
RequestOf = Callable[[int], Request]


class Run:
    """One run of load through one Upstream.

    Attributes:
        settings: How it is offered.
        planned: Requests in all, warm-up included; None when a duration decides.
        records: One per request that has ended, in the order of their ends.
        offered: Requests sent so far.
        start_s: When the plan's zero was.
        is_stopped: Whether it was told to stop.
    """

    def __init__(
        self, upstream: Upstream, settings: LoadSettings, request_of: RequestOf, *, target: str
    ) -> None:
        self.settings = settings
        self.records: list[RequestRecord] = []
        self.offered = 0
        self.start_s = time.perf_counter()
        self.is_stopped = False
        self._plan_s = settings.plan_s() if settings.arrivals.is_open else None
        self.planned = settings.total if self._plan_s is None else len(self._plan_s)
        self._upstream = upstream
        self._request_of = request_of
        self._target = target
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._measured_from_s: float | None = None

    async def execute(self) -> None:
        """Offer everything and wait until all of it has ended."""
        async with asyncio.TaskGroup() as group:
            self.start_s = time.perf_counter()
            if self._plan_s is None:
                for number in range(self.settings.clients):
                    self._tasks.add(group.create_task(self._client(number)))
            else:
                self._tasks.add(group.create_task(self._dispatch(self._plan_s, group)))

    def stop(self) -> None:
        """Offer nothing more and hang up on what is in flight."""
        self.is_stopped = True
        for task in self._tasks:
            task.cancel()

    async def _dispatch(self, plan_s: list[float], group: asyncio.TaskGroup) -> None:
        """Open loop: send each request at its planned moment."""
        room = asyncio.Semaphore(self.settings.max_in_flight)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            room.release()

        for due_s in plan_s:
            await _sleep_until(self.start_s + due_s)
            await room.acquire()
            task = group.create_task(self._offer(next(self._numbers), self.start_s + due_s))
            self._tasks.add(task)
            task.add_done_callback(ended)

    async def _client(self, number: int) -> None:
        """Closed loop: one client, which sends its next request when the last has ended."""
        await _sleep_until(self.start_s + self.settings.ramp_s * number / self.settings.clients)
        while self._is_more_wanted():
            await self._offer(next(self._numbers), time.perf_counter())

    def _is_more_wanted(self) -> bool:
        """Whether a client should send another request."""
        duration_s = self.settings.duration_s
        if duration_s is None:
            return self.planned is not None and self.offered < self.planned
        now_s = time.perf_counter()
        if self._measured_from_s is None and self.offered >= self.settings.warmup:
            self._measured_from_s = now_s
        return self._measured_from_s is None or now_s < self._measured_from_s + duration_s

    async def _offer(self, index: int, intended_s: float) -> None:
        """Send one request and keep what happened; it ends in exactly one record."""
        self.offered += 1
        capture = Capture(
            index=index,
            request=self._request_of(index),
            intended_s=intended_s,
            is_warmup=index < self.settings.warmup,
        )
        deadline_s = self.settings.deadline_s
        try:
            async with asyncio.timeout(intended_s + deadline_s - time.perf_counter()):
                await self._exchange(capture)
        except TimeoutError:
            text = f"no end within {deadline_s:g} s of the planned send"
            capture.failure = UpstreamTimeout(text, url=self._target, after_s=deadline_s)
        except UpstreamError as error:
            capture.failure = error
        except asyncio.CancelledError:
            capture.is_cancelled = True
            raise
        finally:
            capture.end_s = time.perf_counter()
            self.records.append(capture.record(self._target))

    async def _exchange(self, capture: Capture) -> None:
        """Send, and stamp every read as it comes."""
        capture.sent_s = time.perf_counter()
        async with await self._upstream.send(capture.request) as reply:
            capture.status = reply.status
            if isinstance(reply, HttpReply):  # it has the moments at which the socket gave each read
                capture.connected_s, capture.sent_end_s = reply.connected_s, reply.sent_end_s
                capture.headers_s = reply.received_s
                async for chunk in reply.chunks():
                    capture.reads.append((reply.received_s, chunk))
            else:
                capture.headers_s = time.perf_counter()
                async for chunk in reply.chunks():
                    capture.reads.append((time.perf_counter(), chunk))


async def _sleep_until(due_s: float) -> None:
    """Return at this moment of ``time.perf_counter``, never before.

    Timers of uvloop count whole milliseconds and may end early; the rest is spent yielding.
    """
    while (wait_s := due_s - time.perf_counter()) > 0:  # noqa: ASYNC110 - a moment is no event
        await asyncio.sleep(wait_s)
