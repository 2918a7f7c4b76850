"""Clients with and without a kept connection, counted where the connections arrive."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from lab_samples import done

from ollamalab.compare import Visit, design
from ollamalab.lab import Trials, pooling
from ollamalab.lab.clients import CHEAP, LIBRARIES, Answered, Library, Reuse, Send, calls
from ollamalab.lab.trials import run_visits
from ollamalab.metrics import e2e_final_line_s
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome
from ollamalab.scripted import Fault, Script, ScriptedServer

QUICK = Script(first_s=0.0, gap_s=0.0, tokens=2)
REQUEST_S = pooling.median_of(e2e_final_line_s)
WAYS = [
    pytest.param(library, way, id=f"{library.name}, {way}") for library in LIBRARIES for way in library.ways
]
VISIT = Visit(index=0, block=0, arm="a")


class Door:
    """A relay that counts the connections to a server.

    Attributes:
        url: Where it listens.
        opened: Connections so far.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.opened = 0
        self.url = ""

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until their end, then close."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def door(script: Script = QUICK) -> AsyncIterator[Door]:
    """Give a relay to a scripted server."""
    async with ScriptedServer(script) as server:
        opened = Door(int(server.url.rpartition(":")[2]))
        async with await asyncio.start_server(opened.pass_on, "127.0.0.1", 0) as relay:
            opened.url = f"http://127.0.0.1:{relay.sockets[0].getsockname()[1]}"
            yield opened


def generation(place: int = 0) -> Request:
    draw = pooling.short_generations("scripted", prompt_tokens=12, num_predict=2, seed=1)
    return draw(VISIT, place)


@pytest.mark.parametrize(("library", "way"), WAYS)
async def test_a_kept_connection_is_one_and_the_other_ways_make_one_per_request(
    library: Library, way: Reuse
) -> None:
    async with door() as relay, calls(library, relay.url, way) as send:
        for request in (CHEAP, generation(), generation()):
            assert (await send(request)).status == 200
        assert relay.opened == (1 if way in (Reuse.KEPT, Reuse.CHECKED) else 3)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
async def test_every_library_leaves_one_record_per_request(library: Library) -> None:
    """The request before the first that counts leaves none; each failure has its outcome."""
    script = Script(first_s=0.0, gap_s=0.0, tokens=2, faults={1: Fault.BUSY, 2: Fault.RESET})
    async with door(script) as relay:
        draw = pooling.short_generations("scripted", prompt_tokens=12, num_predict=2, seed=1)
        visit = pooling.asks(library, relay.url, Reuse.KEPT, draw, requests=4)
        outcomes = [record.outcome for record in await visit(VISIT)]
    assert outcomes == [Outcome.OK, Outcome.HTTP_ERROR, Outcome.TRUNCATED, Outcome.OK]


async def test_equal_blocks_ask_equal_words_with_different_nonces() -> None:
    draw = pooling.short_generations("m", prompt_tokens=12, num_predict=2, seed=1)
    bodies = [draw(Visit(index=index, block=block, arm="a"), 0).body for index, block in enumerate((0, 0, 1))]
    same, other = bodies[0].split(b" ", 1)[1] == bodies[1].split(b" ", 1)[1], bodies[2].split(b" ", 1)[1]
    assert same
    assert other != bodies[0].split(b" ", 1)[1]
    assert len(set(bodies)) == 3


async def test_a_health_check_is_one_more_request_in_the_time_of_each() -> None:
    seen = []

    @asynccontextmanager
    async def open_counted(url: str, is_kept: bool) -> AsyncIterator[Send]:
        async with LIBRARIES[0].open(url, is_kept) as send:

            async def counted(request: Request) -> Answered:
                seen.append(request.path)
                return await send(request)

            yield counted

    async with ScriptedServer(QUICK) as server:
        counting = Library(name="ollamalab", open=open_counted)
        async with calls(counting, server.url, Reuse.CHECKED) as send:
            assert (await send(generation())).status == 200
    assert seen == [CHEAP.path, "/api/generate"]


def planted(kept_s: float, new_s: float, *, pairs: int = 12) -> Trials:
    """Return trials in which our kept connection takes so long, and a new one so long."""
    ours = LIBRARIES[0]
    took = dict(zip(ours.arms("cheap"), (kept_s, new_s, 2 * kept_s), strict=True))
    visits = design(tuple(took), pairs, random.Random(1))
    noise = random.Random(2)
    records = [
        done(
            visit.arm, visit=visit.index, block=visit.block, end_s=took[visit.arm] * noise.uniform(0.99, 1.01)
        )
        for visit in visits
    ]
    return Trials(arms=tuple(took), records=tuple(records))


def test_what_was_planted_is_what_is_saved() -> None:
    found = pooling.savings(
        planted(0.004, 0.005),
        "cheap",
        REQUEST_S,
        libraries=LIBRARIES[:1],
        primary=("ollamalab", Reuse.RECONNECTED),
    )
    row = pooling.savings_table("cheap", "t", found).rows[0]
    assert row[:2] == ("ollamalab", "new connection")
    assert row[2:4] == pytest.approx((5.0, 4.0), rel=0.01)
    for cell, truth in ((row[4], 1.0), (row[5], 0.2)):
        assert isinstance(cell, tuple)
        estimate, low, high = cell
        assert low is not None
        assert high is not None
        assert low < truth < high
        assert low < estimate < high
    primary = pooling.primary_of(found)
    assert primary.verdict
    assert primary.verdict.text == "faster"
    assert pooling.savings_title(found).startswith("ollamalab, kept against health check first: 0.50×")
    assert list(pooling.forest(found)["label"]) == [
        "ollamalab, new connection",
        "ollamalab, health check first",
    ]
    assert pooling.check_sentence(found).startswith("A health check before each request costs 4.0")
    assert pooling.savings_sentence(found, Reuse.REBUILT).endswith("saves: n/a.")


def test_nothing_planted_is_no_title() -> None:
    found = pooling.savings(planted(0.005, 0.005), "cheap", REQUEST_S, libraries=LIBRARIES[:1])
    assert pooling.savings_title(found[:1]) == "No saving by a kept connection was shown here"


async def test_a_library_that_is_not_installed_is_not_run_with_its_reason() -> None:
    missing = Library(name="no_such_package", open=LIBRARIES[0].open, ways=(Reuse.KEPT, Reuse.REBUILT))
    assert missing.why_absent == "the package no_such_package is not installed"
    not_run = dict.fromkeys(missing.arms("cheap"), missing.why_absent)
    trials = await run_visits({}, (), not_run=not_run)
    found = pooling.savings(trials, "cheap", REQUEST_S, libraries=[missing])
    row = pooling.savings_table("cheap", "t", found).rows[0]
    assert row[2:6] == (None,) * 4
    assert row[-1] == f"not run: {missing.why_absent}"
    assert pooling.forest(found).empty
    assert set(pooling.absent("cheap")) == {
        arm for library in LIBRARIES if library.why_absent for arm in library.arms("cheap")
    }
