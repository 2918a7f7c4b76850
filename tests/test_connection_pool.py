"""Who gets which connection, in which order, and that nothing stays behind; on both loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest
from raw_server import OK, Handler, Peer, always, body_of, claims, open_sockets, raw, until

from ollamalab.connection import ConnectionSettings, OllamaConnection, new_event_loop
from ollamalab.connection.failures import is_worth_sending_again
from ollamalab.errors import BadReply, UpstreamUnavailable
from ollamalab.protocol.upstream import Request

GET = Request(method="GET", path="/")
POST = Request(method="POST", path="/api/chat", body=b"{}")
RESENDING = ConnectionSettings(resend_stale=True)


async def fetch(connection: OllamaConnection, request: Request = GET) -> bytes:
    """Return the body of one exchange."""
    async with await connection.send(request) as reply:
        return await body_of(reply)


async def silent(peer: Peer) -> None:
    """Take a request and say nothing."""
    await peer.request()
    await peer.hung_up()


async def endless(peer: Peer) -> None:
    """Begin an answer that does not end."""
    await peer.request()
    await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
    await peer.hung_up()


def answering_first(count: int, then: Callable[[Peer], None]) -> Handler:
    """Answer so many requests of the first connection, do that on the next; answer all of the others."""

    async def handle(peer: Peer) -> None:
        while peer.number or len(peer.requests) < count:
            await peer.request()
            await peer.write(OK)
        await peer.request()
        then(peer)

    return handle


def nothing(_: Peer) -> None:
    """Close without an answer."""


def reset(peer: Peer) -> None:
    """Close hard."""
    peer.writer.transport.abort()


def first_byte(peer: Peer) -> None:
    """Begin to answer, then close."""
    peer.writer.write(b"H")


# Turns.


async def test_who_waits_is_served_in_order_of_arrival_on_the_connections_there_are() -> None:
    turn = asyncio.Semaphore(0)

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await turn.acquire()
            await peer.write(OK)

    served: list[int] = []
    async with (
        raw(handle) as server,
        OllamaConnection(server.url, ConnectionSettings(max_connections=2)) as connection,
    ):

        async def client(number: int) -> None:
            assert await fetch(connection, Request(method="GET", path=f"/{number}")) == b"ok"
            served.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(12):
                group.create_task(client(number))
            for _ in range(12):
                turn.release()
                done = len(served)
                await until(lambda done=done: len(served) > done)  # type: ignore[misc]
        asked = sorted((int(request.split()[1][1:]) for request in server.requests), key=served.index)
        assert len(server.peers) == 2
        per_peer = [[int(request.split()[1][1:]) for request in peer.requests] for peer in server.peers]
    assert asked == served
    assert all(numbers == sorted(numbers) for numbers in per_peer)


async def test_a_connection_that_is_lost_makes_room_for_who_waits() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    settings = ConnectionSettings(max_connections=1)
    async with raw(handle) as server, OllamaConnection(server.url, settings) as connection:
        assert await asyncio.gather(*(fetch(connection) for _ in range(5))) == [b"ok"] * 5
    assert len(server.peers) == 5


async def test_the_connection_used_last_is_used_next() -> None:
    """So that those of a burst can grow old and close."""
    async with raw(always(OK)) as server, OllamaConnection(server.url) as connection:
        await asyncio.gather(*(fetch(connection) for _ in range(5)))
        for _ in range(20):
            await fetch(connection)
        assert sorted(len(peer.requests) for peer in server.peers) == [1, 1, 1, 1, 21]


async def test_giving_up_while_waiting_leaves_the_turn_to_the_next() -> None:
    release = asyncio.Event()

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.write(OK)

    settings = ConnectionSettings(max_connections=1)
    async with raw(handle) as server, OllamaConnection(server.url, settings) as connection:
        tasks = [asyncio.create_task(fetch(connection)) for _ in range(4)]
        await until(lambda: bool(server.requests))
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait(tasks[1:3])
        release.set()
        assert await asyncio.gather(tasks[0], tasks[3]) == [b"ok", b"ok"]
        assert len(server.peers) == 1


async def test_who_is_served_and_cancelled_at_once_passes_the_turn_on() -> None:
    """At every moment of the hand-over: the place in the pool is never lost."""
    settings = ConnectionSettings(max_connections=1)
    async with raw(always(OK)) as server, OllamaConnection(server.url, settings) as connection:
        for turns in range(30):
            tasks = [asyncio.create_task(fetch(connection)) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[1].cancel()
            await asyncio.wait(tasks)
            assert [task.cancelled() or task.result() for task in tasks[::2]] == [b"ok", b"ok"]
            assert await fetch(connection) == b"ok"
        assert connection.open_connections == 1


async def test_cancelling_at_any_moment_leaves_no_socket_behind() -> None:
    before = open_sockets()
    async with raw(always(OK)) as server:
        for turns in range(30):
            async with OllamaConnection(server.url) as connection:
                tasks = [asyncio.create_task(fetch(connection)) for _ in range(4)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                assert await fetch(connection) == b"ok"
            assert connection.open_connections == 0
        await server.ended(len(server.peers))
    await until(lambda: open_sockets() == before)


# Hanging up.


async def test_cancelling_while_the_server_is_silent_hangs_up() -> None:
    async with raw(silent) as server, OllamaConnection(server.url) as connection:
        task = asyncio.create_task(fetch(connection))
        await until(lambda: bool(server.requests))
        task.cancel()
        await server.ended(1)
        assert task.cancelled()
        assert connection.open_connections == 0


async def test_leaving_early_hangs_up_at_once() -> None:
    async with raw(endless) as server, OllamaConnection(server.url) as connection:
        async with await connection.send(GET) as reply:
            assert await anext(aiter(reply.chunks())) == b"begin"
        await server.ended(1)
        assert connection.open_connections == 0


async def test_closing_ends_what_is_in_progress_and_who_waits() -> None:
    settings = ConnectionSettings(max_connections=2)
    async with raw(endless) as server:
        async with OllamaConnection(server.url, settings) as connection:
            reply = await connection.send(GET)
            reading = asyncio.create_task(body_of(reply))
            asking = asyncio.create_task(fetch(connection))
            await until(lambda: len(server.requests) == 2)
            waiting = asyncio.create_task(fetch(connection))
            await asyncio.sleep(0)
        assert connection.open_connections == 0
        for task, failure in ((reading, BadReply), (asking, BadReply), (waiting, UpstreamUnavailable)):
            with pytest.raises(failure):
                await task
        await server.ended(2)


# Idle connections.


async def test_an_idle_connection_that_the_server_closes_is_forgotten_at_once() -> None:
    close = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await close.wait()

    async with raw(handle) as server, OllamaConnection(server.url) as connection:
        await asyncio.gather(fetch(connection), fetch(connection))
        assert connection.open_connections == 2
        close.set()
        await until(lambda: connection.open_connections == 0)
        assert await fetch(connection) == b"ok"


async def test_bytes_on_an_idle_connection_end_it() -> None:
    speak = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await speak.wait()
        await peer.write(OK)
        await peer.hung_up()

    async with raw(handle) as server, OllamaConnection(server.url) as connection:
        await fetch(connection)
        speak.set()
        await server.ended(1)
        assert connection.open_connections == 0


async def test_an_idle_connection_is_closed_when_its_time_is_up() -> None:
    settings = ConnectionSettings(idle_timeout_s=0.05)
    async with raw(always(OK)) as server, OllamaConnection(server.url, settings) as connection:
        for _ in range(2):
            await asyncio.gather(*(fetch(connection) for _ in range(3)))
            await until(lambda: connection.open_connections == 0)
        assert len(server.peers) == 6


# Sending again.


async def test_what_crosses_the_close_of_an_idle_connection_is_sent_again() -> None:
    for request in (GET, POST):
        for then in (nothing, reset):
            async with raw(answering_first(1, then)) as server:
                async with OllamaConnection(server.url, RESENDING) as connection:
                    assert [await fetch(connection, request) for _ in range(2)] == [b"ok", b"ok"]
                assert [len(peer.requests) for peer in server.peers] == [2, 1]


async def test_other_idle_connections_of_that_server_are_not_tried() -> None:
    """A restart closes all of them; we may have heard of the first only."""
    hold = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        if peer.number < 3:
            await hold.wait()
        await peer.write(OK)
        await peer.request()
        if peer.number >= 3:
            await peer.write(OK)

    async with raw(handle) as server, OllamaConnection(server.url, RESENDING) as connection:
        tasks = [asyncio.create_task(fetch(connection)) for _ in range(3)]
        await until(lambda: len(server.requests) == 3)
        hold.set()
        await asyncio.gather(*tasks)
        assert await fetch(connection) == b"ok"
        assert connection.open_connections == 1
    assert sorted(len(peer.requests) for peer in server.peers) == [1, 1, 1, 2]


async def test_nothing_else_is_sent_again() -> None:
    delete = Request(method="DELETE", path="/api/delete", body=b"{}")
    cases: list[tuple[int, Callable[[Peer], None], Request, ConnectionSettings]] = [
        (0, nothing, POST, RESENDING),  # a new connection: the server had it
        (1, first_byte, POST, RESENDING),  # it had begun to answer
        (1, nothing, delete, RESENDING),  # would be answered otherwise the second time
        (1, nothing, POST, ConnectionSettings()),  # one request each is what an instrument counts
    ]
    for count, then, request, settings in cases:
        async with raw(answering_first(count, then)) as server:
            async with OllamaConnection(server.url, settings) as connection:
                for _ in range(count):
                    assert await fetch(connection) == b"ok"
                with pytest.raises(BadReply):
                    await fetch(connection, request)
            assert [len(peer.requests) for peer in server.peers] == [count + 1]


async def test_a_server_that_swallows_everything_is_asked_twice_only() -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.write(OK)
            await peer.request()

    async with raw(handle) as server, OllamaConnection(server.url, RESENDING) as connection:
        assert await fetch(connection) == b"ok"
        with pytest.raises(BadReply, match="without an answer"):
            await fetch(connection, POST)
    assert [len(peer.requests) for peer in server.peers] == [2, 1]


def test_sending_again_is_for_a_close_that_crossed_the_request() -> None:
    assert is_worth_sending_again("POST", is_reused=True, after_s=0.01)
    assert is_worth_sending_again("GET", is_reused=True, after_s=0.01)
    assert not is_worth_sending_again("POST", is_reused=False, after_s=0.01)
    assert not is_worth_sending_again("POST", is_reused=True, after_s=5.0)  # it worked on it
    assert not is_worth_sending_again("DELETE", is_reused=True, after_s=0.01)


@pytest.mark.parametrize("claim", claims(globals()), ids=lambda claim: claim.__name__.removeprefix("test_"))
def test_the_same_holds_on_uvloop(claim: Callable[[], Coroutine[None, None, None]]) -> None:
    before = open_sockets()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(claim())
    assert open_sockets() <= before
