"""The scripted server does what its script says, and knows what it did."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from typing import Any

import aiohttp
import pytest

from ollamalab.errors import SettingsError
from ollamalab.scripted import Fault, Script, ScriptedServer

QUICK = {"first_s": 0.002, "gap_s": 0.001, "tokens": 4}


async def ask(
    session: aiohttp.ClientSession, server: ScriptedServer, prompt: str = "hello", **more: Any
) -> list[dict[str, Any]]:
    """Return the lines of one reply."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": prompt}], **more}
    async with session.post(f"{server.url}/api/chat", json=body) as reply:
        return [json.loads(line) for line in (await reply.read()).splitlines()]


async def test_a_stream_is_its_tokens_then_the_final_line() -> None:
    async with ScriptedServer(Script(**QUICK)) as server, aiohttp.ClientSession() as session:
        lines = await ask(session, server)
    assert [line["message"]["content"] for line in lines] == ["0 ", "1 ", "2 ", "3 ", ""]
    assert [line["done"] for line in lines] == [False] * 4 + [True]
    assert (lines[-1]["eval_count"], lines[-1]["done_reason"]) == (5, "stop"), "the unsent end token counts"
    assert lines[-1]["eval_duration"] == pytest.approx(3e6, abs=2)
    assert lines[-1]["prompt_eval_duration"] == pytest.approx(2e6, abs=2)


async def test_num_predict_and_stream_false_are_honoured() -> None:
    async with ScriptedServer(Script(**QUICK)) as server, aiohttp.ClientSession() as session:
        (short,) = await ask(session, server, options={"num_predict": 2}, stream=False)
        long = await ask(session, server, options={"num_predict": 9})
    assert (short["message"]["content"], short["eval_count"], short["done_reason"]) == ("0 1 ", 2, "length")
    assert (len(long), long[-1]["done_reason"]) == (5, "stop")


async def test_one_slot_serves_in_order_and_each_begins_when_the_last_was_due_to_end() -> None:
    script = Script(**QUICK, slots=1, stalls={1: 0.05})
    async with ScriptedServer(script) as server, aiohttp.ClientSession() as session:
        await asyncio.gather(*(ask(session, server, f"{number}") for number in range(5)))
        log = server.log
    for earlier, later in itertools.pairwise(log):
        assert earlier.started_s is not None
        due_s = script.due_moments(earlier.index, earlier.started_s, 4)[-1]
        assert later.started_s == max(later.arrived_s, due_s)
    assert all(len(served.written_s) == 4 and served.is_complete for served in log)


async def test_a_hang_up_frees_the_slot_for_the_next() -> None:
    async with (
        ScriptedServer(Script(**QUICK, slots=1, faults={0: Fault.STUCK})) as server,
        aiohttp.ClientSession() as session,
    ):
        first = asyncio.create_task(ask(session, server, "first"))
        await server.received(1)
        second = asyncio.create_task(ask(session, server, "second"))
        await server.received(2)
        assert server.log[1].started_s is None
        first.cancel()
        assert (await second)[-1]["done"]
    assert [served.is_complete for served in server.log] == [False, True]


async def test_the_log_is_served_so_that_another_process_can_compare() -> None:
    async with ScriptedServer(Script(**QUICK)) as server, aiohttp.ClientSession() as session:
        before_s = time.perf_counter()
        await ask(session, server, "compare me")
        async with session.get(f"{server.url}/script/log") as reply:
            (served,) = (await reply.json())["requests"]
    assert served["prompt"] == "compare me"
    assert before_s <= served["arrived_s"] <= served["written_s"][0] <= served["written_s"][-1]


async def test_small_routes_and_refusals_are_ollamas() -> None:
    async with ScriptedServer() as server, aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/") as reply:
            assert await reply.text() == "Ollama is running"
        async with session.get(f"{server.url}/api/tags") as reply:
            assert [model["name"] for model in (await reply.json())["models"]] == ["scripted:latest"]
        async with session.post(f"{server.url}/api/chat", json={"model": "no"}) as reply:
            assert (reply.status, await reply.json()) == (404, {"error": "model 'no' not found"})
        async with session.post(f"{server.url}/api/chat", json={}) as reply:
            assert reply.status == 400
        async with session.post(f"{server.url}/api/generate", json={"model": "Scripted"}) as reply:
            assert (await reply.json())["done_reason"] == "load"
    assert server.log == []


@pytest.mark.parametrize("values", [{"gap_s": -1.0}, {"tokens": 0}, {"slots": 0}])
def test_an_impossible_script_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Script(**values)


async def test_it_runs_in_a_process_of_its_own() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ollamalab.scripted", "--first-ms", "1", "--gap-ms", "1", "--tokens", "3"),
        *("--slots", "1", "--stall", "0=0.001", "--fault", "1=busy"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        body = {"model": "scripted", "prompt": "hello"}
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/api/generate", json=body) as reply:
                assert len((await reply.read()).splitlines()) == 4
            async with session.post(f"{url}/api/generate", json=body) as reply:
                assert reply.status == 503
    finally:
        process.terminate()
        assert await process.wait() == 0
