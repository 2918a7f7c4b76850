"""Frames of a stream are written when they are due, and everything is written at its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from raw_server import Peer, raw

from ollamalab.batching import StreamBatcher
from ollamalab.connection import OllamaConnection
from ollamalab.errors import BadReply
from ollamalab.gateway.framing import write_frames
from ollamalab.protocol.calls import Call, call_of, named
from ollamalab.protocol.endpoints import ENDPOINTS
from ollamalab.protocol.upstream import Request
from ollamalab.settings import BatchSettings

FIRST, SECOND, THIRD = b'{"response":"1"}\n', b'{"response":"2"}\n', b'{"response":"3"}\n'
FINAL = b'{"done":true}\n'
CALL = Call(endpoint=ENDPOINTS["/api/chat"])
LONG = BatchSettings(window_s=60.0)
SHORT = BatchSettings(window_s=0.001)


class Stream:
    """Chunks that come when the test says."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    async def chunks(self) -> AsyncIterator[bytes]:
        while part := await self.parts.get():
            self.parts.task_done()
            if isinstance(part, Exception):
                raise part
            yield part


class Client:
    """Takes frames; may fall behind."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.backlog_bytes = 0
        self.caught_up = asyncio.Event()
        self.lags = 0
        self._came = asyncio.Event()

    def write(self, data: bytes) -> None:
        if data:
            self.frames.append(data)
            self._came.set()

    def lag(self) -> asyncio.Future[None] | None:
        if not self.backlog_bytes:
            return None
        self.lags += 1
        return asyncio.ensure_future(self._catch_up())

    async def _catch_up(self) -> None:
        await self.caught_up.wait()
        self.backlog_bytes = 0

    async def has(self, count: int) -> None:
        """Wait for so many frames."""
        while len(self.frames) < count:
            self._came.clear()
            await self._came.wait()


async def test_the_first_line_and_the_final_one_wait_for_no_window() -> None:
    stream, client = Stream(), Client()
    for part in (FIRST, SECOND, THIRD, FINAL):
        stream.parts.put_nowait(part)
    async with asyncio.TaskGroup() as group:
        group.create_task(write_frames(stream, StreamBatcher(LONG), client, CALL))
        await client.has(2)
        assert client.frames == [FIRST, SECOND + THIRD + FINAL], "though the stream is still open"
        stream.parts.put_nowait(b"")


async def test_what_is_held_leaves_when_it_is_due_though_nothing_more_comes() -> None:
    stream, client = Stream(), Client()
    async with asyncio.TaskGroup() as group:
        group.create_task(write_frames(stream, StreamBatcher(SHORT), client, CALL))
        for count, part in enumerate((FIRST, SECOND, THIRD), start=1):
            stream.parts.put_nowait(part)
            await client.has(count)
        assert client.frames == [FIRST, SECOND, THIRD]
        stream.parts.put_nowait(b"")


async def test_lines_of_one_window_leave_in_one_frame() -> None:
    stream, client = Stream(), Client()
    async with asyncio.TaskGroup() as group:
        group.create_task(write_frames(stream, StreamBatcher(BatchSettings(window_s=0.05)), client, CALL))
        stream.parts.put_nowait(FIRST)
        await client.has(1)
        stream.parts.put_nowait(SECOND)
        stream.parts.put_nowait(THIRD)
        await client.has(2)
        assert client.frames == [FIRST, SECOND + THIRD]
        stream.parts.put_nowait(b"")


@pytest.mark.parametrize("settings", [BatchSettings(lines=10), LONG])
async def test_a_stream_that_breaks_off_gives_all_that_came_before_its_error(settings: BatchSettings) -> None:
    stream, client = Stream(), Client()
    for part in (FIRST, SECOND, b'{"resp', BadReply("cut")):
        stream.parts.put_nowait(part)
    with pytest.raises(BadReply, match="cut"):
        await write_frames(stream, StreamBatcher(settings), client, CALL)
    assert client.frames == [FIRST, SECOND + b'{"resp']


@pytest.mark.parametrize("settings", [BatchSettings(lines=10), LONG])
async def test_a_stream_that_ends_without_its_final_line_gives_all_of_it(settings: BatchSettings) -> None:
    stream, client = Stream(), Client()
    for part in (FIRST, SECOND, THIRD, b""):
        stream.parts.put_nowait(part)
    await write_frames(stream, StreamBatcher(settings), client, CALL)
    assert client.frames == [FIRST, SECOND + THIRD]


async def test_a_client_that_hangs_up_gets_nothing_later() -> None:
    """A timer that outlived its stream would write into somebody else's answer."""
    stream, client = Stream(), Client()
    task = asyncio.create_task(
        write_frames(stream, StreamBatcher(BatchSettings(window_s=0.01)), client, CALL)
    )
    stream.parts.put_nowait(FIRST)
    await client.has(1)
    stream.parts.put_nowait(SECOND)
    await stream.parts.join()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other = Client()
    later = Stream()
    for part in (FIRST, SECOND):
        later.parts.put_nowait(part)
    async with asyncio.TaskGroup() as group:
        group.create_task(write_frames(later, StreamBatcher(BatchSettings(window_s=0.02)), other, CALL))
        await other.has(2)  # a longer window than the first, begun later
        later.parts.put_nowait(b"")
    assert client.frames == [FIRST]


async def test_nothing_is_taken_from_the_upstream_while_the_client_is_too_far_behind() -> None:
    stream, client = Stream(), Client()
    client.backlog_bytes = 1
    for part in (FIRST, SECOND, FINAL, b""):
        stream.parts.put_nowait(part)
    async with asyncio.TaskGroup() as group:
        group.create_task(write_frames(stream, StreamBatcher(BatchSettings(is_adaptive=True)), client, CALL))
        await client.has(1)
        assert stream.parts.qsize() == 3
        client.caught_up.set()
    assert b"".join(client.frames) == FIRST + SECOND + FINAL
    assert client.lags == 1


async def test_an_adaptive_stream_says_when_it_rests_and_loses_nothing() -> None:
    stream, client, call = Stream(), Client(), Call(endpoint=ENDPOINTS["/api/chat"])
    parts = [FIRST, *[SECOND * 4] * 5, b""]
    for part in parts:
        stream.parts.put_nowait(part)
    batcher = StreamBatcher(BatchSettings(is_adaptive=True))
    await write_frames(stream, batcher, client, call)
    assert b"".join(client.frames) == b"".join(parts)
    assert call.rest_until_s == batcher.rest_until_s
    assert batcher.tally.lines == 21


async def test_what_comes_during_a_rest_is_one_chunk_and_the_end_ends_it() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(FIRST))
        await rests.wait()
        for part in (SECOND, THIRD, FINAL):
            await peer.write(chunked(part))
            for _ in range(5):  # turns of the loop, so that each part is read by itself
                await asyncio.sleep(0)
        await peer.write(b"0\r\n\r\n")
        await peer.hung_up()

    rests = asyncio.Event()
    async with raw(serve) as server, OllamaConnection(server.url) as connection:
        request = named(Request(method="POST", path="/api/chat", body=b"{}"))
        async with await connection.send(request) as reply:
            chunks = reply.chunks()
            assert await anext(chunks) == FIRST
            call_of(request).rest_until_s = time.perf_counter() + 3600
            rests.set()
            assert await anext(chunks) == SECOND + THIRD + FINAL
            assert [chunk async for chunk in chunks] == []


async def test_a_rest_ends_in_time_though_nothing_came() -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(FIRST))
        await rested.wait()
        await peer.write(chunked(SECOND))
        await peer.write(chunked(FINAL) + b"0\r\n\r\n")
        await peer.hung_up()

    rested = asyncio.Event()
    async with raw(serve) as server, OllamaConnection(server.url) as connection:
        request = named(Request(method="POST", path="/api/chat", body=b"{}"))
        async with await connection.send(request) as reply:
            chunks = reply.chunks()
            assert await anext(chunks) == FIRST
            call_of(request).rest_until_s = time.perf_counter() + 0.01
            asyncio.get_running_loop().call_later(0.05, rested.set)
            assert b"".join([chunk async for chunk in chunks]) == SECOND + FINAL


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
