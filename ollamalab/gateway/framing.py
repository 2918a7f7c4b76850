"""Writes a stream in the frames that a batcher makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from ollamalab.batching import StreamBatcher
from ollamalab.errors import OllamaLabError


class Sink(Protocol):
    """Where frames go."""

    @property
    def backlog_bytes(self) -> int:
        """What the client has not taken yet."""
        ...

    def write(self, data: bytes) -> None:
        """Write a frame; never waits, and does nothing once the client is gone."""
        ...

    async def drain(self) -> None:
        """Wait while the client is too far behind."""
        ...


async def write_frames(
    chunks: AsyncIterator[bytes],
    batcher: StreamBatcher,
    sink: Sink,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Write a stream to its end; what is held when it breaks off is written too.

    One task does all of it. A frame that is due while the next chunk is awaited is written by a timer,
    since racing the chunk against the moment would cost a task for each chunk. A rest is a plain sleep:
    nothing of this stream runs meanwhile, which is where the time comes from.

    Args:
        chunks: The stream.
        batcher: Decides.
        sink: Where frames go.
        clock: Seconds; the clock of the event loop's timers in step, if not in value.

    Raises:
        OllamaLabError: Whatever the chunks raise.
    """
    timer = _Timer(batcher, sink, clock)
    late_s = 0.0
    try:
        async for chunk in chunks:
            frame = batcher.feed(chunk, clock(), late_s=late_s, backlog_bytes=sink.backlog_bytes)
            if frame:
                sink.write(frame)
                if sink.backlog_bytes:
                    await sink.drain()
            elif batcher.due_s is not None:
                timer.set(batcher.due_s)
            rest_until_s = batcher.rest_until_s
            if rest_until_s is not None:
                await asyncio.sleep(rest_until_s - clock())
                late_s = max(0.0, clock() - rest_until_s)
        sink.write(batcher.flush())
    except OllamaLabError:
        sink.write(batcher.flush())
        raise
    finally:
        timer.cancel()


class _Timer:
    """Writes what a batcher holds when it is due; set anew only after it fired."""

    def __init__(self, batcher: StreamBatcher, sink: Sink, clock: Callable[[], float]) -> None:
        self._batcher = batcher
        self._sink = sink
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due_s: float) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(due_s - self._clock(), self._fire)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self._handle = None
        due_s = self._batcher.due_s
        if due_s is None:
            return  # it left with a later chunk
        if due_s > self._clock():
            self.set(due_s)  # so it did, and what is held now came after
        else:
            self._sink.write(self._batcher.flush())
