"""How long a model stays in memory, what unloads it before that, and which one makes way for another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
from scheduler_desk import LOAD, A, B, C, HandClock, House, OpenDesk, model_file, opened_desks

from ollamalab.embedded.residents import Resident, next_to_unload
from ollamalab.embedded.scheduler import Scheduler
from ollamalab.protocol.durations import FOREVER_S, NS_PER_S
from ollamalab.protocol.names import parse_name
from ollamalab.settings import ServerSettings


@pytest.fixture
async def open_desk() -> AsyncIterator[OpenDesk]:
    """Give a function that opens a desk; in the end nothing may be left of it."""
    async with opened_desks() as open_one:
        yield open_one


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
