"""Who joins a call that waits in the queue: nobody for whom that would be later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from held_upstream import STREAM, HeldUpstream, body_of, chat
from raw_server import until

from ollamalab import CacheSettings, RequestQueue, ResponseCache
from ollamalab.protocol.upstream import Request
from ollamalab.settings import QueueSettings

MARK = "x-ollamalab-cache"


def asking(content: str, priority: int) -> Request:
    return chat(content, headers={"x-ollamalab-priority": str(priority)})


class Desk:
    """A cache before a queue with one place."""

    def __init__(self, upstream: HeldUpstream, queue: RequestQueue, cache: ResponseCache) -> None:
        self.upstream = upstream
        self.queue = queue
        self.cache = cache

    async def ask(self, content: str, priority: int) -> asyncio.Task[str]:
        """Ask; return once the request stands where it will stay."""
        before = self._standing()
        task = asyncio.create_task(self._answer(asking(content, priority)))
        await until(lambda: self._standing() > before)
        return task

    async def serve_next(self, number: int) -> str:
        """Answer the call with this number, from 1; return what it asked."""
        call = await self.upstream.called(number)
        call.open().give(*STREAM).end()
        return call.request.body.decode()

    def _standing(self) -> int:
        """Return how many requests have a ticket of their own so far, or read another's call."""
        joined = sum(flight.passengers - 1 for flight in self.cache._flights.values())
        return self.queue.statistics().total + joined

    async def _answer(self, request: Request) -> str:
        reply = await self.cache.send(request)
        assert await body_of(reply) == b"".join(STREAM)
        return reply.headers[MARK]


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    upstream = HeldUpstream()
    queue = RequestQueue(QueueSettings(max_concurrent=1))
    async with ResponseCache(queue.in_front_of(upstream), CacheSettings()) as cache:
        yield Desk(upstream, queue, cache)


async def test_who_is_more_urgent_does_not_wait_in_the_line_of_who_asked_first():
    """It joined the other's call, and was served behind all that was more urgent than that one."""
    async with desk() as at:
        first = await at.ask("busy", 5)
        slow = await at.ask("same", 9)
        middle = await at.ask("other", 5)
        urgent = await at.ask("same", 0)
        for number, content in enumerate(("busy", "same", "other", "same"), 1):
            assert f'"{content}"' in await at.serve_next(number)
        assert [await task for task in (first, urgent, middle, slow)] == ["miss"] * 4


async def test_who_is_as_urgent_or_less_joins():
    async with desk() as at:
        first = await at.ask("busy", 5)
        leader = await at.ask("same", 3)
        joined = [await at.ask("same", priority) for priority in (3, 9)]
        for number in (1, 2):
            await at.serve_next(number)
        assert [await task for task in (first, leader, *joined)] == ["miss", "miss", *2 * ["coalesced"]]
        assert len(at.upstream.calls) == 2


async def test_everybody_joins_a_call_that_has_its_place():
    """Nothing that would still have to wait is earlier."""
    async with desk() as at:
        leader = await at.ask("same", 9)
        await at.upstream.called(1)
        urgent = await at.ask("same", 0)
        await at.serve_next(1)
        assert [await leader, await urgent] == ["miss", "coalesced"]


async def test_those_who_come_later_join_the_more_urgent_call():
    async with desk() as at:
        first = await at.ask("busy", 5)
        slow, urgent = await at.ask("same", 9), await at.ask("same", 0)
        late = await at.ask("same", 9)
        for number in (1, 2, 3):
            await at.serve_next(number)
        assert [await task for task in (first, slow, urgent, late)] == ["miss", "miss", "miss", "coalesced"]
