"""The queue on an event loop: waits for places, hands them out, takes them back.

Who goes next is decided in ``admission``; here are only the clock, the futures and the timers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Protocol, Self

import msgspec

from ollamalab.protocol.calls import QUEUE_HEADER, QUEUED, Call, call_of
from ollamalab.protocol.endpoints import Kind
from ollamalab.protocol.upstream import Reply, Request, Sink, Upstream, pour, whole_of
from ollamalab.queueing.admission import Admission, Applicant
from ollamalab.queueing.capacity import DEAF, Capacity, Passage, capacity_of
from ollamalab.queueing.cost import cost_tokens, expected_output_tokens, expected_prompt_tokens
from ollamalab.queueing.event_meter import meter_of, work_of_answer
from ollamalab.queueing.tally import QueueStatistics
from ollamalab.queueing.ticket import State, Ticket
from ollamalab.queueing.work import NO_WORK, NOTHING_TOLD, Work
from ollamalab.settings.queueing import QueueSettings

_OK = 200
_ACTIVE = State.ACTIVE
_GENERATION = Kind.GENERATION


class RequestQueue:
    """Bounded fair admission to an upstream; one event loop, no threads.

    Args:
        settings: Bounds.
        capacity: Places per model; by default what the settings say.
        clock: Monotonic seconds; deadlines of calls are on it.
    """

    def __init__(
        self,
        settings: QueueSettings | None = None,
        *,
        capacity: Capacity | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.settings = settings or QueueSettings()
        self._capacity = capacity or capacity_of(self.settings)
        self._admission = Admission(self.settings, self._capacity.limit)
        self._clock = clock
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}

    def in_front_of(self, upstream: Upstream) -> QueuedUpstream:
        """Return the upstream with this queue in front."""
        return QueuedUpstream(self, upstream)

    async def enter(self, call: Call) -> Slot:
        """Wait for a place; whoever gets one must ``release`` it.

        Raises:
            QueueFull: No room to wait; at once.
            ShareExceeded: No room for more requests of this client.
            WaitTimeout: No place came free in time, or before the call's deadline.
        """
        slot = self.arrive(call)
        if slot.ticket.state is not _ACTIVE:
            await self.served(slot, call)
        return slot

    def arrive(self, call: Call) -> Slot:
        """Take a request in; if its slot has no place yet, ``served`` waits for one. Raises as ``enter``."""
        admission, lane = self._admission, call.model_key
        prompt_tokens = expected_prompt_tokens(call)
        output_tokens = expected_output_tokens(call, admission.history.output_tokens(lane))
        now_s = self._clock()
        ticket, moved = admission.arrive(
            Applicant(
                lane=lane,
                client=call.client,
                priority=call.priority,
                deadline_s=call.deadline_s,
                cost_tokens=cost_tokens(prompt_tokens, output_tokens),
            ),
            now_s,
        )
        if moved:
            self._wake(moved)
        slot = Slot(self, ticket, prompt_tokens)
        if ticket.state is _ACTIVE:
            self._seat(slot, call, now_s)
        return slot

    async def served(self, slot: Slot, call: Call) -> None:
        """Wait until a slot has its place; raises as ``enter``."""
        ticket = slot.ticket
        if ticket.state is State.WAITING:
            await self._wait(ticket)
        now_s = self._clock()
        if ticket.state is not _ACTIVE:
            call.ledger[QUEUED] = now_s - ticket.arrived_s
            raise self._admission.refusal(ticket, now_s)
        self._seat(slot, call, now_s)

    def _seat(self, slot: Slot, call: Call, now_s: float) -> None:
        ticket = slot.ticket
        call.ledger[QUEUED] = now_s - ticket.arrived_s
        slot.passage = call.passage = self._capacity.begin(ticket.lane, now_s)

    @asynccontextmanager
    async def slot(self, call: Call) -> AsyncIterator[Slot]:
        """Hold a place for the length of a ``with`` block; raises what ``enter`` raises."""
        slot = await self.enter(call)
        try:
            yield slot
        except BaseException as error:
            slot.release(state_after(error))
            raise
        slot.release()

    def refill(self) -> None:
        """Look whether more places are free: the capacity has changed by itself."""
        self._wake(self._admission.dispatch_all(self._clock()))

    def statistics(self) -> QueueStatistics:
        """Return what happened so far."""
        return self._admission.statistics(self._capacity.limits())

    async def _wait(self, ticket: Ticket) -> None:
        """Return when the ticket's wait is over, one way or another."""
        loop = asyncio.get_running_loop()
        waiter = self._waiters[ticket] = loop.create_future()
        timer = loop.call_later(max(0.0, ticket.expires_s - self._clock()), self._expire, ticket)
        try:
            await waiter
        except BaseException:
            self._give_up(ticket)
            raise
        finally:
            timer.cancel()
            del self._waiters[ticket]

    def _wake(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _expire(self, ticket: Ticket) -> None:
        if ticket.state is State.WAITING:
            self._admission.leave(ticket, State.TIMED_OUT)
            self._wake((ticket,))

    def _give_up(self, ticket: Ticket) -> None:
        """Leave the queue, or hand back a place that was granted to a task already cancelled."""
        now_s = self._clock()
        if ticket.state is State.WAITING:
            is_late = ticket.expires_s <= now_s  # whoever cancelled was only faster than our timer
            self._admission.leave(ticket, State.TIMED_OUT if is_late else State.CANCELLED)
        elif ticket.state is State.ACTIVE:
            self._wake(self._admission.release(ticket, State.CANCELLED, now_s, cost_tokens=0.0))

    def _begun(self, ticket: Ticket, passage: Passage) -> None:
        now_s = self._clock()
        passage.begun(now_s)
        self._wake(self._admission.dispatch(ticket.lane, now_s))  # it may have shown that more fits

    def _release(self, slot: Slot, state: State, work: Work | None) -> None:
        now_s, ticket = self._clock(), slot.ticket
        cost: float | None = None
        if work is not None and work.output_tokens is not None:
            prompt_tokens = slot.prompt_tokens if work.prompt_tokens is None else work.prompt_tokens
            cost = cost_tokens(prompt_tokens, work.output_tokens)
        if state is State.COMPLETED:
            output_tokens = work.output_tokens if work else None
            service_s = now_s - (ticket.arrived_s if ticket.granted_s is None else ticket.granted_s)
            self._admission.history.note(ticket.lane, service_s=service_s, output_tokens=output_tokens)
        slot.passage.ended(now_s, state, work)
        self._wake(self._admission.release(ticket, state, now_s, cost_tokens=cost))


class Slot(msgspec.Struct, eq=False):
    """A place at the upstream.

    Attributes:
        ticket: How it was got.
        prompt_tokens: What the prompt will probably cost.
        passage: Who hears how it goes on.
    """

    _queue: RequestQueue
    ticket: Ticket
    prompt_tokens: float
    passage: Passage = DEAF
    _is_released: bool = False

    @property
    def wait_s(self) -> float:
        """Seconds waited for it."""
        return self.ticket.wait_s or 0.0

    def begun(self) -> None:
        """Say that a stream has given its first bytes."""
        self._queue._begun(self.ticket, self.passage)

    def release(self, state: State = State.COMPLETED, work: Work | None = None) -> None:
        """Give the place back; only the first time counts.

        Args:
            state: How the request ended.
            work: What it took; None if that is not known: then what was expected counts.
        """
        if not self._is_released:
            self._is_released = True
            self._queue._release(self, state, work)


def state_after(error: BaseException) -> State:
    """Return how a request ended that an exception ended."""
    is_gone = isinstance(error, asyncio.CancelledError | GeneratorExit)
    return State.CANCELLED if is_gone else State.FAILED


class QueuedUpstream:
    """An upstream behind a queue. Only what generates text waits; everything else passes.

    Args:
        queue: Whom to ask for places.
        upstream: Who answers.
    """

    def __init__(self, queue: RequestQueue, upstream: Upstream) -> None:
        self.queue = queue
        self._upstream = upstream

    async def send(self, request: Request) -> Reply:
        """Send one request when its turn has come.

        Raises:
            QueueFull: No room to wait; at once.
            ShareExceeded: No room for more requests of this client.
            WaitTimeout: No place came free in time, or before the call's deadline.
            UpstreamError: As the upstream raises it.
        """
        call = request.call or call_of(request)
        if call.endpoint.kind is not _GENERATION or not call.model_key:
            return await self._upstream.send(request)
        slot = self.queue.arrive(call)
        if slot.ticket.state is not _ACTIVE:
            await self.queue.served(slot, call)
        try:
            reply = await self._upstream.send(request)
        except BaseException as error:
            state = state_after(error)
            slot.release(state, NO_WORK if state is State.FAILED else None)
            raise
        wait_s = slot.wait_s
        reply.headers[QUEUE_HEADER] = f"{wait_s * 1000:.1f}" if wait_s else "0.0"
        return metered(reply, call, slot)


class Place(Protocol):
    """What a request holds while it is answered."""

    def begun(self) -> None:
        """Say that a stream has given its first bytes."""
        ...

    def release(self, state: State, work: Work | None) -> None:
        """Give it back, and say how the request ended and what it took; only the first time counts."""
        ...


def metered(reply: Reply, call: Call, place: Place) -> Reply:
    """Return a reply that gives its place back at its end; itself if it has ended already.

    Args:
        reply: The answer.
        call: What it answers.
        place: Is told what the answer took.
    """
    body = None if call.is_stream else whole_of(reply)
    if body is None:
        return MeteredReply(reply, call, place)
    work = work_of_answer(body, call.endpoint) if reply.status == _OK else None
    _conclude(place, work, reply.status, NOTHING_TOLD)
    return reply


def _conclude(place: Place, work: Work | None, status: int, so_far: Work) -> None:
    """Give a place back after the end of a body; without ``work`` the answer is not whole."""
    if status != _OK:
        place.release(State.FAILED, NO_WORK)
    elif work is None:
        place.release(State.FAILED, so_far)
    else:
        place.release(State.COMPLETED, work)


class MeteredReply:
    """A reply that keeps its place until its body has ended or it is left, whichever is first.

    Args:
        reply: The answer.
        call: What it answers.
        place: Is told what the answer took.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
    """

    def __init__(self, reply: Reply, call: Call, place: Place) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._place = place
        is_stream = call.is_stream and reply.status == _OK
        self._has_begun = not is_stream
        self._meter = meter_of(call.endpoint, is_stream=is_stream)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives.

        Raises:
            UpstreamError: It broke off or did not come in time.
        """
        with self._measured():
            async for chunk in self._reply.chunks():
                self._feed(chunk)
                yield chunk

    async def pour(self, sink: Sink) -> None:
        """Give the body to a sink; raises what ``chunks`` raises."""
        feed = self._feed

        def fed(chunk: bytes) -> asyncio.Future[None] | None:
            feed(chunk)
            return sink(chunk)

        with self._measured():
            await pour(self._reply, fed)

    async def __aenter__(self) -> Self:
        await self._reply.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._reply.__aexit__(kind, error, trace)  # first: the server's slot must be free too
        finally:
            self._place.release(State.CANCELLED, self._meter.so_far())

    def _feed(self, chunk: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._place.begun()
        self._meter.feed(chunk)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Give the place back when the body has come to its end, or has broken off."""
        try:
            yield
        except Exception:
            self._place.release(State.FAILED, self._meter.so_far())
            raise
        _conclude(self._place, self._meter.whole(), self.status, self._meter.so_far())
