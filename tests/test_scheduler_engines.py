"""What scheduling means for real engines: batches, hang-ups, kills, swaps. Facts are llama.cpp's own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollamalab.embedded import engine as engine_module
from ollamalab.embedded.engine import Engine
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import DEFAULT_MODEL, ModelFile, ModelStore
from ollamalab.embedded.scheduler import Scheduler
from ollamalab.errors import EngineError
from ollamalab.protocol.names import parse_name
from ollamalab.settings import ServerSettings

LOAD = LoadOptions(num_ctx=512, num_parallel=2, num_thread=1)


@pytest.fixture(scope="module")
def model() -> ModelFile:
    return ensure_model(DEFAULT_MODEL, ModelStore())


@pytest.fixture
async def scheduler() -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(ServerSettings(num_parallel=2, max_loaded_models=1))
    yield scheduler
    engines = scheduler.engines()
    await scheduler.close()
    assert not any(psutil.pid_exists(engine.pid) for engine in engines)


async def until(fact: Callable[[], Any]) -> None:
    while not fact():  # noqa: ASYNC110 - facts about processes send no event
        await asyncio.sleep(0.01)


async def busy_slots(engine: Engine) -> int:
    return sum(slot["is_processing"] for slot in await engine.slots())


async def until_idle(engine: Engine) -> None:
    while await busy_slots(engine):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def thread_states(pid: int) -> set[str]:
    """Return the state letters of a process's threads: a signal does not stop them all at once."""
    stats = [stat.read_text() for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


class Story:
    """A client that has a long story told."""

    def __init__(self, scheduler: Scheduler, model: ModelFile, tokens: int = 400) -> None:
        self._first_token = asyncio.Event()
        self.tokens = 0
        self.engine: Engine
        self.task = asyncio.create_task(self._listen(scheduler, model, tokens))

    async def _listen(self, scheduler: Scheduler, model: ModelFile, tokens: int) -> None:
        body = {"prompt": "Once upon a time", "n_predict": tokens, "ignore_eos": True, "stream": True}
        async with (
            scheduler.lease(model, LOAD, None) as lease,
            lease.slot(),
            lease.engine.stream("/completion", body) as stream,
        ):
            self.engine = lease.engine
            async for event in stream.events():
                self.tokens += not json.loads(event)["stop"]
                self._first_token.set()

    async def begun(self) -> None:
        """Wait for the first token; fail if the story ends without one."""
        token = asyncio.create_task(self._first_token.wait())
        await asyncio.wait([token, self.task], return_when=asyncio.FIRST_COMPLETED)
        if not token.done():
            token.cancel()
            await self.task


async def test_two_slots_decode_together_and_the_third_request_waits(
    scheduler: Scheduler, model: ModelFile
) -> None:
    first, second = Story(scheduler, model), Story(scheduler, model, tokens=60)
    await first.begun()
    await second.begun()
    third = Story(scheduler, model, tokens=5)
    assert await busy_slots(first.engine) == 2
    await until(lambda: scheduler.statistics().slots_waiting == 1)
    assert third.tokens == 0
    await second.task
    await third.task
    assert not first.task.done(), "the third took the slot of the second, not of the first"
    assert (second.tokens, third.tokens) == (60, 5)
    first.task.cancel()
    await asyncio.wait([first.task])


async def test_a_client_that_leaves_stops_its_generation(scheduler: Scheduler, model: ModelFile) -> None:
    """The engine says that its slot is free, though the story would never have ended."""
    story = Story(scheduler, model, tokens=-1)
    await story.begun()
    assert await busy_slots(story.engine) == 1
    story.task.cancel()
    await asyncio.wait([story.task])
    await until_idle(story.engine)
    assert scheduler.statistics().leases == 0


async def test_an_engine_killed_in_the_middle_fails_that_answer_and_no_later_one(
    scheduler: Scheduler, model: ModelFile
) -> None:
    story = Story(scheduler, model)
    await story.begun()
    os.kill(story.engine.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"ended unexpectedly \(killed by SIGKILL\)"):
        await story.task
    assert scheduler.running() == []
    again = Story(scheduler, model, tokens=5)
    await again.task
    assert again.tokens == 5
    assert again.engine.pid != story.engine.pid


async def test_an_engine_that_hangs_is_replaced(
    scheduler: Scheduler, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it still accepts connections; only the ping tells."""
    story = Story(scheduler, model)
    await story.begun()
    os.kill(story.engine.pid, signal.SIGSTOP)
    await until(lambda: thread_states(story.engine.pid) == {"T"})
    monkeypatch.setattr(engine_module, "HEALTH_TIMEOUT_S", 0.3)
    again = Story(scheduler, model, tokens=5)
    await until(lambda: scheduler.statistics().loading)
    monkeypatch.undo()
    await again.task
    assert again.tokens == 5
    with pytest.raises(EngineError, match="ended unexpectedly"):
        await story.task
    assert not psutil.pid_exists(story.engine.pid)


async def test_all_who_wait_for_a_corrupt_file_are_told_why(
    scheduler: Scheduler, model: ModelFile, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.path.read_bytes()[:5_000_000])
    stories = [Story(scheduler, replace(model, path=cut)) for _ in range(3)]
    for story in stories:
        with pytest.raises(EngineError, match="corrupted or incomplete"):
            await story.task
    assert scheduler.statistics().pending == 0


async def test_one_model_is_gone_before_the_next_is_loaded(
    scheduler: Scheduler, model: ModelFile, tmp_path: Path
) -> None:
    twin = tmp_path / "twin.gguf"
    twin.symlink_to(model.path)
    other = replace(model, path=twin, name=parse_name("twin"))
    first = Story(scheduler, model, tokens=5)
    await first.task
    second = Story(scheduler, other, tokens=5)
    await until(lambda: scheduler.statistics().loading)
    assert not psutil.pid_exists(first.engine.pid)
    await second.task
    assert [running.model.name.short for running in scheduler.running()] == ["twin:latest"]


async def test_after_a_storm_of_hang_ups_every_slot_is_idle(scheduler: Scheduler, model: ModelFile) -> None:
    """Twenty-four clients, half of whom leave at a random moment: waiting, at the first token, or later."""
    chance = random.Random(7)
    outcomes: Counter[str] = Counter()

    async def client() -> None:
        story = Story(scheduler, model, tokens=chance.randrange(1, 10))
        if chance.random() < 0.5:
            if chance.random() < 0.5:
                await story.begun()
            for _ in range(chance.randrange(200)):
                await asyncio.sleep(0)
            story.task.cancel()
        with suppress(asyncio.CancelledError):
            await story.task
        outcomes["left" if story.task.cancelled() else "served"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(24):
            group.create_task(client())
    assert outcomes["left"] > 3
    assert outcomes["served"] > 3
    statistics = scheduler.statistics()
    assert (statistics.pending, statistics.leases, statistics.slots_held, statistics.slots_waiting) == (
        0,
    ) * 4
    (engine,) = scheduler.engines()
    await until_idle(engine)
    last = Story(scheduler, model, tokens=3)
    await last.task
    assert last.engine is engine
