"""An engine's answers come off the wire whole, wherever they were cut; what is no answer is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.embedded.engine_http import Unframed, send
from ollamalab.errors import BadReply

HEAD = b"HTTP/1.1 200 OK\r\n"


class Teller:
    """A server that says what it is told, whatever it is asked, and hangs up."""

    def __init__(self) -> None:
        self.url = ""
        self.says: list[bytes] = []
        self.asked = b""
        self.sent_bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked = await reader.readuntil(b"}")
        for piece in self.says:
            writer.write(piece)
            await writer.drain()
            self.sent_bytes += len(piece)
        writer.close()


@pytest.fixture
async def teller() -> AsyncIterator[Teller]:
    told = Teller()
    server = await asyncio.start_server(told.serve, "127.0.0.1", 0)
    told.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield told
    server.close()
    await server.wait_closed()


def in_chunks(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(borders)]


parts = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
places = st.lists(st.integers(min_value=0, max_value=400))


@given(parts, places)
def test_chunks_are_put_together_wherever_the_network_cuts_them(
    parts: list[bytes], places: list[int]
) -> None:
    body = Unframed(None)
    pieces = cut(in_chunks(parts), places)
    assert b"".join(body.feed(piece) for piece in pieces) == b"".join(parts)
    assert body.is_whole


@given(parts, places)
def test_a_body_without_its_last_byte_is_not_whole(parts: list[bytes], places: list[int]) -> None:
    data = in_chunks(parts).removesuffix(b"0\r\n\r\n")
    body = Unframed(None)
    for piece in cut(data, places):
        body.feed(piece)
    assert not body.is_whole


def test_a_body_of_known_length_ends_there() -> None:
    body = Unframed(5)
    assert [(body.feed(piece), body.is_whole) for piece in (b"abc", b"defgh")] == [
        (b"abc", False),
        (b"de", True),
    ]
    assert Unframed(0).is_whole


@pytest.mark.parametrize("line", [b"xyz", b"-5", b"data: {}"])
def test_what_is_no_chunk_is_refused(line: bytes) -> None:
    with pytest.raises(BadReply, match="no chunk begins with"):
        Unframed(None).feed(line + b"\r\nabc")


async def test_an_answer_has_status_and_body(teller: Teller) -> None:
    teller.says = [b"HTTP/1.1 400 Bad ", b"Request\r\nContent-LENGTH:  4\r", b"\n\r\nno", b"pe"]
    reply = await send(teller.url, "POST", "/x", b"{}")
    assert (reply.status, await reply.read()) == (400, b"nope")
    reply.close()
    head, body = teller.asked.split(b"\r\n\r\n")
    assert head.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"Content-Length: 2" in head.split(b"\r\n")
    assert body == b"{}"


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1", b"SSH-2.0\r\n\r\n", HEAD + b"Content-Length: many\r\n\r\n", HEAD]
)
async def test_what_is_not_http_is_refused(teller: Teller, head: bytes) -> None:
    teller.says = [head]
    with pytest.raises(BadReply):
        await send(teller.url, "POST", "/", b"{}")


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
async def test_an_answer_that_breaks_off_is_an_error(teller: Teller, framing: bytes) -> None:
    teller.says = [HEAD + framing + b"\r\n\r\n", b"4\r\nabcd"]
    reply = await send(teller.url, "POST", "/", b"{}")
    with pytest.raises(BadReply, match="broke off"):
        await reply.read()
    reply.close()


async def test_nobody_there_is_an_error_at_once(unused_tcp_port_factory: Callable[[], int]) -> None:
    with pytest.raises(ConnectionRefusedError):
        await send(f"http://127.0.0.1:{unused_tcp_port_factory()}", "GET", "/health")


async def test_what_nobody_reads_is_left_to_the_sender(teller: Teller) -> None:
    """Nothing piles up for a slow client: the engine has to wait; once it is read, all of it comes."""
    piece = b"x" * (4 * 1024 * 1024)
    teller.says = [HEAD + b"Content-Length: %d\r\n\r\n" % (16 * len(piece)), *[piece] * 16]
    reply = await send(teller.url, "POST", "/", b"{}")
    seen = -1
    while teller.sent_bytes != seen:
        seen = teller.sent_bytes
        for _ in range(1000):
            await asyncio.sleep(0)
    assert seen < 8 * len(piece)
    assert len(await reply.read()) == 16 * len(piece)
    reply.close()
