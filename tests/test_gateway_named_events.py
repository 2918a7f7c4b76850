"""What else generates text under ``/v1``, through the gateway: queued, counted, never cached."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from gateway_service import gateway
from raw_server import Peer, RawServer, raw

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ASKED = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}], "input": "hi"}
USAGE = {"input_tokens": 33, "output_tokens": 9}


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


STREAMS = {
    MESSAGES: (
        event("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 0}}),
        event("content_block_delta", delta={"type": "text_delta", "text": "hello"}),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage=USAGE) + event("message_stop"),
    ),
    RESPONSES: (
        event("response.created", response={"usage": None}),
        event("response.output_text.delta", delta="hello"),
        event("response.completed", response={"status": "completed", "usage": USAGE}),
    ),
}
WHOLES = {
    MESSAGES: {"type": "message", "content": [], "stop_reason": "end_turn", "usage": USAGE},
    RESPONSES: {"object": "response", "status": "completed", "output": [], "usage": USAGE},
}
BOTH = pytest.mark.parametrize("path", [MESSAGES, RESPONSES])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@asynccontextmanager
async def answering(generate: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[RawServer]:
    """A server whose every POST is answered so, and every probe and listing with nothing."""

    async def handle(peer: Peer) -> None:
        while True:
            if (await peer.request()).startswith(b"POST"):
                await generate(peer)
            else:
                await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n" + b'{"models":[]}')

    async with raw(handle) as server:
        yield server


async def stream_of(peer: Peer, events: tuple[bytes, ...]) -> None:
    await peer.write(HEAD + b"".join(map(chunk, events)) + chunk(b""))


@BOTH
async def test_a_stream_is_queued_and_its_place_is_free_at_its_end(path: str):
    """One place: the second waits for the first's last event, and its tokens count for its client."""
    may_end = asyncio.Event()

    async def generate(peer: Peer) -> None:
        first, *rest = STREAMS[path]
        await peer.write(HEAD + chunk(first))
        await may_end.wait()
        await peer.write(b"".join(map(chunk, rest)) + chunk(b""))

    async with (
        answering(generate) as upstream,
        gateway(upstream.url, max_concurrent=1, cache="memory") as service,
    ):
        calls = [asyncio.create_task(service.post(path, {**ASKED, "stream": True})) for _ in range(2)]
        await service.until(lambda now: (now["queue"]["active"], now["queue"]["waiting"]) == (1, 1))
        may_end.set()
        for reply in await asyncio.gather(*calls):
            assert reply.body == b"".join(STREAMS[path])
            assert reply.headers["X-Ollamalab-Cache"] == "bypass"
            assert "X-Ollamalab-Queue-Ms" in reply.headers
        queue = (await service.at_rest())["queue"]
        assert (queue["completed"], queue["failed"], queue["cancelled"]) == (2, 0, 0)
        (client,) = queue["clients"].values()
        assert client["tokens"] == 2 * (33 / 2 + 9)


@BOTH
async def test_a_whole_answer_is_queued_too_and_never_kept(path: str):
    body = json.dumps(WHOLES[path]).encode()

    async def generate(peer: Peer) -> None:
        await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with answering(generate) as upstream, gateway(upstream.url, cache="memory") as service:
        for _ in range(2):
            assert (await service.post(path, ASKED)).body == body
        status = await service.at_rest()
        assert (status["queue"]["completed"], status["cache"]["bypassed"]) == (2, 2)
        assert sum(request.startswith(b"POST") for request in upstream.requests) == 2


@pytest.mark.parametrize("in_one_read", [False, True])
async def test_a_transcription_is_queued_by_the_model_in_its_form_and_passed_unchanged(in_one_read: bool):
    body = b'{"text":"hello"}\n'

    async def generate(peer: Peer) -> None:
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        if in_one_read:
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        await peer.write(head + (body if in_one_read else chunk(body[:5])))
        if not in_one_read:
            await peer.write(chunk(body[5:]) + chunk(b""))

    async with answering(generate) as upstream, gateway(upstream.url, cache="memory") as service:
        form = aiohttp.FormData({"model": "m", "language": "en"})
        form.add_field("file", b"RIFF" * 1000, filename="a.wav")
        async with service.http.post("/v1/audio/transcriptions", data=form) as reply:
            assert (reply.status, await reply.read()) == (200, body)
            assert reply.headers["X-Ollamalab-Cache"] == "bypass"
        queue = (await service.at_rest())["queue"]
        assert (queue["completed"], queue["total"]) == (1, 1)
        (sent,) = [request for request in upstream.requests if request.startswith(b"POST")]
        assert b"RIFF" * 1000 in sent
        assert b"content-type: multipart/form-data; boundary=" in sent


@BOTH
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_stream_without_its_last_event_ends_with_an_error_that_its_clients_read(
    path: str, is_cut: bool
):
    """They skip events without a name."""

    async def generate(peer: Peer) -> None:
        if is_cut:
            await peer.write(HEAD + chunk(STREAMS[path][0]))
            peer.writer.transport.abort()
        else:
            await stream_of(peer, STREAMS[path][:2])

    async with answering(generate) as upstream, gateway(upstream.url) as service:
        reply = await service.post(path, {**ASKED, "stream": True})
        last = reply.body.split(b"\n\n")[-2]
        name, data = last.split(b"\n")
        assert name == b"event: error"
        told = json.loads(data.removeprefix(b"data: "))
        assert told["type"] == "error"
        assert told["error"]["type"] == "api_error"
        status = await service.at_rest()
        assert status["queue"]["failed"] == 1
        assert status["requests"]["by_ending"]["broken"] == 1


@BOTH
async def test_a_client_that_goes_frees_its_place(path: str):
    async def generate(peer: Peer) -> None:
        await peer.write(HEAD + chunk(STREAMS[path][0]))
        await peer.hung_up()

    async with answering(generate) as upstream, gateway(upstream.url) as service:
        async with service.http.post(path, json={**ASKED, "stream": True}) as reply:
            assert await reply.content.readany()
        queue = (await service.at_rest())["queue"]
        assert (queue["cancelled"], queue["active"]) == (1, 0)
