"""The queue on an event loop, in front of a server over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from raw_server import until

from ollamalab import QueueSettings, RequestQueue
from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.errors import OllamaLabError, QueueFull, ShareExceeded, UpstreamError, WaitTimeout
from ollamalab.protocol.bodies import SERVER_BUSY
from ollamalab.protocol.calls import CLIENT_HEADER, QUEUE_HEADER, Call, call_of, named
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.queueing import FixedCapacity, QueuedUpstream, QueueStatistics, State, Work
from ollamalab.scripted import Fault, Script, ScriptedServer

ONE = QueueSettings(max_concurrent=1)
QUICK = Script(first_s=0.0, gap_s=0.0, tokens=4, slots=1)
NEVER = Script(first_s=3600.0, tokens=1)
LANE = "registry.ollama.ai/library/scripted:latest"


def request(prompt: str = "hello", *, client: str = "ann", path: str = "/api/chat", **fields: Any) -> Request:
    """One request of a client; the prompt tells it apart in the server's log."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": prompt}], **fields}
    headers = {CLIENT_HEADER: client}
    return named(Request(method="POST", path=path, headers=headers, body=json.dumps(body).encode()))


def call(client: str = "ann", **about: Any) -> Call:
    """The call of such a request."""
    made = call_of(request(client=client))
    for name, value in about.items():
        setattr(made, name, value)
    return made


async def body_of(upstream: Upstream, one: Request) -> tuple[Reply, bytes]:
    async with await upstream.send(one) as reply:
        return reply, b"".join([chunk async for chunk in reply.chunks()])


@asynccontextmanager
async def queued(
    script: Script, settings: QueueSettings = ONE, **limits: float
) -> AsyncIterator[tuple[ScriptedServer, QueuedUpstream]]:
    """A scripted server with a queue in front."""
    connection = ConnectionSettings(**limits)  # type: ignore[arg-type]
    async with ScriptedServer(script) as server, OllamaConnection(server.url, connection) as upstream:
        yield server, RequestQueue(settings).in_front_of(upstream)


def law_holds(seen: QueueStatistics) -> bool:
    ended = seen.completed + seen.failed + seen.rejected + seen.timed_out + seen.cancelled
    return seen.total == ended + seen.waiting + seen.active


async def settled(queue: RequestQueue, is_so: Callable[[QueueStatistics], bool]) -> None:
    """Let the loop run until the queue's statistics are as they should be."""
    await until(lambda: is_so(queue.statistics()))


async def test_an_answer_passes_unchanged_and_tells_how_long_it_waited() -> None:
    async with queued(QUICK) as (server, upstream):
        one = request()
        reply, body = await body_of(upstream, one)
        async with OllamaConnection(server.url) as direct:
            _, expected = await body_of(direct, request())
    lines = [[json.loads(line) for line in text.splitlines()] for text in (body, expected)]
    assert [line["message"] for line in lines[0]] == [line["message"] for line in lines[1]]
    assert float(reply.headers[QUEUE_HEADER]) == pytest.approx(call_of(one).ledger["queue"] * 1000, abs=1)
    seen = upstream.queue.statistics()
    assert (seen.total, seen.completed, seen.peak_waiting, seen.peak_active) == (1, 1, 0, 1)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_clients_are_charged_the_tokens_they_were_served(is_stream: bool) -> None:
    async with queued(QUICK) as (_, upstream):
        await body_of(upstream, request("four words of prompt", stream=is_stream, options={"num_predict": 3}))
        seen = upstream.queue.statistics()
    assert seen.clients["ann"].tokens == 3 + 4 / 2


async def test_no_more_go_to_the_server_than_there_are_places() -> None:
    async with queued(QUICK, QueueSettings(max_concurrent=2)) as (server, upstream):
        await asyncio.gather(*(body_of(upstream, request(str(number))) for number in range(20)))
        seen = upstream.queue.statistics()
    assert (seen.completed, seen.peak_active, seen.peak_waiting) == (20, 2, 18)
    assert [served.prompt for served in server.log] == [str(number) for number in range(20)]


async def test_one_who_sends_fifty_at_once_keeps_another_waiting_for_one_service_at_most() -> None:
    script = Script(first_s=0.002, gap_s=0.0, tokens=1, slots=1)
    async with queued(script) as (server, upstream), asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(body_of(upstream, request(f"ann {number}", client="ann")))
        for number in range(10):
            await server.received(4 * number + 2)
            before = len(server.log)
            await body_of(upstream, request(f"ben {number}", client="ben"))
            order = [served.prompt for served in server.log]
            assert order.index(f"ben {number}") <= before + 1  # one may have gone while his was on its way
    assert len(server.log) == 60


async def test_the_queue_learns_the_servers_slots_and_keeps_the_waiting_to_itself() -> None:
    for slots in (1, 3):
        script = Script(first_s=0.01, gap_s=0.002, tokens=8, slots=slots)
        async with queued(script, QueueSettings()) as (server, upstream):
            forms = [{"stream": bool(number % 3)} for number in range(80)]
            await asyncio.gather(*(body_of(upstream, request(**form)) for form in forms))
            learnt = upstream.queue.statistics().limits[LANE]
        assert abs(learnt - slots) <= 1
        assert len(server.log) == 80


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    async with queued(QUICK, QueueSettings(max_concurrent=1, max_queue=2)) as (_, upstream):
        await body_of(upstream, request())
        async with asyncio.TaskGroup() as tasks, upstream.queue.slot(call()):
            waiting = [tasks.create_task(body_of(upstream, request())) for _ in range(2)]
            await settled(upstream.queue, lambda seen: seen.waiting == 2)
            with pytest.raises(QueueFull) as caught:
                await upstream.send(request())
            assert not any(task.done() for task in waiting)
        seen = upstream.queue.statistics()
    assert str(caught.value) == SERVER_BUSY
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s < 60
    assert (seen.completed, seen.rejected) == (4, 1)


async def test_a_newcomer_takes_a_place_in_the_queue_from_whoever_fills_it() -> None:
    queue = RequestQueue(QueueSettings(max_concurrent=1, max_queue=3))
    held = await queue.enter(call("ann"))
    annas = [asyncio.create_task(queue.enter(call("ann"))) for _ in range(3)]
    await settled(queue, lambda seen: seen.waiting == 3)
    bens = asyncio.create_task(queue.enter(call("ben")))
    with pytest.raises(ShareExceeded, match="client 'ann' had the most requests waiting"):
        await annas[2]
    for task in (bens, annas[0], annas[1]):
        held.release()
        held = await task
    held.release()
    assert queue.statistics().completed == 4


async def test_whoever_waits_too_long_is_told_so() -> None:
    queue = RequestQueue(QueueSettings(max_concurrent=1, queue_timeout_s=0.02))
    async with queue.slot(call()):
        with pytest.raises(WaitTimeout, match=r"busy with other requests for 0\.0 s; try again"):
            await queue.enter(call("ben"))
    seen = queue.statistics()
    assert (seen.timed_out, seen.completed, seen.active) == (1, 1, 0)


async def test_a_deadline_ends_the_wait() -> None:
    queue = RequestQueue(ONE)
    loop_s = queue._clock()
    async with queue.slot(call()):
        with pytest.raises(WaitTimeout, match="deadline of the request passed"):
            await queue.enter(call("ben", deadline_s=loop_s + 0.02))
    assert queue.statistics().timed_out == 1


async def test_an_outer_timeout_at_the_deadline_is_a_timeout_here_too() -> None:
    """Whoever holds the same deadline may cancel the wait before our timer fires."""
    now_s = 0.0
    queue = RequestQueue(ONE, clock=lambda: now_s)
    async with queue.slot(call()):
        waiting = asyncio.create_task(queue.enter(call("ben", deadline_s=30.0)))
        await settled(queue, lambda seen: seen.waiting == 1)
        now_s = 30.0
        waiting.cancel()
        await asyncio.wait([waiting])
    assert (queue.statistics().timed_out, queue.statistics().cancelled) == (1, 0)


async def test_a_client_that_goes_away_leaves_the_queue_at_once() -> None:
    queue = RequestQueue(ONE)
    async with queue.slot(call()):
        waiting = asyncio.create_task(queue.enter(call("ben")))
        await settled(queue, lambda seen: seen.waiting == 1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (queue.statistics().waiting, queue.statistics().cancelled) == (0, 1)


async def test_a_place_granted_to_one_who_has_just_gone_goes_to_the_next() -> None:
    """The grant and the cancellation fall into one turn of the loop, in either order."""
    for cancel_first in (True, False):
        queue = RequestQueue(ONE)
        held = await queue.enter(call())
        gone, after = (asyncio.create_task(queue.enter(call(name))) for name in ("ben", "cem"))
        await settled(queue, lambda seen: seen.waiting == 2)
        if cancel_first:
            gone.cancel()
            held.release()
        else:
            held.release()
            gone.cancel()
        next_slot = await after
        assert gone.cancelled()
        next_slot.release()
        seen = queue.statistics()
        assert (seen.completed, seen.cancelled, seen.active, seen.waiting) == (2, 1, 0, 0)


async def test_only_the_first_release_counts() -> None:
    queue = RequestQueue(ONE)
    slot = await queue.enter(call())
    slot.release(State.FAILED, Work(output_tokens=5, prompt_tokens=0))
    slot.release()
    seen = queue.statistics()
    assert (seen.failed, seen.completed, seen.active, seen.clients["ann"].tokens) == (1, 0, 0, 5)


async def test_a_block_gives_its_place_back_however_it_ends() -> None:
    queue = RequestQueue(ONE)
    async with queue.slot(call()) as slot:
        assert slot.wait_s == 0
    with pytest.raises(KeyError):
        async with queue.slot(call()):
            raise KeyError
    with pytest.raises(asyncio.CancelledError):
        async with queue.slot(call()):
            raise asyncio.CancelledError
    seen = queue.statistics()
    assert (seen.completed, seen.failed, seen.cancelled, seen.active) == (1, 1, 1, 0)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_hang_up_frees_the_servers_slot_and_then_ours(is_stream: bool) -> None:
    async with queued(NEVER) as (server, upstream):
        task = asyncio.create_task(body_of(upstream, request(stream=is_stream)))
        await server.received(1)
        task.cancel()
        await asyncio.wait([task])
        await server.ended(1)
        seen = upstream.queue.statistics()
    assert (seen.cancelled, seen.active) == (1, 0)


async def test_a_reply_left_in_the_middle_gives_its_place_back_and_is_charged_what_came() -> None:
    async with queued(Script(first_s=0.0, gap_s=0.05, tokens=1000, slots=1)) as (server, upstream):
        async with await upstream.send(request()) as reply:
            async for _ in reply.chunks():
                break
            assert upstream.queue.statistics().active == 1
        await server.ended(1)
        seen = upstream.queue.statistics()
    assert (seen.cancelled, seen.active) == (1, 0)
    assert seen.clients["ann"].tokens < 10


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("is_stream", [True, False])
async def test_every_fault_of_the_server_gives_the_place_back(fault: Fault, is_stream: bool) -> None:
    """The next request is served whatever became of the first."""
    script = Script(first_s=0.0, gap_s=0.0, tokens=4, slots=2, faults={0: fault})
    async with queued(script, progress_timeout_s=0.2) as (_, upstream):
        has_failed = False
        try:
            reply, body = await body_of(upstream, request(stream=is_stream))
            has_failed = reply.status != 200 or b'"done":true' not in body
        except UpstreamError:
            has_failed = True
        await body_of(upstream, request())
        seen = upstream.queue.statistics()
    assert (seen.failed, seen.completed) == ((1, 1) if has_failed else (0, 2))
    assert (seen.active, seen.waiting) == (0, 0)


async def test_only_what_generates_text_waits() -> None:
    async with queued(NEVER) as (server, upstream):
        stuck = asyncio.create_task(body_of(upstream, request()))
        await server.received(1)
        for one in (
            Request(method="GET", path="/api/tags"),
            Request(method="POST", path="/api/show", body=b'{"model": "scripted"}'),
            Request(method="POST", path="/api/embed", body=b'{"model": "scripted", "input": "x"}'),
            Request(method="POST", path="/api/chat", body=b"{}"),
        ):
            reply, _ = await body_of(upstream, one)
            assert QUEUE_HEADER not in reply.headers
        assert upstream.queue.statistics().total == 1
        stuck.cancel()
        await asyncio.wait([stuck])


async def test_a_load_waits_like_any_other_request() -> None:
    """It would push another model out of memory, or wait in the server itself."""
    queue = RequestQueue(capacity=FixedCapacity(1))
    async with ScriptedServer(QUICK) as server, OllamaConnection(server.url) as connection:
        upstream = queue.in_front_of(connection)
        held = await queue.enter(call())
        load = asyncio.create_task(body_of(upstream, request(messages=[])))
        await settled(queue, lambda seen: seen.waiting == 1)
        held.release()
        _, body = await load
    assert json.loads(body)["done_reason"] == "load"
    assert queue.statistics().completed == 2


async def test_a_storm_of_requests_and_hang_ups_leaves_nothing_behind() -> None:
    """Every offered request ends in exactly one way, and the sum holds at any time."""
    draw = random.Random(3)
    script = Script(first_s=0.001, gap_s=0.001, tokens=3, slots=2, faults={7: Fault.CUT, 31: Fault.RESET})
    settings = QueueSettings(max_queue=20, queue_timeout_s=0.05, ageing_s=0.01)
    async with queued(script, settings) as (_, upstream):
        queue = upstream.queue

        async def one(number: int) -> None:
            about = request(str(number), client=f"client {number % 7}", stream=bool(number % 2))
            call_of(about).priority = number % 10
            if number % 13 == 5:  # else it would depend on the machine whether any comes too late
                call_of(about).deadline_s = time.perf_counter()
            try:
                async with await upstream.send(about) as reply:
                    assert law_holds(queue.statistics())
                    async for _ in reply.chunks():
                        if number % 11 == 0:
                            return
            except OllamaLabError:
                pass
            finally:
                assert law_holds(queue.statistics())

        others = asyncio.all_tasks()
        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(one(number)))
            if draw.random() < 0.3:
                draw.choice(tasks).cancel()
            for _ in range(draw.randrange(12)):
                await asyncio.sleep(0)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        seen = queue.statistics()
        assert asyncio.all_tasks() == others
    assert {type(error) for error in ended} <= {type(None), asyncio.CancelledError}
    assert (seen.waiting, seen.active, queue._waiters) == (0, 0, {})
    assert law_holds(seen)
    assert seen.peak_waiting <= 20
    assert all((seen.completed, seen.failed, seen.rejected, seen.timed_out, seen.cancelled))
