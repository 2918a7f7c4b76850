"""HTTP out, against real sockets that answer, refuse, hang, cut and drip."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from ollamalab.connection import ConnectionSettings, HttpReply, OllamaConnection, error_type
from ollamalab.errors import (
    BadReply,
    SettingsError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.scripted import Fault, Script, ScriptedServer

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}).encode()
CHAT = Request(method="POST", path="/api/chat", body=BODY)
IMPATIENT = ConnectionSettings(progress_timeout_s=0.3)


def script(fault: Fault | None = None) -> Script:
    return Script(first_s=0.0, gap_s=0.0, tokens=4, faults={0: fault} if fault else {})


@asynccontextmanager
async def linked(
    to: Script, settings: ConnectionSettings | None = None
) -> AsyncIterator[tuple[ScriptedServer, OllamaConnection]]:
    """A scripted server and a connection to it."""
    async with ScriptedServer(to) as server, OllamaConnection(server.url, settings) as connection:
        yield server, connection


async def body_of(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply.chunks()])


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that gives one fixed answer; with its URL, the requests it got."""
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if b"content-length" in line), 0
        )
        got.append(head + await reader.readexactly(length))
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", got


async def test_a_connection_is_an_upstream_and_gives_the_body_as_bytes() -> None:
    async with linked(script()) as (_, connection):
        upstream: Upstream = connection
        async with await upstream.send(CHAT) as reply:
            assert reply.status == 200
            assert reply.headers["content-type"] == "application/x-ndjson"
            lines = (await body_of(reply)).splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False] * 4 + [True]


async def test_connections_are_reused_and_tell_when_they_are_new() -> None:
    async with linked(script()) as (_, connection):
        replies: list[HttpReply] = []
        for _ in range(3):
            async with await connection.send(CHAT) as reply:
                await body_of(reply)
                replies.append(reply)
    assert replies[0].connected_s is not None
    assert [reply.connected_s for reply in replies[1:]] == [None, None]
    assert all(reply.sent_end_s is not None for reply in replies)


async def test_what_leaves_is_the_body_verbatim_with_headers_of_this_hop() -> None:
    """Ollama answers 403 to a foreign Host, and a client's framing is not ours."""
    foreign = {"Host": "evil.example", "Connection": "close", "Content-Length": "7", "X-Kept": "yes"}
    headers = {**foreign, "authorization": "Bearer theirs"}
    request = Request(method="POST", path="/api/chat?x=a%20b", headers=headers, body=b'{"a": 1}')
    async with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (url, got),
        OllamaConnection(url, headers={"Authorization": "Bearer ours"}) as connection,
        await connection.send(request) as reply,
    ):
        assert await body_of(reply) == b""
    head, _, body = got[0].partition(b"\r\n\r\n")
    first, *fields = head.decode().lower().split("\r\n")
    assert body == b'{"a": 1}'
    assert first == "post /api/chat?x=a%20b http/1.1"
    assert sorted(fields) == sorted(
        [
            f"host: {url.removeprefix('http://')}",
            "accept: */*",
            "authorization: bearer ours",
            "content-length: 8",
            "content-type: application/json",
            "x-kept: yes",
        ]
    )


async def test_compressed_bodies_and_redirects_are_passed_on_untouched() -> None:
    answer = (
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Encoding: gzip\r\n"
        b"X-Two: a\r\nX-Two: b\r\nContent-Length: 5\r\n\r\n\x1f\x8bnot"
    )
    async with (
        answering(answer) as (url, _),
        OllamaConnection(url) as connection,
        await connection.send(Request(method="GET", path="/")) as reply,
    ):
        assert (reply.status, reply.headers["x-two"]) == (302, "a, b")
        assert await body_of(reply) == b"\x1f\x8bnot"


async def test_nothing_listening_is_unavailable_with_the_next_step() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with OllamaConnection(url) as connection:
            with pytest.raises(UpstreamUnavailable, match=r"ollama serve") as caught:
                await connection.send(CHAT)
    assert caught.value.url == url
    assert caught.value.__cause__ is not None


async def test_a_full_pool_is_unavailable_rather_than_an_endless_wait() -> None:
    limits = ConnectionSettings(max_connections=1, connect_timeout_s=0.05)
    async with linked(script(Fault.STUCK), limits) as (_, connection), await connection.send(CHAT):
        with pytest.raises(UpstreamUnavailable, match=r"within 0\.05 s"):
            await connection.send(CHAT)


async def test_no_status_in_time_is_a_timeout() -> None:
    async with linked(script(Fault.HANG), IMPATIENT) as (_, connection):
        with pytest.raises(UpstreamTimeout) as caught:
            await connection.send(CHAT)
    assert caught.value.after_s == 0.3


async def test_a_body_that_stops_is_a_timeout_after_what_came() -> None:
    came = b""
    async with (
        linked(script(Fault.STUCK), IMPATIENT) as (_, connection),
        await connection.send(CHAT) as reply,
    ):
        chunks = reply.chunks()
        while came.count(b"\n") < 2:
            came += await anext(chunks)
        with pytest.raises(UpstreamTimeout):
            await anext(chunks)


async def test_a_cut_body_is_a_bad_reply() -> None:
    async with linked(script(Fault.CUT)) as (_, connection), await connection.send(CHAT) as reply:
        with pytest.raises(BadReply):
            await body_of(reply)


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.NOT_HTTP])
async def test_no_http_answer_is_a_bad_reply(fault: Fault) -> None:
    async with linked(script(fault)) as (server, connection):
        with pytest.raises(BadReply, match=server.url):
            await connection.send(CHAT)


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
async def test_a_body_shorter_than_promised_is_a_bad_reply(framing: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nab"
    async with (
        answering(answer) as (url, _),
        OllamaConnection(url) as connection,
        await connection.send(CHAT) as reply,
    ):
        with pytest.raises(BadReply):
            await body_of(reply)


async def test_leaving_early_hangs_up_on_the_server() -> None:
    async with linked(Script(first_s=0.0, gap_s=0.01, tokens=100_000)) as (server, connection):
        async with await connection.send(CHAT) as reply:
            await anext(aiter(reply.chunks()))
        await server.ended(1)
        assert not server.log[0].is_complete


async def test_a_connection_must_be_opened_and_its_limits_must_make_sense() -> None:
    with pytest.raises(SettingsError, match="async with"):
        await OllamaConnection("127.0.0.1").send(CHAT)
    for bad in ({"max_connections": 0}, {"connect_timeout_s": 0.0}, {"progress_timeout_s": float("nan")}):
        with pytest.raises(SettingsError, match=next(iter(bad))):
            ConnectionSettings(**bad)  # type: ignore[arg-type]


def subclasses(of: type[BaseException]) -> Iterator[type[BaseException]]:
    yield of
    for kind in of.__subclasses__():
        yield from subclasses(kind)


def test_every_exception_of_aiohttp_has_one_of_ours() -> None:
    unmapped = [
        kind
        for kind in subclasses(aiohttp.ClientError)
        if kind is not aiohttp.ClientError and kind.__module__.startswith("aiohttp") and not error_type(kind)
    ]
    assert unmapped == []
    assert error_type(aiohttp.ClientConnectorDNSError) is UpstreamUnavailable
    assert error_type(aiohttp.ConnectionTimeoutError) is UpstreamUnavailable
    assert error_type(aiohttp.SocketTimeoutError) is UpstreamTimeout
    assert error_type(aiohttp.ServerDisconnectedError) is BadReply
    assert all(issubclass(kind, UpstreamError) for kind in map(error_type, [TimeoutError, OSError]) if kind)
