"""HTTP out, against real sockets that answer, refuse, hang, cut and drip; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httptools
import pytest
from raw_server import OK, Peer, always, body_of, claims, open_sockets, raw, until

from ollamalab.connection import ConnectionSettings, HttpReply, OllamaConnection, new_event_loop
from ollamalab.connection.failures import error_type
from ollamalab.connection.heads import RequestHeads
from ollamalab.errors import BadReply, SettingsError, UpstreamTimeout, UpstreamUnavailable
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.scripted import Fault, Script, ScriptedServer

BODY = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}).encode()
CHAT = Request(method="POST", path="/api/chat", body=BODY)
IMPATIENT = ConnectionSettings(progress_timeout_s=0.5)


def script(fault: Fault | None = None) -> Script:
    return Script(first_s=0.0, gap_s=0.0, tokens=4, faults={0: fault} if fault else {})


@asynccontextmanager
async def linked(
    to: Script, settings: ConnectionSettings | None = None
) -> AsyncIterator[tuple[ScriptedServer, OllamaConnection]]:
    """A scripted server and a connection to it."""
    async with ScriptedServer(to) as server, OllamaConnection(server.url, settings) as connection:
        yield server, connection


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
        assert connection.open_connections == 1
    assert replies[0].connected_s is not None
    assert [reply.connected_s for reply in replies[1:]] == [None, None]
    assert connection.open_connections == 0


async def test_the_moments_of_an_exchange_are_in_order() -> None:
    async with (
        raw(always(OK)) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(CHAT) as reply,
    ):
        head_s = reply.received_s
        await body_of(reply)
    assert reply.connected_s is not None
    assert reply.sent_end_s is not None
    assert reply.connected_s < reply.sent_end_s < head_s <= reply.received_s


async def test_each_read_has_the_moment_when_the_socket_gave_it() -> None:
    """However late its reader comes."""
    written = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.write(OK[:-1])
        await written.wait()
        await peer.write(OK[-1:])

    async with (
        raw(handle) as server,
        OllamaConnection(server.url) as connection,
        await connection.send(CHAT) as reply,
    ):
        head_s = reply.received_s
        written.set()
        await until(lambda: reply.is_ended)
        moments = [reply.received_s async for _ in reply.chunks()]
    assert head_s == moments[0] < moments[1]


# What leaves.


async def sent_as(request: Request, *, path: str = "", headers: dict[str, str] | None = None) -> list[str]:
    """Return the lines of the head that a server gets, but for its Host."""
    async with (
        raw(always(OK)) as server,
        OllamaConnection(server.url + path, headers=headers) as connection,
        await connection.send(request),
    ):
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert body == request.body
    first, host, *fields = head.decode("latin-1").split("\r\n")
    assert host == f"host: {server.url.removeprefix('http://')}"
    return [first, *fields]


async def test_what_leaves_is_the_body_verbatim_with_headers_of_this_hop() -> None:
    """Ollama answers 403 to a foreign Host, and a client's framing is not ours."""
    foreign = {
        "Host": "evil.example",
        "Content-Length": "7",
        "Transfer-Encoding": "chunked",
        "TE": "trailers",
    }
    foreign |= {"Connection": "close, X-Of-That-Hop", "X-Of-That-Hop": "1", "Expect": "100-continue"}
    headers = {**foreign, "authorization": "Bearer theirs", "X-Kept": "yés"}
    request = Request(method="POST", path="/api/chat?x=a%20b", headers=headers, body=b'{"a": 1}')
    assert await sent_as(request, headers={"Authorization": "Bearer ours"}) == [
        "POST /api/chat?x=a%20b HTTP/1.1",
        "authorization: Bearer ours",
        "x-kept: yés",
        "content-type: application/json",
        "content-length: 8",
    ]


async def test_a_content_type_of_the_request_stays() -> None:
    request = Request(method="POST", path="/", headers={"Content-Type": "text/plain"}, body=b"a")
    assert await sent_as(request) == ["POST / HTTP/1.1", "content-type: text/plain", "content-length: 1"]


async def test_a_path_in_the_address_is_put_before_each_requests_own() -> None:
    request = Request(method="GET", path="/api/tags")
    assert await sent_as(request, path="/ollama/") == ["GET /ollama/api/tags HTTP/1.1"]


async def test_a_post_without_a_body_says_so() -> None:
    assert await sent_as(Request(method="POST", path="/")) == ["POST / HTTP/1.1", "content-length: 0"]


@pytest.mark.parametrize(
    "request_",
    [
        Request(method="GET", path="/\r\nX-Smuggled: 1"),
        Request(method="GET", path="/a b"),
        Request(method="GET", path="/ä"),
        Request(method="GET", path="no-slash"),
        Request(method="GET X", path="/"),
        Request(method="GET", path="/", headers={"a": "b\r\nX-Smuggled: 1"}),
        Request(method="GET", path="/", headers={"a": "b\nc"}),
        Request(method="GET", path="/", headers={"a": "b\0"}),
        Request(method="GET", path="/", headers={"a": "語"}),
        Request(method="GET", path="/", headers={"a b": "c"}),
        Request(method="GET", path="/", headers={"content-length ": "c"}),
    ],
)
async def test_what_http_cannot_carry_is_refused_and_nothing_sent(request_: Request) -> None:
    async with raw(always(OK)) as server, OllamaConnection(server.url) as connection:
        with pytest.raises(SettingsError):
            await connection.send(request_)
        assert connection.open_connections == 0
    assert server.peers == []


async def test_a_bad_header_of_our_own_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(SettingsError, match="line break"):
        OllamaConnection("gpu2", headers={"authorization": "Bearer key\n"})


def test_the_host_leaves_out_the_schemes_own_port() -> None:
    get = Request(method="GET", path="/")
    assert RequestHeads("https://gpu2:443/x", {}).head_of(get) == b"GET /x/ HTTP/1.1\r\nhost: gpu2\r\n\r\n"
    assert RequestHeads("http://[::1]:80", {}).head_of(get) == b"GET / HTTP/1.1\r\nhost: [::1]\r\n\r\n"
    assert b"host: [::1]:443\r\n" in RequestHeads("http://[::1]:443", {}).head_of(get)


async def test_a_large_body_is_sent_whole_and_its_end_noted() -> None:
    body = bytes(range(256)) * (64 * 1024)  # 16 MiB: more than the sockets hold
    async with raw(always(OK)) as server, OllamaConnection(server.url) as connection:
        for _ in range(2):
            async with await connection.send(Request(method="POST", path="/", body=body)) as reply:
                assert await body_of(reply) == b"ok"
                assert reply.sent_end_s is not None
                assert reply.sent_end_s < reply.received_s
        assert [request.endswith(body) for request in server.requests] == [True, True]
    assert len(server.peers) == 1


async def test_an_answer_before_the_request_is_out_ends_the_connection() -> None:
    """The rest of the body would still have to be sent before the next request."""

    async def handle(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await peer.reader.read()

    body = bytes(64 * 1024 * 1024)
    async with raw(handle) as server, OllamaConnection(server.url) as connection:
        async with await connection.send(Request(method="POST", path="/", body=body)) as reply:
            assert reply.status == 413
            assert reply.sent_end_s is None
        await until(lambda: connection.open_connections == 0)


# What goes wrong.


async def test_nothing_listening_is_unavailable_with_the_next_step() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with OllamaConnection(url) as connection:
            with pytest.raises(UpstreamUnavailable, match=r"ollama serve") as caught:
                await connection.send(CHAT)
    assert caught.value.url == url
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_name_that_nobody_knows_is_unavailable() -> None:
    for url in ("http://no-such-host.invalid", f"http://{'a' * 70}.invalid"):
        async with OllamaConnection(url) as connection:
            with pytest.raises(UpstreamUnavailable, match=f"cannot connect to {url}"):
                await connection.send(CHAT)


async def test_a_name_is_looked_up_and_all_its_addresses_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the first address refuses, as ::1 does when Ollama listens on 127.0.0.1 only."""
    asked: list[str] = []

    async def addresses(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]

    async with raw(always(OK)) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
        async with (
            OllamaConnection(server.url.replace("127.0.0.1", "two.example")) as connection,
            await connection.send(CHAT) as reply,
        ):
            assert await body_of(reply) == b"ok"
    assert asked == ["two.example"]
    assert b"host: two.example:" in server.requests[0]


async def test_a_full_pool_is_unavailable_rather_than_an_endless_wait() -> None:
    limits = ConnectionSettings(max_connections=1, connect_timeout_s=0.05)
    async with linked(script(Fault.STUCK), limits) as (_, connection), await connection.send(CHAT):
        with pytest.raises(UpstreamUnavailable, match=r"none of 1 connections .* within 0\.05 s"):
            await connection.send(CHAT)


async def test_a_host_that_does_not_answer_is_unavailable() -> None:
    """Its line of connections is full, so that the kernel drops our SYN."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = []
        while len(fillers) < 4:
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        settings = ConnectionSettings(connect_timeout_s=0.1)
        async with OllamaConnection(f"http://127.0.0.1:{address[1]}", settings) as connection:
            with pytest.raises(UpstreamUnavailable, match=r"no connection to .* within 0\.1 s"):
                await connection.send(CHAT)
        for filler in fillers:
            filler.close()


async def test_no_status_in_time_is_a_timeout() -> None:
    async with linked(script(Fault.HANG), IMPATIENT) as (server, connection):
        with pytest.raises(UpstreamTimeout) as caught:
            await connection.send(CHAT)
        await server.ended(1)  # it sees us hang up
    assert caught.value.after_s == 0.5


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


async def test_a_long_answer_with_progress_is_no_timeout() -> None:
    slow = Script(first_s=0.0, gap_s=0.02, tokens=40)
    async with linked(slow, IMPATIENT) as (server, connection), await connection.send(CHAT) as reply:
        assert (await body_of(reply)).count(b"\n") == 41
    assert server.log[0].written_s[-1] - server.log[0].written_s[0] > 0.5


async def test_each_request_on_a_connection_has_the_whole_timeout() -> None:
    async def handle(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.06)
            await peer.write(OK)

    async with raw(handle) as server, OllamaConnection(server.url, IMPATIENT) as connection:
        for _ in range(12):
            async with await connection.send(CHAT) as reply:
                assert await body_of(reply) == b"ok"
    assert len(server.peers) == 1


async def test_a_cut_body_is_a_bad_reply() -> None:
    async with linked(script(Fault.CUT)) as (_, connection), await connection.send(CHAT) as reply:
        with pytest.raises(BadReply):
            await body_of(reply)


async def test_no_http_answer_is_a_bad_reply() -> None:
    for fault in (Fault.RESET, Fault.NOT_HTTP):
        async with linked(script(fault)) as (server, connection):
            with pytest.raises(BadReply, match=server.url):
                await connection.send(CHAT)


async def test_a_connection_must_be_opened_and_its_limits_must_make_sense() -> None:
    with pytest.raises(SettingsError, match="async with"):
        await OllamaConnection("127.0.0.1").send(CHAT)
    bad: list[dict[str, object]] = [
        {"max_connections": 0},
        {"connect_timeout_s": 0.0},
        {"idle_timeout_s": -1},
    ]
    bad += [{"progress_timeout_s": float("nan")}, {"ca_file": "ca.pem", "verify": False}]
    for values in bad:
        with pytest.raises(SettingsError, match=next(iter(values))):
            ConnectionSettings(**values)  # type: ignore[arg-type]


def subclasses(of: type[BaseException]) -> Iterator[type[BaseException]]:
    yield of
    for kind in of.__subclasses__():
        yield from subclasses(kind)


def test_every_foreign_error_has_one_of_ours() -> None:
    of_the_parser = [
        found
        for found in vars(httptools).values()
        if isinstance(found, type) and issubclass(found, BaseException)
    ]
    assert httptools.HttpParserUpgrade in of_the_parser
    assert [kind for kind in of_the_parser if error_type(kind, is_connected=True) is not BadReply] == []
    of_the_system = list(subclasses(OSError))
    assert {ssl.SSLCertVerificationError, socket.gaierror, ConnectionResetError, TimeoutError} <= set(
        of_the_system
    )
    assert {error_type(kind, is_connected=True) for kind in of_the_system} == {BadReply}
    assert {error_type(kind, is_connected=False) for kind in of_the_system} == {UpstreamUnavailable}
    assert {error_type(kind, is_connected=False) for kind in subclasses(UnicodeError)} == {
        UpstreamUnavailable
    }
    assert error_type(ValueError, is_connected=True) is error_type(ValueError, is_connected=False) is None


# TLS.


def tls_of(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


async def test_a_private_authority_is_trusted_when_told(certificate: Path) -> None:
    for settings in (ConnectionSettings(ca_file=certificate), ConnectionSettings(verify=False)):
        async with raw(always(OK), tls_of(certificate)) as server:
            async with OllamaConnection(server.url, settings) as connection:
                for _ in range(2):
                    async with await connection.send(CHAT) as reply:
                        assert await body_of(reply) == b"ok"
            await server.ended(1)
        assert len(server.peers) == 1


async def test_a_stranger_is_unavailable_with_the_next_step(certificate: Path) -> None:
    async with raw(always(OK), tls_of(certificate)) as server:
        async with OllamaConnection(server.url) as connection:
            with pytest.raises(UpstreamUnavailable, match=r"self-signed.*ca_file"):
                await connection.send(CHAT)
        by_address = server.url.replace("localhost", "127.0.0.1")  # the certificate names the name
        async with OllamaConnection(by_address, ConnectionSettings(ca_file=certificate)) as connection:
            with pytest.raises(UpstreamUnavailable, match="IP address mismatch"):
                await connection.send(CHAT)
    assert server.requests == []


async def test_a_server_without_tls_is_unavailable(certificate: Path) -> None:
    async def handle(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw(handle) as server:
        url = server.url.replace("http:", "https:")
        async with OllamaConnection(url, ConnectionSettings(ca_file=certificate)) as connection:
            with pytest.raises(UpstreamUnavailable, match="TLS"):
                await connection.send(CHAT)


async def test_authorities_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(SettingsError, match=name):
            async with OllamaConnection("https://gpu2", ConnectionSettings(ca_file=tmp_path / name)):
                pass


# The other loop.


@pytest.mark.parametrize("claim", claims(globals()), ids=lambda claim: claim.__name__.removeprefix("test_"))
def test_the_same_holds_on_uvloop(claim: Callable[[], Coroutine[None, None, None]]) -> None:
    before = open_sockets()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(claim())
    assert open_sockets() <= before
