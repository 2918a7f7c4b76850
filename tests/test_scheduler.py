"""Who gets which model when, what makes way for it, and that nothing is ever left behind.

Order and timers are tested with engines that do nothing and a clock that is set by hand; what
depends on llama.cpp itself is in ``test_scheduler_engines.py``.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from ollamalab.embedded.engine import Engine
from ollamalab.embedded.engine_log import MemoryUse
from ollamalab.embedded.gguf_file import GgufMetadata
from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.residents import Resident, next_to_unload
from ollamalab.embedded.scheduler import Lease, Scheduler, SchedulerStatistics
from ollamalab.errors import EngineError, QueueFull
from ollamalab.protocol.durations import FOREVER_S, NS_PER_S
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


@pytest.fixture
async def open_desk() -> AsyncIterator[Callable[..., Desk]]:
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


OpenDesk = Callable[..., Desk]


# Loading


async def test_one_load_serves_all_who_wait_for_it(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.house.door.clear()
    requests = [await desk.ask(A) for _ in range(5)]
    assert desk.scheduler.statistics() == replace(NOTHING, pending=5, loading=1)
    assert desk.scheduler.running() == []
    desk.house.door.set()
    await settle()
    assert desk.house.loads == ["a"]
    assert len({id(request.lease.engine) for request in requests if request.lease}) == 1
    for request in requests:
        await request.finish()


async def test_a_load_goes_on_when_one_of_its_waiters_leaves(open_desk: OpenDesk) -> None:
    """Not so in Ollama, where the first to leave aborts the load for everybody."""
    desk = open_desk()
    desk.house.door.clear()
    first, second = await desk.ask(A), await desk.ask(A)
    await first.leave()
    desk.house.door.set()
    await settle()
    assert second.has_lease
    assert (desk.house.loads, desk.house.given_up) == (["a"], [])
    await second.finish()


async def test_a_load_that_nobody_waits_for_any_more_is_given_up(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.house.door.clear()
    requests = [await desk.ask(A) for _ in range(3)]
    for request in requests:
        await request.leave()
    assert desk.house.given_up == ["a"]
    assert desk.scheduler.statistics() == NOTHING


async def test_who_comes_while_a_load_is_given_up_gets_a_new_one(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.house.door.clear()
    first = await desk.ask(A)
    first.task.cancel()
    second = await desk.ask(A)
    desk.house.door.set()
    await settle()
    assert second.has_lease
    assert (desk.house.loads, desk.house.given_up) == (["a", "a"], ["a"])
    await second.finish()


async def test_a_model_loaded_for_who_left_at_the_last_moment_expires(open_desk: OpenDesk) -> None:
    """Whether the load ended or was called off, in whatever order the two are noticed."""
    for patience in range(8):
        desk = open_desk(keep_alive_s=10)
        desk.house.door.clear()
        request = await desk.ask(A)
        desk.house.door.set()
        for _ in range(patience):
            await asyncio.sleep(0)
        await request.leave()
        assert desk.scheduler.statistics().leases == 0
        await desk.clock.advance(10)
        assert desk.scheduler.statistics() == NOTHING


async def test_a_failed_load_tells_every_waiter_why_and_may_be_tried_again(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.house.door.clear()
    desk.house.reason = "tensor is not within the file bounds"
    requests = [await desk.ask(A) for _ in range(3)]
    desk.house.door.set()
    await settle()
    for request in requests:
        with pytest.raises(EngineError, match="tensor is not within"):
            await request.task
    assert desk.house.loads == ["a"]
    assert desk.scheduler.statistics() == NOTHING
    desk.house.reason = None
    await desk.use(A)
    assert desk.house.loads == ["a", "a"]


async def test_loads_happen_one_at_a_time_and_in_order(open_desk: OpenDesk) -> None:
    desk = open_desk(max_loaded_models=3)
    desk.house.door.clear()
    requests = [await desk.ask(model, model.name.model) for model in (A, B, C, A)]
    assert desk.house.loads == ["a"]
    desk.house.door.set()
    await settle()
    assert desk.house.loads == ["a", "b", "c"]
    assert desk.log == ["a", "a", "b", "c"]  # the second "a" shares the load of the first
    for request in requests:
        await request.finish()


async def test_load_duration_is_the_wait_for_the_lease(open_desk: OpenDesk) -> None:
    """The wait for a slot is not in it."""
    desk = open_desk()
    desk.house.door.clear()
    request = await desk.ask(A)
    await desk.clock.advance(2.5)
    desk.house.door.set()
    await settle()
    assert request.lease
    assert request.lease.load_duration_s == 2.5
    again = await desk.ask(A)
    assert again.lease
    assert again.lease.load_duration_s == 0
    await request.finish()
    await again.finish()


# Options


async def test_other_load_options_wait_until_the_model_is_idle_then_reload_it(open_desk: OpenDesk) -> None:
    desk = open_desk()
    first = await desk.ask(A, "first")
    second = await desk.ask(A, "second", load=replace(LOAD, num_ctx=8192))
    third = await desk.ask(A, "third")
    assert desk.log == ["first"]
    await first.finish()
    assert desk.log == ["first", "second"]
    assert second.lease
    assert second.lease.engine.load.num_ctx == 8192
    await second.finish()
    assert desk.log == ["first", "second", "third"]
    assert desk.house.loads == ["a", "a", "a"]
    assert desk.house.most_alive == 1
    await third.finish()


async def test_an_engine_that_embeds_is_kept_for_chats(open_desk: OpenDesk) -> None:
    desk = open_desk()
    for embedding in (False, True, False, True):
        await desk.use(A, load=replace(LOAD, embedding=embedding))
    assert desk.house.loads == ["a", "a"]


async def test_two_names_of_one_file_share_an_engine(open_desk: OpenDesk) -> None:
    desk = open_desk()
    await desk.use(A)
    await desk.use(replace(A, name=parse_name("alias")))
    assert desk.house.loads == ["a"]


async def test_a_model_that_only_embeds_has_one_slot(open_desk: OpenDesk) -> None:
    desk = open_desk()
    many = replace(LOAD, num_parallel=4)
    async with desk.scheduler.lease(A, many, None, embedding_only=True) as lease:
        assert lease.engine.load.num_parallel == 1
    async with desk.scheduler.lease(B, many, None) as lease:
        assert lease.engine.load.num_parallel == 4


# Keep-alive


async def test_keep_alive_counts_from_the_end_of_the_last_request(open_desk: OpenDesk) -> None:
    desk = open_desk(keep_alive_s=300)
    first, second = await desk.ask(A), await desk.ask(A)
    await desk.clock.advance(1000)
    await first.finish()
    await desk.clock.advance(1000)
    await second.finish()
    await desk.clock.advance(299)
    assert desk.loaded == ["a"]
    await desk.clock.advance(1)
    assert desk.loaded == []
    assert not desk.house.alive


async def test_a_new_request_stops_the_timer(open_desk: OpenDesk) -> None:
    desk = open_desk(keep_alive_s=300)
    await desk.use(A)
    await desk.clock.advance(299)
    request = await desk.ask(A)
    await desk.clock.advance(299)
    assert desk.loaded == ["a"]
    await request.finish()
    await desk.clock.advance(299)
    assert desk.loaded == ["a"]


async def test_what_a_request_says_about_keep_alive_sticks(open_desk: OpenDesk) -> None:
    desk = open_desk(keep_alive_s=300)
    await desk.use(A, keep_alive_s=20)
    await desk.use(A)
    await desk.clock.advance(19)
    assert desk.loaded == ["a"]
    await desk.clock.advance(1)
    assert desk.loaded == []
    await desk.use(A)
    await desk.clock.advance(299)
    assert desk.loaded == ["a"], "another load begins with the server's own keep-alive"


async def test_for_ever_is_for_ever(open_desk: OpenDesk) -> None:
    desk = open_desk()
    await desk.use(A, keep_alive_s=FOREVER_S)
    assert not desk.clock.timers
    assert desk.scheduler.running()[0].expires_ns >= 2**63 - 1


async def test_keep_alive_zero_unloads_as_soon_as_the_model_is_idle(open_desk: OpenDesk) -> None:
    desk = open_desk()
    first = await desk.ask(A)
    await desk.use(A, keep_alive_s=0)
    assert desk.loaded == ["a"]
    await first.finish()
    assert desk.loaded == []


async def test_unload_takes_an_idle_model_at_once_and_a_busy_one_when_it_is_idle(open_desk: OpenDesk) -> None:
    desk = open_desk()
    await desk.scheduler.unload(A)
    await desk.use(A)
    await desk.scheduler.unload(A)
    assert desk.loaded == []
    request = await desk.ask(A)
    await desk.scheduler.unload(A)
    assert desk.loaded == ["a"]
    await request.finish()
    assert desk.loaded == []


async def test_running_models_are_listed_longest_to_live_first(open_desk: OpenDesk) -> None:
    """A busy one as if it became idle now."""
    desk = open_desk()
    await desk.use(A, keep_alive_s=100)
    await desk.use(B, keep_alive_s=200)
    busy = await desk.ask(C, keep_alive_s=150, load=replace(LOAD, num_ctx=2048))
    await desk.clock.advance(60)
    listed = desk.scheduler.running()
    assert [(line.model, line.expires_ns // NS_PER_S) for line in listed] == [(C, 210), (B, 200), (A, 100)]
    assert (listed[0].size_bytes, listed[0].size_vram_bytes, listed[0].context_length) == (10, 4, 2048)
    await busy.finish()


# Making room


@dataclass
class Guest:
    """As much of a resident as the choice looks at."""

    path: Path
    keep_alive_s: float
    leases: int


@pytest.mark.parametrize(
    ("guests", "chosen"),
    [
        ([], None),
        ([("b", 300, 0), ("a", 300, 0)], "a"),
        ([("a", 300, 0), ("b", 20, 0)], "b"),
        ([("a", FOREVER_S, 0), ("b", 300, 0)], "b"),
        ([("a", FOREVER_S, 0), ("b", 300, 1)], "a"),
        ([("a", 300, 2), ("b", 20, 1)], "b"),
        ([("a", 20, 1), ("b", 300, 0), ("c", 400, 0)], "b"),
    ],
)
def test_the_first_idle_one_in_ollamas_order_makes_way(
    guests: list[tuple[str, float, int]], chosen: str | None
) -> None:
    """Shortest keep-alive, then path; if all are busy, the first of all."""
    residents = [cast(Resident, Guest(Path(name), keep_alive, leases)) for name, keep_alive, leases in guests]
    found = next_to_unload(residents)
    assert (str(found.path) if found else None) == chosen


async def test_a_model_too_many_unloads_another_first(open_desk: OpenDesk) -> None:
    desk = open_desk(max_loaded_models=2)
    await desk.use(A, keep_alive_s=400)
    await desk.use(B)
    await desk.use(C)
    assert desk.loaded == ["a", "c"]
    assert desk.house.most_alive == 2


async def test_by_default_three_models_fit_or_three_per_gpu(open_desk: OpenDesk) -> None:
    desk = open_desk()
    for name in "abcd":
        await desk.use(model_file(name))
    assert desk.loaded == ["b", "c", "d"]
    house = House()
    house.door.set()
    scheduler = Scheduler(ServerSettings(), start_engine=house.start, clock=HandClock(), gpus=2)
    for name in "abcdefg":
        async with scheduler.lease(model_file(name), LOAD, None):
            pass
    assert len(scheduler.running()) == 6
    await scheduler.close()


async def test_a_busy_model_makes_way_when_it_is_idle_and_takes_no_more_requests(open_desk: OpenDesk) -> None:
    """Ollama goes on feeding it, so that steady use of one model keeps another out for ever."""
    desk = open_desk(max_loaded_models=1)
    first = await desk.ask(A, "a1")
    other = await desk.ask(B, "b")
    late = await desk.ask(A, "a2")
    assert desk.log == ["a1"]
    await first.finish()
    assert desk.log == ["a1", "b"]
    await other.finish()
    assert desk.log == ["a1", "b", "a2"]
    assert desk.house.most_alive == 1
    await late.finish()


async def test_whichever_becomes_idle_first_makes_way(open_desk: OpenDesk) -> None:
    """And the one that was meant to, takes requests again."""
    desk = open_desk(max_loaded_models=2)
    a, b = await desk.ask(A, "a"), await desk.ask(B, "b")
    c = await desk.ask(C, "c")
    more = await desk.ask(A, "a again")
    assert desk.log == ["a", "b"]
    await b.finish()
    assert desk.log == ["a", "b", "a again", "c"]
    assert desk.loaded == ["a", "c"]
    for request in (a, c, more):
        await request.finish()


async def test_the_choice_among_busy_models_stays(open_desk: OpenDesk) -> None:
    """A keep-alive that changes meanwhile does not let the chosen one take requests again."""
    desk = open_desk(max_loaded_models=2)
    a, b = await desk.ask(A, keep_alive_s=10), await desk.ask(B, keep_alive_s=20)
    c = await desk.ask(C)
    hasty = await desk.ask(B, keep_alive_s=1)
    late = await desk.ask(A)
    assert (hasty.has_lease, late.has_lease) == (True, False)
    await a.finish()
    assert c.has_lease
    for request in (b, hasty, c, late):
        await request.finish()


async def test_who_leaves_needs_no_room(open_desk: OpenDesk) -> None:
    """The model that was to make way for it goes on as before."""
    desk = open_desk(max_loaded_models=1)
    a = await desk.ask(A)
    b = await desk.ask(B)
    late = await desk.ask(A)
    assert not late.has_lease
    await b.leave()
    assert late.has_lease
    await a.finish()
    await late.finish()
    assert desk.house.loads == ["a"]


# The queue


async def test_a_full_queue_refuses_at_once_in_ollamas_words(open_desk: OpenDesk) -> None:
    """One is being served, ``max_queue`` wait; a loaded model's requests do not pass the queue."""
    desk = open_desk(max_loaded_models=2, max_queue=2)
    a, b = await desk.ask(A, keep_alive_s=1), await desk.ask(B)
    waiting = [await desk.ask(C), await desk.ask(A), await desk.ask(C)]
    refused = await desk.ask(C)
    with pytest.raises(QueueFull) as caught:
        await refused.task
    assert str(caught.value) == "server busy, please try again.  maximum pending requests exceeded"
    bypass = await desk.ask(B)
    assert bypass.has_lease
    await waiting[2].leave()
    last = await desk.ask(C)
    assert desk.scheduler.statistics().pending == 3
    for request in (a, b, bypass, waiting[0], last, waiting[1]):
        await request.finish()


async def test_with_no_queue_one_request_can_still_be_served(open_desk: OpenDesk) -> None:
    desk = open_desk(max_queue=0)
    desk.house.door.clear()
    first, second = await desk.ask(A), await desk.ask(A)
    with pytest.raises(QueueFull):
        await second.task
    desk.house.door.set()
    await settle()
    await first.finish()


# Engines that fail


async def test_an_engine_that_does_not_answer_is_replaced(open_desk: OpenDesk) -> None:
    """Also from under those who use it: they would wait for ever."""
    desk = open_desk()
    hanging = await desk.ask(A)
    engine = desk.house.alive[0]
    engine.is_well = False
    request = await desk.ask(A)
    assert request.lease
    assert cast(Any, request.lease.engine) is not engine
    assert engine not in desk.house.alive
    await hanging.finish()
    assert desk.loaded == ["a"]
    await request.finish()


async def test_two_silent_engines_in_a_row_are_an_error(open_desk: OpenDesk, monkeypatch: Any) -> None:
    desk = open_desk()
    monkeypatch.setattr(IdleEngine, "is_well", False)

    async def never(self: IdleEngine) -> bool:
        return False

    monkeypatch.setattr(IdleEngine, "health", never)
    request = await desk.ask(A)
    with pytest.raises(EngineError, match="does not answer"):
        await request.task
    assert desk.scheduler.statistics() == NOTHING


async def test_an_engine_that_died_is_loaded_again_by_the_next_request(open_desk: OpenDesk) -> None:
    desk = open_desk()
    request = await desk.ask(A)
    desk.house.alive[0].die()
    await settle()
    assert desk.loaded == []
    await request.finish()
    assert desk.scheduler.statistics() == NOTHING
    await desk.use(A)
    assert desk.house.loads == ["a", "a"]


# Slots


async def test_slots_are_given_in_order_and_who_leaves_is_passed_over(open_desk: OpenDesk) -> None:
    desk = open_desk()
    order: list[int] = []
    doors = [asyncio.Event() for _ in range(5)]

    async def client(number: int) -> None:
        async with (
            desk.scheduler.lease(A, replace(LOAD, num_parallel=2), None) as lease,
            lease.slot(),
        ):
            order.append(number)
            await doors[number].wait()

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(client(number)))
        await settle()
    assert order == [0, 1]
    assert desk.scheduler.statistics() == replace(NOTHING, loaded=1, leases=5, slots_held=2, slots_waiting=3)
    tasks[2].cancel()
    doors[1].set()
    await settle()
    assert order == [0, 1, 3]
    tasks[0].cancel()
    await settle()
    assert order == [0, 1, 3, 4]
    for door in doors:
        door.set()
    await asyncio.wait(tasks)
    assert desk.scheduler.statistics() == replace(NOTHING, loaded=1)


# The end


async def test_closing_ends_everything(open_desk: OpenDesk) -> None:
    """Busy models, a load, and who is pending, who hears of it."""
    desk = open_desk(max_loaded_models=3)
    busy = await desk.ask(A)
    await desk.use(B)
    desk.house.door.clear()
    loading, pending = await desk.ask(C), await desk.ask(model_file("d"))
    await desk.scheduler.close()
    for request in (loading, pending):
        with pytest.raises(EngineError, match="shutting down"):
            await request.task
    assert not desk.house.alive
    assert desk.house.given_up == ["c"]
    await busy.finish()
    refused = await desk.ask(A)
    with pytest.raises(EngineError, match="shutting down"):
        await refused.task


async def test_closing_while_a_load_ends_leaves_no_engine(open_desk: OpenDesk) -> None:
    for patience in range(6):
        desk = open_desk()
        desk.house.door.clear()
        request = await desk.ask(A)
        desk.house.door.set()
        for _ in range(patience):
            await asyncio.sleep(0)
        await desk.scheduler.close()
        assert not desk.house.alive
        request.done.set()
        with suppress(EngineError):
            await request.task


async def test_closing_does_not_disturb_a_load_that_is_being_given_up(open_desk: OpenDesk) -> None:
    desk = open_desk()
    desk.house.door.clear()
    request = await desk.ask(A)
    request.task.cancel()
    with suppress(asyncio.CancelledError):
        await request.task
    await desk.scheduler.close()
    assert desk.house.given_up == ["a"]


@asynccontextmanager
async def storm(desk: Desk, seed: int, clients: int) -> AsyncIterator[Counter[str]]:
    """Let clients come, wait, compute and leave at random; count how each ended."""
    chance = random.Random(seed)
    outcomes: Counter[str] = Counter()

    async def pause(at_most: int = 20) -> None:
        for _ in range(chance.randrange(at_most)):
            await asyncio.sleep(0)

    desk.house.delay = pause

    async def client() -> None:
        model = chance.choice((A, B, C))
        load = replace(LOAD, num_parallel=2, num_ctx=chance.choice((2048, 4096)))
        keep_alive = chance.choice((None, None, 0, 5, FOREVER_S))
        try:
            async with desk.scheduler.lease(model, load, keep_alive) as lease, lease.slot():
                assert lease.engine.load.serves(load)
                assert desk.scheduler.statistics().loaded <= 2
                await pause()
            outcomes["served"] += 1
        except QueueFull:
            outcomes["refused"] += 1
        except EngineError:
            outcomes["failed"] += 1
        except asyncio.CancelledError:
            outcomes["left"] += 1
            raise

    async def trouble() -> None:
        while True:
            await pause(50)
            kind = chance.randrange(8)
            if kind == 0 and desk.house.alive:
                chance.choice(desk.house.alive).die()
            elif kind == 1 and desk.house.alive:
                chance.choice(desk.house.alive).is_well = False
            elif kind == 2:
                desk.house.reason = chance.choice((None, None, None, "out of memory"))
            elif kind == 3:
                await desk.scheduler.unload(chance.choice((A, B, C)))
            elif kind == 4:
                await desk.clock.advance(3)

    troubles = asyncio.create_task(trouble())
    tasks = []
    for _ in range(clients):
        tasks.append(asyncio.create_task(client()))
        await pause(9)
        if chance.random() < 0.4:
            chance.choice(tasks[-8:]).cancel()
    for task in tasks:
        if chance.random() < 0.3:
            task.cancel()
    await asyncio.wait(tasks)
    troubles.cancel()
    with suppress(asyncio.CancelledError):
        await troubles
    never_ran = sum(task.cancelled() for task in tasks) - outcomes["left"]
    outcomes["left"] += never_ran
    yield outcomes


@pytest.mark.parametrize("seed", range(20))
async def test_after_a_storm_nothing_is_left(open_desk: OpenDesk, seed: int) -> None:
    """Each of 300 clients ends in exactly one way, and every count returns to zero."""
    desk = open_desk(max_loaded_models=2, max_queue=6, keep_alive_s=4)
    async with storm(desk, seed, clients=300) as outcomes:
        assert sum(outcomes.values()) == 300
        assert outcomes["served"] > 0
        assert outcomes["left"] > 0
    assert desk.house.most_alive <= 2
    assert desk.scheduler.statistics().pending == 0
    assert desk.scheduler.statistics().leases == 0
    assert desk.scheduler.statistics().slots_held == 0
    assert desk.scheduler.statistics().slots_waiting == 0
    for model in (A, B, C):
        await desk.scheduler.unload(model)
    await settle()
    assert desk.scheduler.statistics() == NOTHING
    assert not desk.house.alive
