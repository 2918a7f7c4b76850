"""Requests are read alike however their bytes arrive, and refused wherever two servers could differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.errors import RequestRefused
from ollamalab.gateway.incoming import Incoming, RequestReader
from ollamalab.settings.limits import ServerLimits

LIMITS = ServerLimits(max_body_bytes=1000, max_header_bytes=2000, max_headers=20)

#: One connection's bytes: every way to send a request, in a row.
STREAM = (
    b"POST /api/chat?a=b HTTP/1.1\r\nHost: one\r\nContent-Length: 5\r\nX-A: 1\r\nx-a:2  \r\n\r\nhello"
    b"\r\n\r\nGET / HTTP/1.1\r\nhost: two\r\n\r\n"
    b"POST /c HTTP/1.1\r\nHost: three\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b'3;name="v\tx"\r\nabc\r\n0a\r\n0123456789\r\n0\r\nX-Trailer: t\r\n\r\n'
    b"GET http://user@four:80?q HTTP/1.1\r\nHost: other\r\n\r\n"
    b"POST /up HTTP/1.1\r\nHost: five\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"Content-Length: 22\r\n\r\nGET /smuggled HTTP/1.1"
    b"PUT /up2 HTTP/1.1\r\nHost: five\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    b"OPTIONS * HTTP/1.1\r\nHost: six\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n"
    b"DELETE /last HTTP/1.0\r\nContent-Length: 1\r\n\r\nxGET /never HTTP/1.1\r\n\r\n"
)
REQUESTS = [
    ("POST", "/api/chat?a=b", "one", b"hello"),
    ("GET", "/", "two", b""),
    ("POST", "/c", "three", b"abc0123456789"),
    ("GET", "/?q", "four:80", b""),
    ("POST", "/up", "five", b"GET /smuggled HTTP/1.1"),
    ("PUT", "/up2", "five", b"hi"),
    ("OPTIONS", "*", "six", b""),
    ("DELETE", "/last", None, b"x"),
]


def read(*pieces: bytes, limits: ServerLimits = LIMITS) -> list[Incoming]:
    """Return what a reader makes of these pieces."""
    reader = RequestReader(limits, "127.0.0.1")
    for moment_s, piece in enumerate(pieces):
        reader.feed(piece, float(moment_s))
    return list(reader.ready)


class Gate:
    """Refuses whoever has no key; remembers whom it was asked about."""

    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def __call__(self, headers: Mapping[str, str]) -> None:
        self.asked.append(headers.get("authorization"))
        if "authorization" not in headers:
            raise RequestRefused(401, "no key")


class TestGate:
    """A long body of somebody without a key is not read; a short one is, and keeps its connection."""

    LIMITS = ServerLimits(max_body_bytes=10**6)

    def read(self, *pieces: bytes) -> tuple[list[Incoming], Gate]:
        gate = Gate()
        reader = RequestReader(self.LIMITS, "", gate)
        for piece in pieces:
            reader.feed(piece, 0.0)
        return list(reader.ready), gate

    def test_an_announced_length_is_enough_to_refuse_it(self) -> None:
        (request,), _ = self.read(head("Content-Length: 70000"))
        assert request.problem is not None
        assert (request.problem.status, request.is_last, request.body) == (401, True, b"")

    def test_a_body_without_a_length_is_refused_once_it_is_long(self) -> None:
        pieces = [b"8000\r\n%b\r\n" % (b"x" * 0x8000)] * 2
        nothing, gate = self.read(head("Transfer-Encoding: chunked"), *pieces)
        assert (nothing, gate.asked) == ([], [])
        (request,), _ = self.read(head("Transfer-Encoding: chunked"), *pieces, b"1\r\nx\r\n")
        assert request.problem is not None
        assert request.problem.status == 401

    def test_who_asks_before_sending_is_told_at_once(self) -> None:
        (request,), _ = self.read(head("Expect: 100-continue", "Content-Length: 3"))
        assert request.problem is not None
        assert request.problem.status == 401

    def test_a_short_body_is_read_and_judged_by_the_handler(self) -> None:
        (request,), gate = self.read(head("Content-Length: 3"), b"abc")
        assert (request.problem, request.body, gate.asked) == (None, b"abc", [])

    def test_it_is_asked_once_about_each_request(self) -> None:
        one = head("Authorization: k", "Content-Length: 70000", "Expect: 100-continue") + b"x" * 70000
        requests, gate = self.read(one[:100], one[100:], one)
        assert [len(request.body) for request in requests] == [70000, 70000]
        assert gate.asked == ["k", "k"]


def seen(requests: list[Incoming]) -> list[tuple[str, str, str | None, bytes]]:
    assert [request.problem for request in requests if request.problem] == []
    return [(each.method, each.target, each.headers.get("host"), each.body) for each in requests]


def problem(*pieces: bytes, limits: ServerLimits = LIMITS) -> tuple[int, str]:
    """Return status and words of the one thing wrong with these pieces."""
    (request,) = read(*pieces, limits=limits)
    assert request.problem is not None
    assert request.is_last
    assert request.body == b""
    return request.problem.status, str(request.problem)


def head(*lines: str, start: str = "POST /x HTTP/1.1", host: str = "Host: a") -> bytes:
    return "\r\n".join((start, host, *lines, "", "")).encode()


class TestArriving:
    def test_a_stream_of_requests_is_read_whole(self) -> None:
        """Lengths, chunks, absolute targets, upgrades: each request has its own body, and no other's."""
        requests = read(STREAM)
        assert seen(requests) == REQUESTS
        assert [request.is_last for request in requests] == [False] * 7 + [True]
        assert [request.is_http_1_0 for request in requests] == [False] * 7 + [True]
        assert requests[0].headers["x-a"] == "1, 2"
        assert "x-trailer" not in requests[2].headers

    def test_it_does_not_matter_where_the_bytes_are_split(self) -> None:
        """Two pieces, split at every byte."""
        for at in range(len(STREAM)):
            assert seen(read(STREAM[:at], STREAM[at:])) == REQUESTS, at

    def test_byte_by_byte(self) -> None:
        assert seen(read(*(STREAM[at : at + 1] for at in range(len(STREAM))))) == REQUESTS

    @given(st.lists(st.integers(0, len(STREAM)), max_size=30))
    def test_any_pieces(self, cuts: list[int]) -> None:
        bounds = [0, *sorted(cuts), len(STREAM)]
        pieces = [STREAM[start:end] for start, end in pairwise(bounds)]
        assert seen(read(*pieces)) == REQUESTS

    def test_a_request_has_the_moment_of_its_first_bytes(self) -> None:
        requests = read(b"GET /1 HTTP/1.1\r\n", b"Host: a\r\n\r\nGET /2", b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [request.received_s for request in requests] == [0.0, 1.0]

    def test_nothing_is_read_after_the_last_request(self) -> None:
        close = head("Connection: close", start="GET /x HTTP/1.1")
        assert seen(read(close + b"garbage", b"more")) == [("GET", "/x", "a", b"")]

    def test_a_client_that_waits_is_seen(self) -> None:
        reader = RequestReader(LIMITS, "")
        reader.feed(head("Expect: 100-Continue", "Content-Length: 3"), 0.0)
        assert reader.wants_continue
        reader.feed(b"a", 0.0)
        assert not reader.wants_continue
        reader.feed(b"bc", 0.0)
        assert reader.ready[0].body == b"abc"

    @pytest.mark.parametrize("lines", [("Content-Length: 0",), ()])
    def test_nobody_waits_to_send_no_body(self, lines: tuple[str, ...]) -> None:
        reader = RequestReader(LIMITS, "")
        reader.feed(head("Expect: 100-continue", *lines), 0.0)
        assert not reader.wants_continue
        assert len(reader.ready) == 1

    @pytest.mark.parametrize(
        ("lines", "version", "is_last"),
        [
            ((), "1.1", False),
            (("Connection: close",), "1.1", True),
            (("Connection: keep-alive, close",), "1.1", True),
            ((), "1.0", True),
            (("Connection: keep-alive",), "1.0", False),
            (("Connection: close, Upgrade", "Upgrade: x"), "1.1", True),
            (("Connection: keep-alive, Upgrade", "Upgrade: x"), "1.0", False),
        ],
    )
    def test_who_closes(self, lines: tuple[str, ...], version: str, is_last: bool) -> None:
        (request,) = read(head(*lines, start=f"GET / HTTP/{version}"))
        assert request.is_last is is_last

    def test_bytes_of_other_alphabets_pass_through_headers(self) -> None:
        (request,) = read(head("X-Name: Grüße"))
        assert request.headers["x-name"].encode("latin-1").decode() == "Grüße"


class TestRefusing:
    """One row for each way to smuggle a request past a server, or to confuse it."""

    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            (("Content-Length: 2", "Content-Length: 2"), 400),
            (("Content-Length: 2", "Content-Length: 3"), 400),
            (("Content-Length: 2, 2",), 400),
            (("Content-Length: +2",), 400),
            (("Content-Length: -2",), 400),
            (("Content-Length: 0x2",), 400),
            (("Content-Length: 2 2",), 400),
            (("Content-Length:",), 400),
            (("Content-Length: 99999999999999999999999",), 400),
            (("Content-Length: 2", "Transfer-Encoding: chunked"), 400),
            (("Transfer-Encoding: chunked", "Content-Length: 2"), 400),
            (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400),
            (("Transfer-Encoding: chunked, gzip",), 400),
            (("Transfer-Encoding: identity", "Transfer-Encoding: chunked"), 501),
            (("Transfer-Encoding: gzip, chunked",), 501),
            (("Transfer-Encoding: gzip",), 501),
            (("Transfer-Encoding: xchunked",), 501),
            (("Transfer-Encoding: \x0bchunked",), 400),
            (("Transfer-Encoding : chunked",), 400),
            (("X-A: 1", " folded"), 400),
            (("X-A: 1", "\tfolded"), 400),
            ((" X-A: 1",), 400),
            (("X A: 1",), 400),
            (("X-A : 1",), 400),
            (("X-A: a\0b",), 400),
            (("X-A: a\x01b",), 400),
            (("X\0A: b",), 400),
            (("X-A: a\rX-B: b",), 400),
            (("X-A: a\nX-B: b",), 400),
            ((": a",), 400),
            (("X-A",), 400),
            (("Host: b",), 400),
            (("Expect: a miracle", "Content-Length: 2"), 417),
        ],
    )
    def test_headers(self, lines: tuple[str, ...], status: int) -> None:
        assert problem(head(*lines) + b"hi")[0] == status

    @pytest.mark.parametrize(
        ("start", "status"),
        [
            ("GET /", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / HTTP/1.2", 505),
            ("GET / HTTP/2.0", 505),
            ("GET / HTTP/1.1 ", 400),
            ("GET / HTTP/1", 400),
            ("GET / http/1.1", 400),
            ("GET /a b HTTP/1.1", 400),
            ("GET /\x7f HTTP/1.1", 400),
            ("GET /ä HTTP/1.1", 400),
            ("GET a HTTP/1.1", 400),
            ("GET ftp:a HTTP/1.1", 400),
            ("GET  HTTP/1.1", 400),
            ("get / HTTP/1.1", 400),
            ("FROB / HTTP/1.1", 400),
            (" GET / HTTP/1.1", 400),
            ("CONNECT a:1 HTTP/1.1", 405),
            ("\x16\x03\x01\x02", 400),
        ],
    )
    def test_request_lines(self, start: str, status: int) -> None:
        assert problem(head(start=start))[0] == status

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.1\nHost: a\n\n",
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\rHost: a\r\r",
        ],
    )
    def test_line_ends_without_return(self, data: bytes) -> None:
        assert problem(data)[0] == 400

    @pytest.mark.parametrize(
        "body",
        [
            b"zz\r\n",
            b"0x3\r\nabc\r\n",
            b"+3\r\nabc\r\n",
            b" 3\r\nabc\r\n",
            b"3 \r\nabc\r\n",
            b"3\nabc\n0\n\n",
            b"3\r\nabcd\r\n",
            b"3\r\nab\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"fffffffffffffffff1\r\nabc\r\n",
            b"-1\r\n",
            b"3;a=\nb\r\nabc\r\n",
            b"0\r\nX : 1\r\n\r\n",
        ],
    )
    def test_chunks(self, body: bytes) -> None:
        assert problem(head("Transfer-Encoding: chunked") + body)[0] == 400

    def test_no_host(self) -> None:
        """As in Go; HTTP/1.0 may do without."""
        assert problem(b"GET / HTTP/1.1\r\n\r\n") == (400, "missing required Host header")

    def test_an_empty_transfer_coding(self) -> None:
        """Refused by llhttp since 9.3, before that by us."""
        assert problem(head("Transfer-Encoding:"))[0] in (400, 501)

    def test_http_2(self) -> None:
        """A client that speaks it without asking is told the version, not that it is malformed."""
        assert problem(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")[0] == 505

    def test_chunks_in_http_1_0(self) -> None:
        """A proxy that speaks 1.0 would not know where such a body ends."""
        assert problem(head("Transfer-Encoding: chunked", start="POST / HTTP/1.0"))[0] == 400

    def test_requests_before_the_bad_one_stand(self) -> None:
        good, bad = read(head("Content-Length: 1") + b"x" + head("X A: 1"))
        assert good.problem is None
        assert bad.problem is not None

    def test_the_words_name_what_is_wrong(self) -> None:
        assert problem(head("Content-Length: 2", "Content-Length: 2"))[1] == (
            "malformed HTTP request: Duplicate Content-Length"
        )
        assert problem(head("Transfer-Encoding: gzip"))[1].startswith(
            "Transfer-Encoding 'gzip' is not read here"
        )


class TestLimits:
    def test_a_body_that_is_announced_too_long(self) -> None:
        """Refused at its head, before it is there."""
        assert problem(head("Content-Length: 1001")) == (413, "the request's body has more than 1000 bytes")

    def test_chunks_that_grow_too_long(self) -> None:
        pieces = [b"64\r\n" + b"x" * 100 + b"\r\n"] * 10
        assert not read(head("Transfer-Encoding: chunked"), *pieces)
        assert problem(head("Transfer-Encoding: chunked"), *pieces, b"1\r\nx")[0] == 413

    def test_a_body_of_the_greatest_length(self) -> None:
        (request,) = read(head("Content-Length: 1000"), b"x" * 400, b"x" * 600)
        assert len(request.body) == 1000

    def test_a_body_in_crumbs_takes_no_more_room_than_its_bytes(self) -> None:
        reader = RequestReader(LIMITS, "")
        reader.feed(head("Content-Length: 1000"), 0.0)
        for _ in range(499):
            reader.feed(b"xx", 0.0)
        assert isinstance(reader._body, bytearray)

    def test_too_many_headers(self) -> None:
        lines = [f"X-{number}: y" for number in range(10_000)]
        assert problem(head(*lines)) == (431, "the request has more than 20 headers")
        assert read(head(*lines[:19]))[0].problem is None

    def test_too_many_bytes_of_headers(self) -> None:
        assert problem(head("X-A: " + "y" * 2000)) == (431, "the request's headers have more than 2000 bytes")

    def test_too_long_a_target(self) -> None:
        assert problem(head(start=f"GET /{'a' * 2000} HTTP/1.1"))[0] == 414

    @pytest.mark.parametrize(
        "start",
        [
            b"GET / HTTP/1.1\r\nX-A: ",
            b"GET / HTTP/1.1\r\nX",
            head("Transfer-Encoding: chunked") + b"3;",
            head("Transfer-Encoding: chunked") + b"0\r\nX-Trailer: ",
        ],
    )
    def test_a_line_that_does_not_end(self, start: bytes) -> None:
        """A header, a chunk's extension, a trailer: not held beyond the limit."""
        reader = RequestReader(LIMITS, "")
        reader.feed(start, 0.0)
        fed_bytes = 0
        while not reader.ready:
            reader.feed(b"y" * 50, 0.0)
            fed_bytes += 50
        assert fed_bytes <= 2050
        assert reader.ready[0].problem is not None
        assert reader.ready[0].problem.status == 431

    def test_a_long_body_behind_a_head_in_pieces_is_no_long_head(self) -> None:
        limits = ServerLimits(max_header_bytes=100)
        assert seen(
            read(
                b"POST / HTTP/1.1\r\nHo", b"st: a\r\nContent-Length: 500\r\n\r\n" + b"x" * 500, limits=limits
            )
        )

    def test_too_slow(self) -> None:
        reader = RequestReader(LIMITS, "")
        reader.feed(b"GET / HTTP/1.1\r\nHo", 3.0)
        reader.refuse_as_too_slow()
        assert reader.ready[0].problem is not None
        assert reader.ready[0].problem.status == 408
        assert str(reader.ready[0].problem) == "the request's headers did not come in time"
        assert reader.ready[0].received_s == 3.0
