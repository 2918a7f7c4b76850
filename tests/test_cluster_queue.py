"""A queue in front of a cluster: as many at once as the members can use, learnt at each by itself."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from cluster_nodes import KEY, QUICK, STILL, Node, body_of, clustered, generate, is_at_rest, listed

from ollamalab.cluster import Cluster, Member
from ollamalab.connection import OllamaConnection
from ollamalab.errors import QueueFull, UpstreamError
from ollamalab.protocol.calls import named
from ollamalab.protocol.upstream import Request
from ollamalab.queueing import QueuedUpstream, RequestQueue
from ollamalab.scripted import Script, ScriptedServer
from ollamalab.settings import QueueSettings

SCRIPTED = "registry.ollama.ai/library/scripted:latest"


def queued(cluster: Cluster, **settings: object) -> QueuedUpstream:
    queue = RequestQueue(QueueSettings(**settings), capacity=cluster.capacity)  # type: ignore[arg-type]
    cluster.on_more_room(queue.refill)
    return queue.in_front_of(cluster)


def ask(**fields: object) -> Request:
    """Return a request that can be told apart: each has a call of its own."""
    return named(generate(**fields))  # type: ignore[arg-type]


async def read(upstream: QueuedUpstream, request: Request) -> str:
    async with await upstream.send(request) as reply:
        assert [chunk async for chunk in reply.chunks()]
        return reply.headers["x-ollamalab-upstream"]


async def test_a_set_number_is_for_each_member_and_never_passed() -> None:
    nodes = Node(), Node()
    for node in nodes:
        node.gate.clear()
    async with clustered(*nodes, max_concurrent=2, settings=STILL) as cluster:
        await listed(cluster)
        upstream = queued(cluster, max_concurrent=2)
        tasks = [asyncio.create_task(read(upstream, ask())) for _ in range(9)]
        for node in nodes:
            await node.called(2)
        statistics = upstream.queue.statistics()
        assert (statistics.active, statistics.waiting, statistics.limits) == (4, 5, {KEY: 4})
        assert [member.view.in_flight for member in cluster.members] == [2, 2]
        for node in nodes:
            node.gate.set()
        assert Counter(await asyncio.gather(*tasks)).total() == 9
        assert is_at_rest(cluster)
        assert upstream.queue.statistics().completed == 9


async def test_a_member_that_returns_serves_those_who_wait_without_a_new_event() -> None:
    """Everything waits behind one held stream; the second server comes back, and they go on."""
    a, b = Node(), Node()
    a.gate.clear()
    async with clustered(a, b, max_concurrent=1, settings=QUICK) as cluster:
        await listed(cluster)
        await b.stop()
        while cluster.members[1].health.is_up:  # noqa: ASYNC110 - a look sends no event
            await asyncio.sleep(0.001)
        upstream = queued(cluster, max_concurrent=1)
        with_b_down = [asyncio.create_task(read(upstream, ask())) for _ in range(5)]
        await a.called(1)
        assert upstream.queue.statistics().waiting == 4
        await b.start()
        done, _ = await asyncio.wait(with_b_down, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result() for task in done} == {"b"}
        a.gate.set()
        assert set(await asyncio.gather(*with_b_down)) == {"a", "b"}


async def test_members_learn_apart_and_the_queue_gets_their_sum() -> None:
    """One server has four slots, the other one: about five at once, not twice what either bears."""
    script = Script(first_s=0.03, gap_s=0.002, tokens=8)
    async with (
        ScriptedServer(Script(**{**vars_of(script), "slots": 4})) as wide,
        ScriptedServer(Script(**{**vars_of(script), "slots": 1})) as narrow,
        OllamaConnection(wide.url) as to_wide,
        OllamaConnection(narrow.url) as to_narrow,
        Cluster(
            [Member("wide", to_wide), Member("narrow", to_narrow)],
            route="model-aware",
            settings=STILL,
            rng=random.Random(1),
        ) as cluster,
    ):
        await listed(cluster)
        upstream = queued(cluster, max_queue=1000)

        async def client() -> None:
            for _ in range(25):
                await read(upstream, ask(model="scripted"))

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(client())
        learnt = {member.name: member.models[SCRIPTED].places for member in cluster.statistics().members}
        assert learnt["narrow"] <= 2  # one, and perhaps one on trial
        assert 3 <= learnt["wide"] <= 5
        assert upstream.queue.statistics().limits[SCRIPTED] == cluster.capacity.limits()[SCRIPTED]
        assert is_at_rest(cluster)


def vars_of(script: Script) -> dict[str, object]:
    return {name: getattr(script, name) for name in ("first_s", "gap_s", "tokens")}


@pytest.mark.parametrize("is_queued", [True, False])
@pytest.mark.parametrize("is_stream", [True, False])
async def test_speeds_are_learnt_from_final_lines_with_and_without_a_queue(
    is_queued: bool, is_stream: bool
) -> None:
    """The nodes say: three tokens read and four written in 40 ms.

    One read took as long as one written, since the clock of the output starts after its first; of that a
    first answer teaches a fifth, so that one read counts for 0.6.
    """
    async with clustered(Node(), settings=STILL) as cluster:
        await listed(cluster)
        request = ask(stream=is_stream)
        if is_queued:
            await read(queued(cluster), request)
        else:
            await body_of(cluster, request)
        (member,) = cluster.statistics().members
        assert member.models[KEY].tokens_per_s == pytest.approx((4 + 0.6 * 3) / 0.04)
        assert member.models[KEY].load_s is None  # a millisecond is no load
        assert is_at_rest(cluster)


async def test_a_request_that_moved_is_counted_where_it_ended() -> None:
    a, b = Node("500"), Node()
    async with clustered(a, b, settings=STILL) as cluster:
        await listed(cluster)
        upstream = queued(cluster)
        for _ in range(6):
            assert await read(upstream, ask()) == "b"
        first, second = cluster.statistics().members
        assert first.models[KEY].tokens_per_s is None
        assert second.models[KEY].tokens_per_s is not None
        assert upstream.queue.statistics().completed == 6
        assert is_at_rest(cluster)


async def test_a_storm_through_the_queue_ends_every_request_once() -> None:
    rng = random.Random(5)
    nodes = [Node() for _ in range(3)]
    async with clustered(*nodes, route="least-inflight", rng=rng) as cluster:
        await listed(cluster)
        upstream = queued(cluster, max_queue=40, queue_timeout_s=5.0)

        async def client(number: int) -> None:
            try:
                async with await upstream.send(ask(stream=number % 2 > 0)) as reply:
                    async for _ in reply.chunks():
                        if number % 9 == 0:
                            return
            except (UpstreamError, QueueFull):
                pass

        tasks = []
        for number in range(400):
            tasks.append(asyncio.create_task(client(number)))
            if number % 8 == 0:
                rng.choice(nodes).does = rng.choice(["answer", "answer", "500", "503", "cut", "truncate"])
            if number % 6 == 0:
                rng.choice(tasks).cancel()
            if number % 4 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        statistics = upstream.queue.statistics()
        ended = (
            statistics.completed
            + statistics.failed
            + statistics.rejected
            + statistics.timed_out
            + statistics.cancelled
        )
        assert (statistics.total, statistics.waiting, statistics.active) == (ended, 0, 0)
        assert is_at_rest(cluster)
