"""Writes a stream in the frames that a batcher makes of it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from ollamalab.batching import StreamBatcher
from ollamalab.errors import OllamaLabError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.upstream import Reply, pour


class Client(Protocol):
    """Where frames go."""

    @property
    def backlog_bytes(self) -> int:
        """What the client has not taken yet."""
        ...

    def write(self, data: bytes) -> None:
        """Write a frame; never waits, and does nothing once the client is gone."""
        ...

    def lag(self) -> asyncio.Future[None] | None:
        """Return what to wait for while the client is too far behind; None if it is not."""
        ...


async def write_frames(
    reply: Reply,
    batcher: StreamBatcher,
    client: Client,
    call: Call,
) -> None:
    """Write a stream to its end; what is held when it breaks off is written too.

    A frame that is due while the next chunk is awaited is written by a timer,
    since racing the chunk against the moment would cost a task for each chunk. A rest is left to whoever
    reads the socket: asleep here, nobody would see the stream's end, and what comes would still be many
    chunks.

    Args:
        reply: The stream.
        batcher: Decides.
        client: Where frames go.
        call: Told when this reader wants to rest.

    Raises:
        OllamaLabError: Whatever the reply raises.
    """
    clock = time.perf_counter
    timer = _Timer(batcher, client)

    def take(chunk: bytes) -> asyncio.Future[None] | None:
        frame = batcher.feed(chunk, clock(), backlog_bytes=client.backlog_bytes)
        if batcher.rest_until_s is not None:
            call.rest_until_s = batcher.rest_until_s
        if frame:
            client.write(frame)
            return client.lag()
        if batcher.due_s is not None:
            timer.set(batcher.due_s)
        return None

    try:
        await pour(reply, take)
        client.write(batcher.flush())
    except OllamaLabError:
        client.write(batcher.flush())
        raise
    finally:
        timer.cancel()


class _Timer:
    """Writes what a batcher holds when it is due; set anew only after it fired."""

    def __init__(self, batcher: StreamBatcher, client: Client) -> None:
        self._batcher = batcher
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due_s: float) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(due_s - time.perf_counter(), self._fire)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        due_s = self._batcher.due_s
        if due_s is None:
            return  # it left with a later chunk
        if due_s > time.perf_counter():
            self.set(due_s)  # so it did, and what is held now came after
        else:
            self._client.write(self._batcher.flush())
