"""A scheduler for tests: its engines do nothing, and its clock is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ollamalab.embedded.engine import Engine
from ollamalab.embedded.engine_log import MemoryUse
from ollamalab.embedded.gguf_file import GgufMetadata
from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.scheduler import Lease, Scheduler, SchedulerStatistics
from ollamalab.errors import EngineError
from ollamalab.protocol.durations import NS_PER_S
from ollamalab.protocol.names import parse_name
from ollamalab.settings import ServerSettings

LOAD = LoadOptions(num_ctx=4096)
NOTHING = SchedulerStatistics(
    pending=0, loading=0, loaded=0, unloading=0, leases=0, slots_held=0, slots_waiting=0
)


def model_file(name: str) -> ModelFile:
    return ModelFile(
        name=parse_name(name),
        path=Path(f"/models/{name}.gguf"),
        digest="0" * 64,
        size_bytes=1,
        modified_ns=0,
        metadata=GgufMetadata(fields={}, tensors=(), spans={}, data_start=0, alignment=32),
    )


A, B, C = model_file("a"), model_file("b"), model_file("c")


class HandClock:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[HandTimer] = []

    def now_s(self) -> float:
        return self.now

    def unix_ns(self) -> int:
        return round(self.now * NS_PER_S)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> HandTimer:
        timer = HandTimer(self, self.now + delay_s, callback)
        self.timers.append(timer)
        return timer

    async def advance(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.due_s <= self.now]:
            timer.cancel()
            timer.callback()
        await settle()


@dataclass(eq=False)
class HandTimer:
    clock: HandClock
    due_s: float
    callback: Callable[[], None]

    def cancel(self) -> None:
        with suppress(ValueError):
            self.clock.timers.remove(self)


@dataclass(eq=False)
class IdleEngine:
    """An engine that does nothing, and counts."""

    model: ModelFile
    load: LoadOptions
    on_exit: Callable[[Any], None]
    house: House
    is_well: bool = True
    pid: int = 1
    memory: MemoryUse = field(default_factory=lambda: MemoryUse(size_bytes=10, size_vram_bytes=4))

    async def health(self) -> bool:
        await asyncio.sleep(0)
        return self.is_well

    async def stop(self) -> None:
        await asyncio.sleep(0)
        if self in self.house.alive:
            self.house.alive.remove(self)

    def die(self) -> None:
        self.house.alive.remove(self)
        self.on_exit(self)


@dataclass
class House:
    """Starts such engines; a load goes on for as long as its door is shut."""

    loads: list[str] = field(default_factory=list)  #: what was asked to load, in order
    given_up: list[str] = field(default_factory=list)  #: loads that were called off
    alive: list[IdleEngine] = field(default_factory=list)
    most_alive: int = 0
    door: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str | None = None  #: why every load fails
    delay: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)  #: how long a load takes

    async def start(
        self, model: ModelFile, load: LoadOptions, *, on_exit: Callable[[Engine], None], **_: Any
    ) -> Engine:
        name = model.name.model
        self.loads.append(name)
        try:
            await self.door.wait()
            await self.delay()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # killing takes a moment
            self.given_up.append(name)
            raise
        if self.reason:
            raise EngineError(self.reason)
        engine = IdleEngine(model, load, on_exit, self)
        self.alive.append(engine)
        self.most_alive = max(self.most_alive, len(self.alive))
        return cast(Engine, engine)


@dataclass
class Request:
    """A client: it asks for a lease, keeps it until told, and leaves."""

    task: asyncio.Task[None]
    done: asyncio.Event
    lease: Lease | None = None

    @property
    def has_lease(self) -> bool:
        return self.lease is not None

    async def finish(self) -> None:
        self.done.set()
        await self.task
        await settle()

    async def leave(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        await settle()


class Desk:
    """A scheduler with its house, clock and clients."""

    def __init__(self, **settings: Any) -> None:
        self.house = House()
        self.house.door.set()
        self.clock = HandClock()
        self.scheduler = Scheduler(
            ServerSettings(**settings), start_engine=self.house.start, clock=self.clock
        )
        self.log: list[str] = []  #: names of the requests in the order of their leases

    async def ask(
        self, model: ModelFile, name: str = "", *, load: LoadOptions = LOAD, keep_alive_s: float | None = None
    ) -> Request:
        done = asyncio.Event()

        async def run() -> None:
            async with self.scheduler.lease(model, load, keep_alive_s) as lease:
                request.lease = lease
                self.log.append(name)
                await done.wait()

        request = Request(asyncio.create_task(run()), done)
        await settle()
        return request

    async def use(self, model: ModelFile, **options: Any) -> None:
        """Ask, get, and finish."""
        await (await self.ask(model, **options)).finish()

    @property
    def loaded(self) -> list[str]:
        return sorted(running.model.name.model for running in self.scheduler.running())


async def settle() -> None:
    """Let everything happen that can happen now."""
    for _ in range(50):
        await asyncio.sleep(0)


OpenDesk = Callable[..., Desk]


@asynccontextmanager
async def opened_desks() -> AsyncIterator[OpenDesk]:
    """Give a function that opens a desk; in the end nothing may be left of it."""
    desks: list[Desk] = []

    def open_one(**settings: Any) -> Desk:
        desks.append(Desk(**settings))
        return desks[-1]

    yield open_one
    for desk in desks:
        await desk.scheduler.close()
        await settle()
        assert desk.scheduler.statistics() == NOTHING
        assert not desk.house.alive
        assert not desk.clock.timers
