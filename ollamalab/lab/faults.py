"""What becomes of requests when a server is overloaded, killed or stuck, when lines break and clients leave.

``Scenarios`` plays what can go wrong on each of the ``ways`` to one server and gives an ``Episode`` each, in
which the server's side and the clients' are kept apart (``accounts``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ollamalab.connection import OllamaConnection
from ollamalab.errors import SamplerUnavailable, TargetError, UpstreamError
from ollamalab.hosts import Target
from ollamalab.lab.accounts import Episode
from ollamalab.lab.overload import Asker, at_once
from ollamalab.lab.subject import Subject
from ollamalab.lab.tap import Trouble, prompt_of
from ollamalab.lab.ways import QueueCounts, Way
from ollamalab.loadgen import LoadGenerator, LoadSettings
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome, RequestRecord

OVERLOAD = "overload"
NOTHING_WRONG = "nothing wrong"
STOP_WORD = "stop word first"
NOT_LOADED = "model not loaded"
KILLED = "engine killed"
HANGS = "engine hangs"
LINE_CUT = "line cut"
ANSWER_LOST = "answer lost"
HANG_UP = "clients hang up"
SLOW_READER = "a slow reader"

#: Every printable character: whatever the first token is, the answer ends before it.
_STOP_AT_ONCE = [chr(code) for code in range(32, 127)] + ["\n"]

#: Tokens of an answer in the middle of which something happens.
_LONG_TOKENS = 16

#: Scenarios that take a server of ours: its queue is short, or something befalls its engine.
_OURS_ALONE = (NOT_LOADED, KILLED, HANGS)
_OF_THE_ENGINE = (KILLED, HANGS)

_SETTLE_S = 30.0
_POLL_S = 0.02


#: Something that happens while a load is under way; it gets the generator, to stop it.
Meanwhile = Callable[[LoadGenerator], Awaitable[None]]


class Scenarios:
    """Plays scenarios on ways to one server.

    Args:
        subject: The server and model.
        asker: Makes the requests.
        count: Requests of a scenario, all at once.
        deadline_s: Clients' patience in scenarios that are not about patience.
        silence_s: Clients' patience with a server that hangs.

    Attributes:
        episodes: What was played, in order.
        not_run: Scenarios that the target cannot be brought into, with the reason.
    """

    def __init__(
        self,
        subject: Subject,
        asker: Asker,
        *,
        count: int,
        deadline_s: float,
        silence_s: float,
    ) -> None:
        self.episodes: list[Episode] = []
        self.not_run: dict[str, str] = {}
        self._subject = subject
        self._asker = asker
        self._count = count
        self._deadline_s = deadline_s
        self._silence_s = silence_s

    async def play(self, ways: Iterable[Way]) -> None:
        """Play every scenario but the overload on each of these ways."""
        every: dict[str, Callable[[Way], Awaitable[Episode]]] = {
            NOTHING_WRONG: self.nothing_wrong,
            STOP_WORD: self.stop_word,
            ANSWER_LOST: self.lose,
            LINE_CUT: self.cut,
            HANG_UP: self.hang_up,
            SLOW_READER: self.slow_reader,
            NOT_LOADED: self.not_loaded,
            KILLED: self.kill,
            HANGS: self.hang,
        }
        ways = list(ways)
        for scenario, played in every.items():
            if reason := await asyncio.to_thread(why_not, scenario, self._subject.target):
                self.not_run[scenario] = reason
                continue
            for way in ways:
                await played(way)

    async def overload(self, way: Way, load: LoadSettings) -> Episode:
        """More comes than can be answered, from clients who wait as long as the load says."""
        return await self._play(OVERLOAD, way, self._asker.requests(load.requests or 0), load=load)

    async def nothing_wrong(self, way: Way) -> Episode:
        """All is well."""
        return await self._play(NOTHING_WRONG, way, self._asker.requests(self._count))

    async def stop_word(self, way: Way) -> Episode:
        """The answer begins with a stop word, so it ends before its first character."""
        requests = self._asker.requests(self._count, stop=_STOP_AT_ONCE)
        return await self._play(STOP_WORD, way, requests)

    async def not_loaded(self, way: Way) -> Episode:
        """All come while the model is not loaded."""
        await self._subject.unload()
        return await self._play(NOT_LOADED, way, self._asker.requests(self._count))

    async def kill(self, way: Way) -> Episode:
        """The engine is killed in the middle of an answer."""
        pid = await asyncio.to_thread(engine_pid, self._subject.target)
        killing = _signalling(way, pid, signal.SIGKILL)
        return await self._play(KILLED, way, self._long(), meanwhile=killing)

    async def hang(self, way: Way) -> Episode:
        """The engine stops in the middle of an answer, and goes on when every client has left."""
        pid = await asyncio.to_thread(engine_pid, self._subject.target)
        try:
            return await self._play(
                HANGS,
                way,
                self._long(),
                load=at_once(self._count, self._silence_s),
                meanwhile=_signalling(way, pid, signal.SIGSTOP),
                afterwards=lambda: _signal(pid, signal.SIGCONT),
            )
        finally:
            _signal(pid, signal.SIGCONT)

    async def cut(self, way: Way) -> Episode:
        """Every second connection to the server breaks in the middle of an answer."""
        return await self._play(LINE_CUT, way, self._long(), trouble=Trouble.CUT)

    async def lose(self, way: Way) -> Episode:
        """Every second answer is taken from the server, and lost."""
        return await self._play(ANSWER_LOST, way, self._asker.requests(self._count), trouble=Trouble.LOSE)

    async def hang_up(self, way: Way) -> Episode:
        """Every client hangs up as soon as a first piece of text has come to one of them."""

        async def leave(generator: LoadGenerator) -> None:
            await way.tap.until_text()
            generator.stop()

        return await self._play(HANG_UP, way, self._long(), meanwhile=leave)

    async def slow_reader(self, way: Way) -> Episode:
        """One client reads its answer slowly while others wait; it leaves when they are done."""
        (dripped,) = self._long()[:1]
        started, others_done = asyncio.Event(), asyncio.Event()
        before = await asyncio.to_thread(way.queue_counts)

        async def crawl() -> RequestRecord:
            async with OllamaConnection(way.dripping.url) as connection:
                generator = LoadGenerator(connection, target=way.dripping.url)
                running = asyncio.ensure_future(
                    generator.run(at_once(1, self._deadline_s), lambda _: dripped)
                )
                try:
                    await _first_of(running, way.dripping.until_text())
                    started.set()
                    await _first_of(running, others_done.wait())
                    generator.stop()
                    return (await running).records[0]
                finally:
                    started.set()
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)

        crawling = asyncio.ensure_future(crawl())
        slow: list[tuple[Request, RequestRecord]] = []

        async def end_crawl() -> None:
            others_done.set()
            slow.append((dripped, await crawling))

        try:
            await started.wait()
            return await self._play(
                SLOW_READER,
                way,
                self._asker.requests(self._count - 1),
                afterwards=end_crawl,
                beside=slow,
                before=before,
            )
        finally:
            crawling.cancel()
            await asyncio.gather(crawling, return_exceptions=True)

    def _long(self) -> list[Request]:
        """Return requests whose answers take long enough for something to happen in the middle."""
        return self._asker.requests(self._count, num_predict=_LONG_TOKENS)

    async def _play(
        self,
        scenario: str,
        way: Way,
        requests: Sequence[Request],
        *,
        load: LoadSettings | None = None,
        meanwhile: Meanwhile | None = None,
        afterwards: Callable[[], Awaitable[None] | None] | None = None,
        trouble: Trouble | None = None,
        beside: Sequence[tuple[Request, RequestRecord]] = (),
        before: QueueCounts | None = None,
    ) -> Episode:
        if before is None:
            before = await asyncio.to_thread(way.queue_counts)
        if trouble is not None:
            way.tap.troubles.update(dict.fromkeys(map(prompt_of, requests[::2]), trouble))
        generator = way.generator()
        load = load or at_once(len(requests), self._deadline_s)
        loading = asyncio.ensure_future(generator.run(load, requests.__getitem__))
        try:
            if meanwhile is not None:
                await _first_of(loading, meanwhile(generator))
            records = list((await loading).records)
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        ended_s = time.perf_counter()
        if afterwards is not None and (waiting := afterwards()) is not None:
            await waiting
        busy_slots = await self._settled(way)
        served_by_prompt: dict[str, list[RequestRecord]] = {}
        for passed in way.tap.passed:
            served_by_prompt.setdefault(passed.prompt, []).append(passed.record)
        gateway = (await asyncio.to_thread(way.queue_counts)).ended - before.ended
        asked = [*requests, *(request for request, _ in beside)]
        episode = Episode(
            scenario=scenario,
            way=way.name,
            records=tuple(
                replace(record, arm=f"{scenario}, {way.name}")
                for record in [*records, *(record for _, record in beside)]
            ),
            served=tuple(tuple(served_by_prompt.get(prompt_of(request), ())) for request in asked),
            gateway=gateway,
            busy_slots=busy_slots,
            recovered_s=await self._recovery_s(way, ended_s),
        )
        self.episodes.append(episode)
        return episode

    async def _settled(self, way: Way) -> int | None:
        """Wait until nothing is under way any more; return how many slots are still busy if that lasts."""
        deadline_s = time.perf_counter() + _SETTLE_S
        while True:
            busy = await asyncio.to_thread(busy_slots, self._subject.target)
            queue = await asyncio.to_thread(way.queue_counts)
            if not (busy or queue.under_way or way.tap.under_way or way.dripping.under_way):
                return busy
            if time.perf_counter() > deadline_s:
                return busy
            await asyncio.sleep(_POLL_S)

    async def _recovery_s(self, way: Way, since_s: float) -> float | None:
        """Ask until there is a good answer; return when that was."""
        generator = way.generator()
        while time.perf_counter() < since_s + _SETTLE_S:
            requests = self._asker.requests(1, num_predict=1)
            result = await generator.run(at_once(1, _SETTLE_S), requests.__getitem__)
            if result.records[0].outcome is Outcome.OK:
                return time.perf_counter() - since_s
            await asyncio.sleep(_POLL_S)
        return None


def why_not(scenario: str, target: Target) -> str:
    """Return why a target cannot be brought into a scenario; "" if it can. Blocks for a moment."""
    if scenario in _OURS_ALONE and target.unchangeable:
        return target.unchangeable
    if scenario in _OF_THE_ENGINE:
        try:
            target.engines()
        except SamplerUnavailable as error:
            return str(error)
    return ""


def engine_pid(target: Target) -> int:
    """Return the process of the one engine that a server of ours has loaded; blocks for a moment.

    Raises:
        TargetError: It has none, or several.
        SamplerUnavailable: It does not let them be known.
    """
    pids = [engine.pid for engine in target.engines()]
    if len(pids) != 1:
        raise TargetError(f"{target.url} has {len(pids)} engines; a scenario wants just one")
    return pids[0]


def busy_slots(target: Target) -> int | None:
    """Return how many slots are at work now; None where the server does not tell. Blocks."""
    try:
        return sum(bool(slot["is_processing"]) for slots in target.slots().values() for slot in slots)
    except (SamplerUnavailable, UpstreamError):
        return None


def _signalling(way: Way, pid: int, number: signal.Signals) -> Meanwhile:
    """Return what sends a signal to a process once a first piece of an answer has come."""

    async def send(_: LoadGenerator) -> None:
        await way.tap.until_text()
        _signal(pid, number)

    return send


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def _first_of(main: asyncio.Future[Any], other: Awaitable[Any]) -> None:
    """Wait for one of two; the other goes no further if the first was the main one."""
    beside = asyncio.ensure_future(other)
    try:
        await asyncio.wait((main, beside), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not beside.done():
            beside.cancel()
        await asyncio.gather(beside, return_exceptions=main.done())
