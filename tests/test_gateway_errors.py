"""What the gateway's own errors say beside their status."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
from gateway_service import HELLO, gateway
from raw_server import Peer, raw

from ollamalab.scripted import Fault, Script, ScriptedServer

QUICK = Script(first_s=0.0, gap_s=0.0, tokens=2)
CHAT = {"model": "scripted", "messages": HELLO}


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize(("cache", "word"), [("off", "off"), ("memory", "bypass")])
async def test_an_unreachable_server_is_told_of_like_any_answer(cache: str, word: str):
    """Nobody lists the model, so the cache has no part in it."""
    async with gateway(f"http://127.0.0.1:{closed_port()}", cache=cache) as service:
        for path in ("/api/chat", "/v1/chat/completions", "/api/embed"):
            reply = await service.post(path, {**CHAT, "input": "hi"})
            assert reply.status == 503
            assert reply.headers["X-Ollamalab-Cache"] == word
            assert float(reply.headers["X-Ollamalab-Queue-Ms"]) >= 0
            assert "total;dur=" in reply.headers["Server-Timing"]
        async with service.http.get("/api/tags") as reply:
            assert "X-Ollamalab-Cache" not in reply.headers


async def test_a_request_that_nobody_answered_in_time_was_a_miss():
    script = Script(faults={0: Fault.HANG})
    async with (
        ScriptedServer(script) as upstream,
        gateway(upstream.url, cache="memory", request_timeout=0.2, load_timeout=0.2) as service,
    ):
        reply = await service.chat()
        assert (reply.status, reply.headers["X-Ollamalab-Cache"]) == (504, "miss")


async def test_a_full_queue_is_told_of_like_any_answer():
    async with (
        ScriptedServer(Script(first_s=3600.0)) as upstream,
        gateway(upstream.url, max_concurrent=1, max_queue=0) as service,
    ):
        call = asyncio.create_task(service.chat())
        await upstream.received(1)
        reply = await service.chat()
        assert (reply.status, reply.headers["X-Ollamalab-Cache"]) == (503, "off")
        call.cancel()
        await upstream.ended(1)
        await service.at_rest()


@pytest.mark.parametrize(("cache", "word"), [("off", "off"), ("memory", "miss")])
async def test_what_is_only_wanted_from_a_cache_is_never_asked_of_the_server(cache: str, word: str):
    """Without a cache nothing is ever there: 504, as of any miss."""
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url, cache=cache) as service:
        only = {"Cache-Control": "only-if-cached"}
        reply = await service.chat(headers=only)
        assert (reply.status, reply.headers["X-Ollamalab-Cache"]) == (504, word)
        assert "only-if-cached" in json.loads(reply.body)["error"]
        assert upstream.log == []
        async with service.http.get("/api/version", headers=only) as version:
            assert version.status == 200


async def test_a_server_that_answers_a_stream_with_nothing_is_told_of_on_the_same_connection():
    """Its Content-Length of 0 became ours, under which no error could be told: the connection was cut."""

    async def nothing(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async with raw(nothing) as upstream, gateway(upstream.url) as service:
        reply = await service.chat()
        assert reply.status == 200
        assert "without its final line" in reply.lines[-1]["error"]
        whole = await service.chat(stream=False)
        assert (whole.status, whole.body) == (200, b"")
        queue = (await service.at_rest())["queue"]
        assert (queue["failed"], queue["cancelled"]) == (2, 0)


FINAL = b'{"model":"m","message":{"role":"assistant","content":"a"},"done":true,"eval_count":1}\n'
LISTED = b'{"models":[{"name":"m:latest","digest":"%b"}]}' % (64 * b"0")


@pytest.mark.parametrize("field", ["format", "options", "tools"])
async def test_objects_within_objects_are_passed_on_or_refused_at_every_depth(field: str):
    """The cache wrote again what could just be read, where less of the stack was left: a 500."""

    async def handle(peer: Peer) -> None:
        while True:
            is_chat = (await peer.request()).startswith(b"POST")
            body = FINAL if is_chat else LISTED
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with (
        raw(handle) as upstream,
        gateway(upstream.url, cache="memory", route="prefix") as service,
    ):
        outcomes = []
        for depth in range(850, 1010):
            nested = depth * b'{"a":' + b"1" + depth * b"}"
            body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":false,"%b":%b}'
            async with service.http.post("/api/chat", data=body % (field.encode(), nested)) as reply:
                outcomes.append(reply.status)
                if reply.status != 200:
                    assert await reply.json() == {"error": "exceeded max depth"}
        assert outcomes == sorted(outcomes)
        assert (outcomes[0], outcomes[-1]) == (200, 400)
        await service.at_rest()


async def test_the_gateways_own_pages_have_their_names_in_its_metrics():
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url) as service:
        paths = ("/healthz", "/lab/status", "/metrics", "/nowhere")
        for path in paths:
            async with service.http.get(path):
                pass
        async with service.http.get("/metrics") as reply:
            page = await reply.text()
        counted = {
            path
            for path in (*paths, "other")
            if f'ollamalab_requests_total{{ending="whole",path="{path}"' in page
        }
        assert counted == {"/healthz", "/lab/status", "/metrics", "other"}
