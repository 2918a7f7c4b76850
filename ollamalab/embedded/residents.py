"""A model in memory: who uses it, how long it stays, and which one makes way for another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ollamalab.embedded.clock import Clock, Timer
from ollamalab.embedded.engine import Engine
from ollamalab.embedded.models import ModelFile
from ollamalab.protocol.durations import FOREVER_S, to_ns


class Slots:
    """The places in an engine's batch, given out first come, first served.

    Attributes:
        held: Places taken.
        waiting: Requests that want one.
    """

    def __init__(self, count: int) -> None:
        self.held = 0
        self.waiting = 0
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for a place, and keep it meanwhile."""
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
            self._free.release()


@dataclass(frozen=True, kw_only=True)
class RunningModel:
    """One line of ``/api/ps``.

    Attributes:
        model: The file.
        size_bytes: Memory it takes in all.
        size_vram_bytes: Of that, on GPUs.
        expires_ns: When it is going to be unloaded if nothing more comes, in nanoseconds since 1970.
        context_length: Tokens per slot.
    """

    model: ModelFile
    size_bytes: int
    size_vram_bytes: int
    expires_ns: int
    context_length: int


class Resident:
    """A model in memory, with its keep-alive timer.

    Attributes:
        engine: Its process.
        keep_alive_s: How long it stays after the last lease; what a request says about it sticks.
        leases: How many use it now; none is *idle*.
        slots: Places in its batch.
    """

    def __init__(
        self, engine: Engine, keep_alive_s: float, *, clock: Clock, on_expiry: Callable[[Resident], None]
    ) -> None:
        """Take a loaded engine; the timer does not run until ``rest``."""
        self.engine = engine
        self.keep_alive_s = keep_alive_s
        self.leases = 0
        self.slots = Slots(engine.load.num_parallel)
        self._clock = clock
        self._on_expiry = on_expiry
        self._timer: Timer | None = None
        self._idle_since_ns = 0

    @property
    def path(self) -> Path:
        """What it is known by: two names of one file share an engine."""
        return self.engine.model.path

    def take(self, keep_alive_s: float | None) -> None:
        """Begin a lease; None leaves the keep-alive as it is."""
        self.stop_timer()
        self.leases += 1
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s

    def rest(self) -> None:
        """Let the time run, now that nobody uses it: it expires once that is up, or at once."""
        self.stop_timer()
        self._idle_since_ns = self._clock.unix_ns()
        if self.keep_alive_s <= 0:
            self._on_expiry(self)
        elif self.keep_alive_s < FOREVER_S:
            self._timer = self._clock.call_later(self.keep_alive_s, lambda: self._on_expiry(self))

    def stop_timer(self) -> None:
        """Let no time run."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def running(self) -> RunningModel:
        """Return how ``/api/ps`` shows it."""
        # A busy model's life is counted from now; Ollama shows the end of an earlier rest instead,
        # which may be long past.
        start_ns = self._clock.unix_ns() if self.leases else self._idle_since_ns
        return RunningModel(
            model=self.engine.model,
            size_bytes=self.engine.memory.size_bytes,
            size_vram_bytes=self.engine.memory.size_vram_bytes,
            expires_ns=start_ns + to_ns(self.keep_alive_s),
            context_length=self.engine.load.num_ctx,
        )


def next_to_unload(residents: Iterable[Resident]) -> Resident | None:
    """Return which model makes way for another: the first idle one, else the first; None of none.

    The order is Ollama's: shortest keep-alive first, for ever last, then by path. It is neither the
    least recently used, nor the largest, nor the one that expires first.
    """
    ordered = sorted(residents, key=lambda resident: (resident.keep_alive_s, str(resident.path)))
    return next((resident for resident in ordered if not resident.leases), ordered[0] if ordered else None)
