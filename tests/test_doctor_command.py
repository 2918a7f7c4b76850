"""``ollamalab doctor`` on real servers: what it finds, prints and returns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from embedded_server import EmbeddedServer, embedded_server
from ollama_standin import MODELS, free_url, serving

from ollamalab.doctor import examine, gather
from ollamalab.errors import ModelNotFound

COMMAND = [sys.executable, "-m", "ollamalab", "doctor"]


async def doctor(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run it without holding up the loop that may have to answer it."""
    return await asyncio.to_thread(
        subprocess.run, [*COMMAND, *flags], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """A server that is set up as well as can be."""
    async with embedded_server(tmp_path_factory.mktemp("embedded")) as running:
        yield running


async def test_a_server_that_is_well_gets_status_0_and_a_full_inventory(own: EmbeddedServer) -> None:
    done = await doctor(own.url, "--watch", "0", "--model", own.model, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    inventory = report["inventory"]
    assert inventory["host"]["memory_bytes"] > 0
    assert inventory["gpus"]["gpus"] or inventory["gpus"]["reason"]
    assert {"name", "digest", "size_bytes", "quantisation"} == inventory["models"][0].keys()
    assert inventory["process"]["pid"] in own.process.pids()
    assert inventory["process"]["environment"]["OLLAMA_CONTEXT_LENGTH"] == "1024"
    assert inventory["streamed"]["lines"] > 1
    assert "not_readable" in inventory["disk"]


async def test_a_person_reads_inventory_and_findings(own: EmbeddedServer) -> None:
    await own.post("/api/generate", {"model": own.model})
    done = await doctor(own.url, "--watch", "0")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("loaded") and own.model in line]
    assert lines[-1] == "No findings."
    assert all(label in done.stdout for label in ("host ", "server ", "variables ", "disk ", "stream "))


async def test_misconfigurations_are_found_with_their_evidence(tmp_path: Path) -> None:
    """In the environment of the running server, which nothing but its process tells."""
    wrong = {
        "OLLAMA_GPU_OVERHEAD": "2048",
        "OLLAMA_NEW_ENGINE": "1",
        "OLLAMA_KEEP_ALIVE": "10s",
        "OLLAMA_FLASH_ATTENTION": "off",
    }
    async with embedded_server(tmp_path, **wrong) as server:
        done = await doctor(server.url, "--watch", "0", "--json")
    assert done.returncode == 1
    findings = {finding["rule"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings.keys() == {"wrong-unit", "unknown-variable", "short-keep-alive", "unreadable-value"}
    assert "OLLAMA_GPU_OVERHEAD=2048 is 2 KiB" in findings["wrong-unit"]["evidence"]
    assert all(finding["consequence"] and finding["fix"] for finding in findings.values())


async def test_clients_that_fight_over_the_context_are_seen(own: EmbeddedServer) -> None:
    async def fight() -> None:
        while True:
            for context in (512, 1024):
                options = {"num_ctx": context, "num_predict": 40}
                asked = {"model": own.model, "prompt": "Count to 40.", "options": options, "stream": False}
                await own.post("/api/generate", asked)

    fighting = asyncio.create_task(fight())
    found: set[str] = set()
    try:
        while "context-thrash" not in found:  # a slow machine may not load twice in one watch
            found = {finding.rule for finding in examine(await gather(own.url, watch_s=4.0))}
    finally:
        fighting.cancel()
        await asyncio.gather(fighting, return_exceptions=True)


@asynccontextmanager
async def proxy(url: str, *, is_buffering: bool) -> AsyncIterator[str]:
    """Run a proxy that passes bytes on as they come, or each answer when it is complete."""

    async def relay(request: web.Request) -> web.StreamResponse:
        async with http.request(request.method, request.path, data=await request.read()) as reply:
            if is_buffering:
                return web.Response(status=reply.status, body=await reply.read())
            response = web.StreamResponse(status=reply.status)
            await response.prepare(request)
            async for piece in reply.content.iter_any():
                await response.write(piece)
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", relay)
    runner = web.AppRunner(app)
    async with ClientSession(url) as http:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


@pytest.mark.parametrize("is_buffering", [True, False])
async def test_a_proxy_that_holds_streams_back_is_found_by_a_stream(
    own: EmbeddedServer, is_buffering: bool
) -> None:
    async with proxy(own.url, is_buffering=is_buffering) as url:
        inventory = await gather(url, watch_s=0, model=own.model)
    assert ("held-stream" in {finding.rule for finding in examine(inventory)}) is is_buffering


async def test_nothing_is_loaded_unless_a_model_is_named(own: EmbeddedServer) -> None:
    await own.post("/api/generate", {"model": own.model, "keep_alive": 0})

    async def is_empty() -> bool:
        return not (await own.get("/api/ps"))["models"]

    await own.until(is_empty)
    done = await doctor(own.url, "--watch", "0")
    assert "no model is loaded; --model NAME loads one" in done.stdout
    assert await is_empty()


async def test_a_loaded_model_is_not_loaded_anew_by_the_stream(own: EmbeddedServer) -> None:
    await own.post("/api/generate", {"model": own.model, "options": {"num_ctx": 768}})
    before = await own.get("/lab/engines")
    await gather(own.url, watch_s=0)
    after = await own.get("/lab/engines")
    assert [engine["pid"] for engine in after] == [engine["pid"] for engine in before]
    assert (await own.get("/api/ps"))["models"][0]["context_length"] == 768


async def test_a_model_that_is_not_there_is_bad_input(own: EmbeddedServer) -> None:
    done = await doctor(own.url, "--watch", "0", "--model", "no-such-model")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no-such-model" in done.stderr
    with pytest.raises(ModelNotFound):
        await gather(own.url, watch_s=0, model="no-such-model")


async def test_what_a_server_does_not_tell_is_not_readable() -> None:
    """A server that answers no more than its version and models."""
    with serving({"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": MODELS}}) as url:
        done = await doctor(url, "--watch", "0", "--json")
    assert done.returncode == 0
    inventory = json.loads(done.stdout)["inventory"]
    assert inventory["models"][0]["quantisation"] == "Q4_1"
    for name in ("loaded", "watch", "process", "engines", "disk", "driver_cache", "streamed"):
        assert inventory[name]["not_readable"], name


async def test_an_address_where_nothing_listens_is_bad_input() -> None:
    done = await doctor(free_url())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "cannot connect" in done.stderr


async def test_without_a_server_the_machine_alone_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", free_url())
    done = await doctor()
    assert done.returncode in (0, 1)  # its GPUs may have findings of their own
    assert "host " in done.stdout
    assert "not readable: cannot connect" in done.stdout


@pytest.mark.parametrize("address", ["http://a b", "ftp://gpu2", "http://user:secret@gpu2"])
async def test_what_is_no_address_is_bad_input(address: str) -> None:
    done = await doctor(address)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "secret" not in done.stderr
