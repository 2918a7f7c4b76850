"""How replies are framed, well and badly; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import pytest
from raw_server import OK, Peer, always, body_of, claims, once, open_sockets, raw, until

from ollamalab.connection import ConnectionSettings, OllamaConnection, new_event_loop
from ollamalab.connection.reply import HELD_LIMIT_BYTES
from ollamalab.connection.wire import MAX_HEAD_BYTES
from ollamalab.errors import BadReply
from ollamalab.protocol.upstream import Request

GET = Request(method="GET", path="/")
HEAD = Request(method="HEAD", path="/")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Case:
    """What a server says, and what it means."""

    said: bytes
    status: int = 200
    body: bytes = b"ok"
    headers: dict[str, str] = field(default_factory=dict)
    is_kept: bool = True  # whether the next request goes out on the same connection
    request: Request = GET


CASES = {
    "a length": Case(OK, headers={"content-length": "2"}),
    "no bytes": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", body=b"", headers={"content-length": "0"}
    ),
    "chunks": Case(CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
    "chunks in other letters": Case(
        b"HTTP/1.1 200 OK\r\nTRANSFER-encoding: CHUNKED\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ),
    "chunks with extensions and trailers": Case(
        CHUNKED + b'2;name=value;other="a b"\r\nok\r\n0;last\r\nX-Sum: 1\r\nContent-Type: late/late\r\n\r\n'
    ),
    "large chunk sizes": Case(CHUNKED + b"0002\r\nok\r\n000\r\n\r\n"),
    "until the close": Case(b"HTTP/1.1 200 OK\r\n\r\nok", is_kept=False),
    "until the close, by an old server": Case(b"HTTP/1.0 200 OK\r\n\r\nok", is_kept=False),
    "an old server that keeps connections": Case(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        headers={"content-length": "2"},
    ),
    "an old server that does not say": Case(
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", headers={"content-length": "2"}, is_kept=False
    ),
    "connection: close": Case(
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
        headers={"content-length": "2"},
        is_kept=False,
    ),
    "204": Case(b"HTTP/1.1 204 No Content\r\n\r\n", status=204, body=b""),
    "304 with the length of what it leaves out": Case(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        status=304,
        body=b"",
        headers={"content-length": "5"},
    ),
    "HEAD with the length of what it leaves out": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        body=b"",
        headers={"content-length": "5"},
        is_kept=False,
        request=HEAD,
    ),
    "HEAD without": Case(b"HTTP/1.1 200 OK\r\n\r\n", body=b"", is_kept=False, request=HEAD),
    "HEAD answered with a body": Case(
        OK, body=b"", headers={"content-length": "2"}, is_kept=False, request=HEAD
    ),
    "heads before the head": Case(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
        headers={"content-length": "2"},
    ),
    "headers of the hop": Case(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
        b"Trailer: X\r\nX-Kept: y\xe9s  \r\nX-Two: a\r\nx-two: b\r\nX-None:\r\nSet-Cookie: c=1\r\n"
        b"Content-Length: 2\r\n\r\nok",
        headers={"content-length": "2", "x-kept": "yés", "x-two": "a, b", "x-none": "", "set-cookie": "c=1"},
    ),
    "a redirect, zipped": Case(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Encoding: gzip\r\n"
        b"Content-Length: 5\r\n\r\n\x1f\x8bnot",
        status=302,
        body=b"\x1f\x8bnot",
        headers={"location": "http://127.0.0.1:1/", "content-encoding": "gzip", "content-length": "5"},
    ),
    "bytes after the end": Case(OK + b"!", headers={"content-length": "2"}, is_kept=False),
    "two replies at once": Case(OK + OK, headers={"content-length": "2"}, is_kept=False),
    "bytes after the last chunk": Case(CHUNKED + b"2\r\nok\r\n0\r\n\r\n2\r\nno\r\n", is_kept=False),
    "bytes after connection: close": Case(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok!",
        headers={"content-length": "2"},
        is_kept=False,
    ),
}


def speaking(said: bytes, *, at_once: bool) -> Callable[[Peer], Coroutine[None, None, None]]:
    """Say this to every request, whole or byte by byte; then close if the client cannot know the end."""

    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            for piece in [said] if at_once else [said[at : at + 1] for at in range(len(said))]:
                await peer.write(piece)
                await asyncio.sleep(0)
            if said in (CASES["until the close"].said, CASES["until the close, by an old server"].said):
                return

    return handle


async def exchange_twice(case: Case, *, at_once: bool) -> None:
    """See what is made of two replies in a row, and on how many connections they came."""
    async with raw(speaking(case.said, at_once=at_once)) as server:
        async with OllamaConnection(server.url) as connection:
            for _ in range(2):
                async with await connection.send(case.request) as reply:
                    assert (reply.status, reply.headers) == (case.status, case.headers)
                    assert await body_of(reply) == case.body
                if not case.is_kept:
                    await until(lambda: connection.open_connections == 0)
        assert len(server.peers) == (1 if case.is_kept else 2)
        assert not any(b"cookie" in request for request in server.requests)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_reply_is_understood_and_its_connection_kept_or_not(case: Case) -> None:
    await exchange_twice(case, at_once=True)


async def test_a_reply_means_the_same_byte_by_byte() -> None:
    """But for bytes after the end: they come when the next request may be out."""
    for name, case in CASES.items():
        if "after" not in name and "two" not in name and case.request is GET:
            await exchange_twice(case, at_once=False)


BAD = {
    "garbage": b"\x16\x03\x01 not HTTP\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "a status of two digits": b"HTTP/1.1 99 OK\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "a length past any": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
    "a coding we did not ask for": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "an upgrade nobody wanted": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "a head without an end": b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 * MAX_HEAD_BYTES + 300_000),
    "heads before the head, without an end": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
}
BAD_BODIES = {
    "shorter than its length": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
    "no last chunk": CHUNKED + b"2\r\nok\r\n",
    "half a chunk": CHUNKED + b"5\r\nok",
    "half an end": CHUNKED + b"2\r\nok\r\n0\r\n",
    "a chunk that is longer than its size": CHUNKED + b"2\r\noknot\r\n",
    "a chunk size that is no number": CHUNKED + b"2\r\nok\r\nzz\r\n",
    "a chunk size past any": CHUNKED + b"2\r\nok\r\n" + b"f" * 20 + b"\r\n",
    "trailers without an end": CHUNKED + b"2\r\nok\r\n0\r\n" + b"X: y\r\n" * 60_000,
    "an extension without an end": CHUNKED + b"2\r\nok\r\n2;" + b"x" * (2 * MAX_HEAD_BYTES + 300_000),
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
async def test_a_bad_head_is_a_bad_reply_and_ends_the_connection(said: bytes) -> None:
    async with raw(once(said)) as server, OllamaConnection(server.url) as connection:
        with pytest.raises(BadReply, match=server.url):
            await connection.send(GET)
        await until(lambda: connection.open_connections == 0)


@pytest.mark.parametrize("said", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_bad_body_is_a_bad_reply_after_what_came(said: bytes) -> None:
    came = b""
    async with raw(once(said)) as server, OllamaConnection(server.url) as connection:
        async with await connection.send(GET) as reply:
            chunks = reply.chunks()
            while len(came) < 2:
                came += await anext(chunks)
            with pytest.raises(BadReply, match=server.url):
                await anext(chunks)
        await until(lambda: connection.open_connections == 0)
    assert came[:2] == b"ok"


async def test_what_one_read_brings_is_one_chunk_and_no_wait() -> None:
    """A relay writes as often as it reads, however finely the server cuts its chunks."""
    said = CHUNKED + b"2\r\no\n\r\n" * 50 + b"0\r\n\r\n"
    async with (
        raw(always(said)) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(GET) as reply,
    ):
        coroutine = anext(aiter(reply.chunks())).__await__()
        with pytest.raises(StopIteration) as returned:
            next(coroutine)  # would suspend if it had to wait
        assert returned.value.value == b"o\n" * 50
        assert reply.is_ended


async def test_a_connection_is_free_when_the_last_byte_has_come() -> None:
    """Not when it has been taken: the reader may be slow."""
    async with raw(always(OK)) as server, OllamaConnection(server.url) as connection:
        first = await connection.send(GET)
        await until(lambda: first.is_ended)
        async with await connection.send(GET) as second:
            assert second.connected_s is None
            assert [await body_of(first), await body_of(second)] == [b"ok", b"ok"]


async def test_a_slow_reader_holds_up_the_server_instead_of_filling_memory() -> None:
    size = 48 * 1024 * 1024  # more than the sockets hold
    sent = 0

    async def handle(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            await peer.write(b"x" * 65536)
            sent += 65536
        await peer.request()
        await peer.write(OK)
        await peer.hung_up()

    async with raw(handle) as server, OllamaConnection(server.url) as connection:
        async with await connection.send(GET) as reply:
            chunks = reply.chunks()
            taken = len(await anext(chunks))
            await until(lambda: reply.held_bytes > HELD_LIMIT_BYTES)
            stalled = -1
            while stalled != sent:  # until the server gets rid of nothing more
                stalled = sent
                await asyncio.sleep(0.05)
            assert sent < size
            assert reply.held_bytes <= 2 * HELD_LIMIT_BYTES  # one read past the limit
            async for chunk in chunks:
                taken += len(chunk)
            assert taken == size
        async with await connection.send(GET) as reply:
            assert await body_of(reply) == b"ok"
    assert len(server.peers) == 1


async def test_a_slow_reader_is_not_the_servers_silence() -> None:
    """The progress timeout counts while somebody waits for a byte, not while we do not read."""
    size = 8 * HELD_LIMIT_BYTES

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    settings = ConnectionSettings(progress_timeout_s=0.1)
    async with (
        raw(handle) as server,
        OllamaConnection(server.url, settings) as connection,
        await connection.send(GET) as reply,
    ):
        await until(lambda: reply.held_bytes > HELD_LIMIT_BYTES)
        await asyncio.sleep(4 * settings.progress_timeout_s)
        assert len(await body_of(reply)) == size


@pytest.mark.parametrize("claim", claims(globals()), ids=lambda claim: claim.__name__.removeprefix("test_"))
def test_the_same_holds_on_uvloop(claim: Callable[[], Coroutine[None, None, None]]) -> None:
    before = open_sockets()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(claim())
    assert open_sockets() <= before


def test_every_framing_is_the_same_on_uvloop() -> None:
    async def all_cases() -> None:
        for case in CASES.values():
            await exchange_twice(case, at_once=True)
        for said in BAD.values():
            await test_a_bad_head_is_a_bad_reply_and_ends_the_connection(said)
        for said in BAD_BODIES.values():
            await test_a_bad_body_is_a_bad_reply_after_what_came(said)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(all_cases())
