"""Hang-ups, deaths and ends of the embedded server, seen on the engine's own account of its slots."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from embedded_server import EmbeddedServer, embedded_server

ENDLESS = {"num_predict": -1, "temperature": 1, "seed": 1, "stop": []}
STORY = [{"role": "user", "content": "Tell me a long story."}]
ENGINE_DIED = "an error was encountered while running the model: "


def endless(server: EmbeddedServer, **fields: Any) -> dict[str, Any]:
    return {"model": server.model, "messages": STORY, "options": ENDLESS, **fields}


async def is_idle(server: EmbeddedServer) -> bool:
    return await server.busy_slots() == 0


async def is_busy(server: EmbeddedServer) -> bool:
    return await server.busy_slots() > 0


async def engine_pid(server: EmbeddedServer) -> int:
    (engine,) = [e for e in await server.get("/lab/engines") if e["model"] == server.model]
    pid: int = engine["pid"]
    return pid


@pytest.fixture
async def one_slot(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server with one slot, for tests that end it or wait in its line."""
    async with embedded_server(tmp_path, "--num-parallel", "1") as running:
        yield running


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_hanging_up_on_a_stream_stops_the_generation(server: EmbeddedServer, path: str) -> None:
    await server.until(lambda: is_idle(server))
    async with server.http.post(path, json=endless(server, stream=True)) as reply:
        await reply.content.readline()
        assert await is_busy(server)
        reply.close()
    await server.until(lambda: is_idle(server))
    assert len((await server.get("/api/ps"))["models"]) > 0


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
async def test_hanging_up_on_a_whole_answer_stops_the_generation(server: EmbeddedServer, path: str) -> None:
    await server.until(lambda: is_idle(server))
    asking = asyncio.create_task(server.post(path, endless(server, stream=False)))
    await server.until(lambda: is_busy(server))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await server.until(lambda: is_idle(server))


async def test_one_who_leaves_the_line_for_a_slot_leaves_nothing_behind(one_slot: EmbeddedServer) -> None:
    async with one_slot.http.post("/api/chat", json=endless(one_slot)) as running:
        await running.content.readline()
        waiting = asyncio.create_task(one_slot.post("/api/chat", endless(one_slot, stream=False)))
        patient = asyncio.create_task(
            one_slot.post("/api/chat", endless(one_slot, stream=False, options={"num_predict": 2}))
        )
        await asyncio.wait([waiting], timeout=0.2)
        waiting.cancel()
        running.close()
    status, reply = await patient
    assert (status, reply["eval_count"]) == (200, 2)
    await one_slot.until(lambda: is_idle(one_slot))


async def test_a_killed_engine_ends_its_streams_with_an_error_and_is_loaded_anew(
    server: EmbeddedServer,
) -> None:
    """The text so far, then an error line, and no final one; the next request finds a new engine."""
    async with server.http.post("/api/chat", json=endless(server)) as reply:
        first = await reply.content.readline()
        assert json.loads(first)["done"] is False
        killed = await engine_pid(server)
        psutil.Process(killed).kill()
        lines = [json.loads(line) for line in (await reply.read()).splitlines()]
    assert list(lines[-1]) == ["error"]
    assert lines[-1]["error"].startswith(ENGINE_DIED)
    assert not any(line.get("done") for line in lines)
    status, answer = await server.post("/api/chat", endless(server, stream=False, options={"num_predict": 2}))
    assert (status, answer["eval_count"]) == (200, 2)
    assert await engine_pid(server) != killed


async def test_a_killed_engine_is_a_500_to_whole_answers(server: EmbeddedServer) -> None:
    await server.until(lambda: is_idle(server))
    asking = asyncio.create_task(server.post("/api/chat", endless(server, stream=False)))
    await server.until(lambda: is_busy(server))
    psutil.Process(await engine_pid(server)).kill()
    status, body = await asking
    assert status == 500
    assert body["error"].startswith(ENGINE_DIED)


async def test_a_killed_engine_is_an_error_event_to_openai_s_clients(server: EmbeddedServer) -> None:
    async with server.http.post("/v1/chat/completions", json=endless(server, stream=True)) as reply:
        await reply.content.readuntil(b"\n\n")
        psutil.Process(await engine_pid(server)).kill()
        *_, last = (await reply.read()).split(b"\n\n")[:-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"].startswith(ENGINE_DIED)


async def test_a_corrupt_model_is_an_error_with_its_reason(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    broken = cache / "ollamalab" / "models" / "broken" / "latest.gguf"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"GGUF" + bytes(20))
    async with embedded_server(tmp_path, XDG_CACHE_HOME=str(cache)) as running:
        status, body = await running.post("/api/chat", {"model": "broken", "messages": STORY})
        assert status == 500
        assert "broken/latest.gguf" in body["error"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_server_and_engines_and_open_streams(
    one_slot: EmbeddedServer, number: signal.Signals
) -> None:
    async with one_slot.http.post("/api/chat", json=endless(one_slot)) as reply:
        await reply.content.readline()
        family = [psutil.Process(pid) for pid in one_slot.process.pids()]
        assert await engine_pid(one_slot) in [process.pid for process in family]
        family[0].send_signal(number)
        with pytest.raises(aiohttp.ClientPayloadError):
            await reply.read()
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left


async def test_the_log_has_no_prompt_and_no_answer(server: EmbeddedServer) -> None:
    secret = "xyzzy-8472"
    await server.post(
        "/api/generate",
        {"model": server.model, "prompt": secret, "stream": False, "options": {"num_predict": 2}},
    )
    assert secret not in server.process.log_tail(10_000)
