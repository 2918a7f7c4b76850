"""A body that is poured: the sink has each chunk from within its read, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from raw_server import Peer, raw

from ollamalab.connection import OllamaConnection
from ollamalab.errors import BadReply
from ollamalab.protocol.calls import call_of, named
from ollamalab.protocol.upstream import Request, pour

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PARTS = [b"one\n", b"two\n", b"three\n", b"four\n"]
END = b"0\r\n\r\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def asked() -> Request:
    return named(Request(method="POST", path="/api/chat", body=b"{}"))


class Steps:
    """A server that gives its parts one by one, each once the last was seen."""

    def __init__(self, last: bytes = END) -> None:
        self.seen = asyncio.Semaphore(0)
        self._last = last

    async def serve(self, peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        for part in PARTS[1:]:
            await self.seen.acquire()
            await peer.write(chunked(part))
        await self.seen.acquire()
        await peer.write(self._last)
        if self._last == END:
            await peer.hung_up()


async def test_the_sink_has_every_chunk_as_it_comes() -> None:
    steps, came = Steps(), list[bytes]()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        steps.seen.release()

    async with (
        raw(steps.serve) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(asked()) as reply,
    ):
        await pour(reply, take)
    assert came == PARTS


async def test_a_sink_that_lags_gets_nothing_before_it_has_caught_up() -> None:
    caught_up, came = asyncio.get_running_loop().create_future(), list[bytes]()
    is_full = asyncio.Event()

    def take(chunk: bytes) -> asyncio.Future[None] | None:
        came.append(chunk)
        if len(came) == 1:
            is_full.set()
            return caught_up
        return None

    steps = Steps()
    async with (
        raw(steps.serve) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(asked()) as reply,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(pour(reply, take))
        await is_full.wait()
        for _ in PARTS:
            steps.seen.release()
        while not reply.is_ended:  # noqa: ASYNC110 - the socket is read, and nobody is told
            await asyncio.sleep(0)
        assert came == PARTS[:1]
        caught_up.set_result(None)
    assert b"".join(came) == b"".join(PARTS)


async def test_an_error_of_the_sink_is_its_readers_and_ends_the_call() -> None:
    gone = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        await first.wait()
        await peer.write(chunked(PARTS[1]))
        await peer.hung_up()
        gone.set()

    def take(chunk: bytes) -> None:
        first.set()
        if chunk == PARTS[1]:
            raise ValueError("no room")

    first = asyncio.Event()
    async with raw(serve) as server, OllamaConnection(server.url) as connection:
        with pytest.raises(ValueError, match="no room"):
            async with await connection.send(asked()) as reply:
                await pour(reply, take)
        await gone.wait()


async def test_a_body_that_breaks_off_has_given_what_came() -> None:
    steps, came = Steps(last=b""), list[bytes]()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        steps.seen.release()

    async with raw(steps.serve) as server, OllamaConnection(server.url) as connection:
        with pytest.raises(BadReply):
            async with await connection.send(asked()) as reply:
                await pour(reply, take)
    assert came == PARTS


async def test_who_stops_pouring_hangs_up() -> None:
    gone, first = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        await peer.hung_up()
        gone.set()

    async def read(connection: OllamaConnection) -> None:
        async with await connection.send(asked()) as reply:
            await pour(reply, lambda _chunk: first.set())

    async with raw(serve) as server, OllamaConnection(server.url) as connection:
        task = asyncio.create_task(read(connection))
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


def once_resting(rests: asyncio.Event) -> Callable[[Peer], Coroutine[Any, Any, None]]:
    """Return a server that gives the other parts, each by itself, once its reader rests."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        await rests.wait()
        for part in PARTS[1:]:
            await peer.write(chunked(part))
            for _ in range(5):  # turns of the loop, so that each part is read by itself
                await asyncio.sleep(0)
        await peer.write(END)
        await peer.hung_up()

    return serve


async def test_what_comes_during_a_rest_is_one_chunk_and_the_end_ends_it() -> None:
    request, came = asked(), list[bytes]()
    rests = asyncio.Event()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        if len(came) == 1:
            call_of(request).rest_until_s = time.perf_counter() + 3600
            rests.set()

    async with (
        raw(once_resting(rests)) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(request) as reply,
    ):
        await pour(reply, take)
    assert came == [PARTS[0], b"".join(PARTS[1:])]


async def test_a_rest_that_is_over_gives_what_it_gathered() -> None:
    request, came = asked(), list[bytes]()
    gathered = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        await gathered.wait()
        await peer.write(END)
        await peer.hung_up()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        gathered.set()

    async with raw(serve) as server, OllamaConnection(server.url) as connection:
        call_of(request).rest_until_s = time.perf_counter() + 0.01  # before anything was taken
        async with await connection.send(request) as reply:
            await pour(reply, take)
    assert came == PARTS[:1]


async def test_what_a_rest_has_gathered_is_given_though_nothing_more_comes() -> None:
    request, came = asked(), list[bytes]()
    rests, has_all = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(HEAD + chunked(PARTS[0]))
        await rests.wait()
        await peer.write(chunked(PARTS[1]))
        await has_all.wait()
        await peer.write(END)
        await peer.hung_up()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        if len(came) == 1:
            call_of(request).rest_until_s = time.perf_counter() + 0.02
            rests.set()
        else:
            has_all.set()

    async with (
        raw(serve) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(request) as reply,
    ):
        await pour(reply, take)
    assert came == PARTS[:2]


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open none, as under a load that has used them all up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_rest_needs_no_file_of_its_own() -> None:
    """A stream that was to rest broke off where no more files could be opened."""
    request, came = asked(), list[bytes]()
    rests = asyncio.Event()

    def take(chunk: bytes) -> None:
        came.append(chunk)
        call_of(request).rest_until_s = time.perf_counter() + 0.01
        rests.set()

    async with (
        raw(once_resting(rests)) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(request) as reply,
    ):
        with no_more_files():
            await pour(reply, take)
    assert b"".join(came) == b"".join(PARTS)
