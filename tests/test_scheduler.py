"""Who gets which model when, and that nothing is ever left behind.

Order and timers are tested with engines that do nothing and a clock that is set by hand. What a model
makes way for is in ``test_scheduler_room.py``, what depends on llama.cpp in ``test_scheduler_engines.py``.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from scheduler_desk import (
    LOAD,
    NOTHING,
    A,
    B,
    C,
    Desk,
    IdleEngine,
    OpenDesk,
    model_file,
    opened_desks,
    settle,
)

from ollamalab.errors import EngineError, QueueFull
from ollamalab.protocol.durations import FOREVER_S


@pytest.fixture
async def open_desk() -> AsyncIterator[OpenDesk]:
    """Give a function that opens a desk; in the end nothing may be left of it."""
    async with opened_desks() as open_one:
        yield open_one


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
