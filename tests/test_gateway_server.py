"""The HTTP server on real sockets: the cases that break relays, on uvloop and on asyncio's own loop.

Patience is tested by telling a connection what time it is, not by waiting.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httptools
import pytest
import uvloop

from ollamalab.errors import SettingsError
from ollamalab.gateway.client_connection import SLOWEST_BYTES_PER_S, ClientConnection
from ollamalab.gateway.server import Handler, HttpServer, Incoming, Outgoing, ServerLimits

Body = Callable[[], Coroutine[Any, Any, None]]
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs a test's body on each loop."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_body(body: Body) -> None:
        async def checked() -> None:
            await body()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left: {left}"

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(checked())

    return run_body


@dataclass
class Answer:
    """One answer as a client reads it; ``is_whole`` is False if the connection ended inside it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_whole: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_whole = True


class Client:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def send_end(self) -> None:
        self.writer.write_eof()

    async def head(self) -> bytes:
        return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, *, is_head: bool = False) -> Answer:
        """Read one answer, byte-exact: what follows it stays unread."""
        answer = Answer()
        parser = httptools.HttpResponseParser(answer)
        head = await self.head()
        if is_head:  # no body follows, whatever the head says
            head = head.replace(b"content-length", b"x-content-length")
        parser.feed_data(head)
        answer.status = parser.get_status_code()
        is_until_close = not is_head and not ({"content-length", "transfer-encoding"} & answer.headers.keys())
        if is_head or answer.status in (204, 304):
            answer.is_whole = True
            return answer
        while not answer.is_whole:
            piece = await self.reader.read(1)
            if not piece:
                answer.is_whole = is_until_close
                return answer
            parser.feed_data(piece)
        return answer

    async def is_closed(self) -> bool:
        """Wait for the server's end of the connection; whether nothing came before it."""
        return await self.reader.read() == b""

    def close(self) -> None:
        self.writer.close()


@dataclass
class Running:
    """A server under test."""

    server: HttpServer
    port: int
    clients: list[Client] = field(default_factory=list)

    async def client(self, **socket_options: int) -> Client:
        sock = socket.socket()
        if "receive_bytes" in socket_options:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, socket_options["receive_bytes"])
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        client = Client(*await asyncio.open_connection(sock=sock, limit=2**16))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Answer:
        """Send on a new connection, read one answer, hang up."""
        client = await self.client()
        client.send(data)
        answer = await client.answer()
        client.close()
        return answer

    def check_after(self, seconds: float) -> None:
        """Let every connection believe that so much time has gone by."""
        for connection in list(self.server.connections):
            connection.check(time.perf_counter() + seconds)


async def until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - facts of many kinds, few of which could set an event
        await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(handler: Handler, **limits: Any) -> AsyncIterator[Running]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server = HttpServer(handler, ServerLimits(**limits))
    await server.start(sock)
    running = Running(server, sock.getsockname()[1])
    try:
        yield running
    finally:
        await server.stop(0)
        for client in running.clients:
            client.close()
            await asyncio.gather(client.writer.wait_closed(), return_exceptions=True)


def reply(outgoing: Outgoing, body: bytes, status: int = 200) -> None:
    outgoing.start(status, {"content-type": "text/plain"}, length=len(body))
    outgoing.write(body)
    outgoing.end()


async def echo(incoming: Incoming, outgoing: Outgoing) -> None:
    """Answer with what came, or with what was wrong with it."""
    if incoming.problem is not None:
        reply(outgoing, str(incoming.problem).encode(), incoming.problem.status)
    else:
        seen = [incoming.method, incoming.target, incoming.headers, incoming.body.decode("latin-1")]
        reply(outgoing, json.dumps(seen).encode())


class Gate:
    """A handler that answers "/" once it is opened, "/never" never, and everything else at once."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.arrived: list[str] = []
        self.cancelled = 0

    async def __call__(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self.arrived.append(incoming.target)
        try:
            if incoming.target == "/" and incoming.problem is None:
                await self.opened.wait()
            elif incoming.target == "/never":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await echo(incoming, outgoing)


def get(target: str, *lines: str) -> bytes:
    return "\r\n".join((f"GET {target} HTTP/1.1", "Host: a", *lines, "", "")).encode()


def post(target: str, body: bytes, *lines: str) -> bytes:
    return get(target, f"Content-Length: {len(body)}", *lines).replace(b"GET", b"POST", 1) + body


class TestAnswers:
    def test_a_whole_answer(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                answer = await running.ask(post("/x?y", b"hello", "X-A: 1"))
                assert answer.status == 200
                assert json.loads(answer.body) == [
                    "POST",
                    "/x?y",
                    {"host": "a", "x-a": "1"},
                    "hello",
                ]
                assert answer.headers["date"].endswith(" GMT")
                assert answer.headers["content-type"] == "text/plain"
                assert "server" not in answer.headers
                assert "connection" not in answer.headers

        run(body)

    def test_a_request_split_at_every_byte(self, run: Callable[[Body], None]) -> None:
        data = post("/x", b"hello", "X-A: 1")

        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                for byte in data:
                    client.send(bytes([byte]))
                    await client.writer.drain()
                    await asyncio.sleep(0)
                assert json.loads((await client.answer()).body)[3] == "hello"

        run(body)

    def test_a_stream_leaves_line_by_line(self, run: Callable[[Body], None]) -> None:
        """Each line is there before the next is written; in chunks, the end marked."""

        async def body() -> None:
            lines: asyncio.Queue[bytes] = asyncio.Queue()

            async def stream(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                while line := await lines.get():
                    outgoing.write(line)
                    if (lag := outgoing.lag()) is not None:
                        await lag
                outgoing.end()

            async with serving(stream) as running:
                client = await running.client()
                client.send(GET)
                lines.put_nowait(b"one\n")
                assert b"transfer-encoding: chunked" in await client.head()
                assert await client.reader.readuntil(b"one\n\r\n") == b"4\r\none\n\r\n"
                lines.put_nowait(b"second line\n")
                assert await client.reader.readuntil(b"line\n\r\n") == b"c\r\nsecond line\n\r\n"
                lines.put_nowait(b"")
                assert await client.reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"
                client.send(GET)
                lines.put_nowait(b"again\n")
                lines.put_nowait(b"")
                assert (await client.answer()).body == b"again\n"

        run(body)

    @pytest.mark.parametrize("length", [5, None])
    def test_head_gets_the_headers_alone(self, run: Callable[[Body], None], length: int | None) -> None:
        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=length)
                outgoing.write(b"hello")
                outgoing.end()

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET.replace(b"GET", b"HEAD") + GET)
                head = await client.head()
                assert (b"content-length: 5" in head) is (length == 5)
                assert b"transfer-encoding" not in head
                assert (await client.answer()).body == b"hello"

        run(body)

    @pytest.mark.parametrize("status", [204, 304])
    def test_statuses_without_a_body(self, run: Callable[[Body], None], status: int) -> None:
        async def body() -> None:
            async def handler(incoming: Incoming, outgoing: Outgoing) -> None:
                if incoming.target == "/":
                    outgoing.start(status, {}, length=0)
                    outgoing.end()
                else:
                    await echo(incoming, outgoing)

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET + get("/next"))
                head = await client.head()
                assert b"content-length" not in head
                assert b"transfer-encoding" not in head
                assert (await client.answer()).status == 200

        run(body)

    def test_http_1_0(self, run: Callable[[Body], None]) -> None:
        """Its connection closes after the answer, unless both sides agree to keep it."""

        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert (await client.answer()).headers["connection"] == "keep-alive"
                client.send(b"GET / HTTP/1.0\r\n\r\n")
                assert (await client.answer()).headers["connection"] == "close"
                assert await client.is_closed()

        run(body)

    def test_a_stream_to_http_1_0_ends_with_the_connection(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async def stream(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                outgoing.write(b"one\n")
                outgoing.write(b"two\n")
                outgoing.end()

            async with serving(stream) as running:
                client = await running.client()
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                answer = await client.answer()
                assert answer.body == b"one\ntwo\n"
                assert answer.headers["connection"] == "close"
                assert "transfer-encoding" not in answer.headers

        run(body)

    def test_a_big_answer_arrives_whole(self, run: Callable[[Body], None]) -> None:
        big = bytes(range(256)) * 40_000

        async def body() -> None:
            async def handler(incoming: Incoming, outgoing: Outgoing) -> None:
                reply(outgoing, big)

            async with serving(handler) as running:
                client = await running.client()
                client.send(CLOSE)
                await client.head()
                assert await client.reader.read(-1) == big

        run(body)

    def test_nagle_is_off(self, run: Callable[[Body], None]) -> None:
        """A line does not wait for the client to acknowledge the one before."""

        async def body() -> None:
            async with serving(echo) as running:
                await running.ask(GET)
                await running.client()
                await until(lambda: running.server.open_connections == 1)
                (connection,) = running.server.connections
                sock = connection.transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

        run(body)


class TestPipelining:
    def test_answers_come_in_order(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET + b"".join(get(f"/{number}") for number in range(50)))
                await until(lambda: gate.arrived == ["/"])
                gate.opened.set()
                targets = [json.loads((await client.answer()).body)[1] for _ in range(51)]
                assert targets == ["/", *(f"/{number}" for number in range(50))]
                client.send(get("/afterwards"))
                assert (await client.answer()).status == 200

        run(body)

    def test_one_waiting_request_stops_the_reading(self, run: Callable[[Body], None]) -> None:
        """A client cannot fill our memory with requests whose turn has not come."""

        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET)
                await until(lambda: gate.arrived == ["/"])
                (connection,) = running.server.connections
                assert connection.transport.is_reading()
                client.send(get("/second"))
                await until(lambda: not connection.transport.is_reading())
                gate.opened.set()
                assert (await client.answer()).status == 200
                assert (await client.answer()).status == 200
                await until(connection.transport.is_reading)

        run(body)

    def test_many_in_one_read_leave_others_their_turn(self, run: Callable[[Body], None]) -> None:
        """The answers to one client's 9,000 requests held up everybody else for seconds."""

        async def body() -> None:
            events: list[str] = []

            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                events.append("answer")
                asyncio.get_running_loop().call_soon(events.append, "turn of others")
                reply(outgoing, b"hello")

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET * 50)
                for _ in range(50):
                    assert (await client.answer()).body == b"hello"
            assert events == ["answer", "turn of others"] * 50

        run(body)

    def test_answers_that_nobody_takes_do_not_pile_up(self, run: Callable[[Body], None]) -> None:
        """A client that asked and did not read could fill our memory with whole answers."""

        async def body() -> None:
            answered = 0

            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                nonlocal answered
                reply(outgoing, b"x" * 65536)
                answered += 1

            async with serving(handler) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET * 500)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                (connection,) = running.server.connections
                for _ in range(20):
                    client.send(GET)
                    await asyncio.sleep(0)
                assert connection.transport.get_write_buffer_size() < 300_000
                while answered < 520:
                    assert await client.reader.read(65536)

        run(body)

    def test_a_bad_request_waits_for_its_turn_to_be_refused(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET + b"nonsense\r\n\r\n")
                await until(lambda: gate.arrived == ["/"])
                gate.opened.set()
                assert (await client.answer()).status == 200
                assert (await client.answer()).status == 400
                client.send_end()
                assert await client.is_closed()

        run(body)

    def test_what_follows_the_last_request_is_dropped(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(get("/last", "Connection: close") + get("/dropped"))
                assert (await client.answer()).headers["connection"] == "close"
                assert await client.is_closed()
                assert gate.arrived == ["/last"]

        run(body)


async def one_who_waits_for_the_word(running: Running, gate: Gate) -> tuple[Client, ClientConnection]:
    """Return a client whose second request wants to be told to go on, behind a first one that is held."""
    client = await running.client()
    client.send(GET)
    await until(lambda: gate.arrived == ["/"])
    client.send(post("/x", b"hello", "Expect: 100-continue")[:-5])
    (connection,) = running.server.connections
    await until(lambda: connection._reader.wants_continue)
    return client, connection


class TestExpectations:
    def test_a_client_is_told_to_go_on(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                request = post("/x", b"hello", "Expect: 100-continue")
                client.send(request[:-5])
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                client.send(b"hello")
                assert json.loads((await client.answer()).body)[3] == "hello"

        run(body)

    def test_a_body_that_is_there_already_needs_no_word(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                assert (await running.ask(post("/x", b"hello", "Expect: 100-continue"))).status == 200

        run(body)

    def test_the_word_does_not_break_into_an_answer(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client, _ = await one_who_waits_for_the_word(running, gate)
                gate.opened.set()
                assert (await client.answer()).status == 200
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                client.send(b"hello")
                assert json.loads((await client.answer()).body)[3] == "hello"

        run(body)

    def test_who_is_told_late_to_go_on_is_not_late(self, run: Callable[[Body], None]) -> None:
        """The time to send the body counts from the word, not from the head that waited for its turn."""

        async def body() -> None:
            gate = Gate()
            async with serving(gate, body_timeout_s=30.0) as running:
                client, connection = await one_who_waits_for_the_word(running, gate)
                head_s = time.perf_counter()
                await until(lambda: time.perf_counter() > head_s)
                gate.opened.set()
                assert (await client.answer()).status == 200
                assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.check(head_s + 30.0)
                client.send(b"hello")
                assert json.loads((await client.answer()).body)[3] == "hello"

        run(body)

    def test_a_body_too_large_is_refused_before_it_is_sent(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo, max_body_bytes=4) as running:
                client = await running.client()
                client.send(post("/x", b"hello", "Expect: 100-continue")[:-5])
                assert (await client.answer()).status == 413

        run(body)


class TestRefusals:
    def test_100_mb_are_refused_early(self, run: Callable[[Body], None]) -> None:
        """Answered at the head; what comes is thrown away, so that the client can read the answer."""

        async def body() -> None:
            async with serving(echo, max_body_bytes=1000) as running:
                client = await running.client()
                client.send(get("/x", "Content-Length: 100000000").replace(b"GET", b"POST"))
                answer = await client.answer()
                assert answer.status == 413
                assert answer.headers["connection"] == "close"
                for _ in range(100):
                    client.send(b"x" * 1_000_000)
                    await client.writer.drain()
                client.send_end()
                assert await client.is_closed()

        run(body)

    def test_a_client_that_sends_first_and_reads_then_reads_why(self, run: Callable[[Body], None]) -> None:
        """As requests and curl do; a connection closed on unread bytes would be reset, answer and all."""

        async def body() -> None:
            async with serving(echo, max_body_bytes=1_000_000) as running:
                client = await running.client()
                client.send(get("/x", "Transfer-Encoding: chunked").replace(b"GET", b"POST"))
                for _ in range(30):
                    client.send(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
                    await client.writer.drain()
                answer = await client.answer()
                assert answer.status == 413
                assert answer.body == b"the request's body has more than 1000000 bytes"

        run(body)

    def test_10_000_headers(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                answer = await running.ask(get("/x", *(f"X-{number}: y" for number in range(10_000))))
                assert (answer.status, answer.body) == (431, b"the request has more than 100 headers")

        run(body)

    def test_conflicting_lengths(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                answer = await running.ask(post("/x", b"hello", "Content-Length: 6"))
                assert answer.status == 400
                assert answer.body.startswith(b"malformed HTTP request: ")

        run(body)

    def test_another_protocol(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                assert (await running.ask(b"\x16\x03\x01\x02\x00\x01\x00")).status == 400

        run(body)

    def test_a_refused_client_that_stays_is_dropped(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                client.send(b"nonsense\r\n\r\n")
                assert (await client.answer()).status == 400
                running.check_after(4.0)
                assert running.server.open_connections == 1
                running.check_after(6.0)
                await until(lambda: running.server.open_connections == 0)

        run(body)

    def test_one_connection_too_many(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo, max_connections=1) as running:
                first = await running.client()
                first.send(GET)
                assert (await first.answer()).status == 200
                answer = await running.ask(GET)
                assert answer.status == 503
                assert json.loads(answer.body) == {"error": "too many connections"}
                await until(lambda: running.server.open_connections == 1)
                first.send(GET)
                assert (await first.answer()).status == 200

        run(body)


class TestHangUps:
    @pytest.mark.parametrize("how", ["close", "half-close", "reset"])
    @pytest.mark.parametrize("is_streaming", [False, True])
    def test_a_hang_up_cancels_the_handler(
        self, run: Callable[[Body], None], how: str, is_streaming: bool
    ) -> None:
        async def body() -> None:
            cancelled = asyncio.Event()
            started = asyncio.Event()

            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                if is_streaming:
                    outgoing.start(200, {}, length=None)
                    outgoing.write(b"line\n")
                started.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET)
                await started.wait()
                assert running.server.active_requests == 1
                if how == "half-close":
                    client.send_end()
                    await cancelled.wait()
                    assert (b"0\r\n\r\n" in await client.reader.read()) is False
                elif how == "close":
                    client.close()
                else:
                    client.writer.transport.abort()
                await cancelled.wait()
                await until(lambda: running.server.open_connections == 0)
                assert running.server.active_requests == 0

        run(body)

    def test_a_half_closed_client_reads_what_needs_no_wait(self, run: Callable[[Body], None]) -> None:
        """``printf ... | nc``: the end of input comes with the request."""

        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                client.send(GET)
                client.send_end()
                assert (await client.answer()).status == 200
                assert await client.is_closed()

        run(body)

    def test_of_pipelined_requests_only_the_last_is_cancelled(self, run: Callable[[Body], None]) -> None:
        """As in Go, which looks for the end of input no further than the next request."""

        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET + get("/second") + get("/never"))
                client.send_end()
                await until(lambda: gate.arrived == ["/"])
                gate.opened.set()
                assert (await client.answer()).status == 200
                assert (await client.answer()).status == 200
                assert await client.is_closed()
                assert gate.arrived == ["/", "/second", "/never"]
                assert gate.cancelled == 1

        run(body)

    def test_the_end_of_input_inside_a_request(self, run: Callable[[Body], None]) -> None:
        """Nothing to answer: the handler never hears of it."""

        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(post("/x", b"hello")[:-1])
                client.send_end()
                assert await client.is_closed()
                assert gate.arrived == []

        run(body)

    def test_writes_after_a_hang_up_do_no_harm(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            over = asyncio.Event()

            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                outgoing.write(b"line\n")
                try:
                    await asyncio.Event().wait()
                finally:
                    outgoing.write(b"more\n")
                    assert outgoing.backlog_bytes == 0
                    outgoing.end()
                    over.set()

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET)
                await client.head()
                client.writer.transport.abort()
                await over.wait()

        run(body)


class TestSlowClients:
    """A client with a small receive buffer that does not read."""

    @staticmethod
    async def flood(_: Incoming, outgoing: Outgoing) -> None:
        outgoing.start(200, {}, length=None)
        while True:
            outgoing.write(b"x" * 65536)
            if (lag := outgoing.lag()) is not None:
                await lag

    def test_drain_waits_for_the_client(self, run: Callable[[Body], None]) -> None:
        """What is held for a client that does not read is bounded, and goes on when it reads."""

        async def body() -> None:
            async with serving(self.flood) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                (connection,) = running.server.connections
                assert connection.transport.get_write_buffer_size() < 300_000
                written = connection.written_bytes
                while connection.written_bytes == written:
                    assert await client.reader.read(65536)

        run(body)

    def test_one_that_takes_nothing_is_dropped(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(self.flood) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                running.check_after(0.0)
                running.check_after(59.0)
                assert running.server.open_connections == 1
                running.check_after(61.0)
                await until(lambda: running.server.open_connections == 0)

        run(body)

    def test_one_that_takes_a_few_bytes_now_and_then_is_dropped(self, run: Callable[[Body], None]) -> None:
        """It kept its place at the upstream for as long as it liked."""

        async def body() -> None:
            async with serving(self.flood) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                (connection,) = running.server.connections
                running.check_after(0.0)
                for after_s in (30.0, 60.0):
                    untaken = connection.untaken_bytes
                    while connection.untaken_bytes == untaken:
                        await client.reader.read(100)
                    running.check_after(after_s)
                    assert running.server.open_connections == 1
                running.check_after(61.0)
                await until(lambda: running.server.open_connections == 0)

        run(body)

    def test_one_that_keeps_the_slowest_pace_is_kept(self, run: Callable[[Body], None]) -> None:
        """Even where our system takes nothing more from us meanwhile, since it still has so much."""

        async def body() -> None:
            async with serving(self.flood) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                (connection,) = running.server.connections
                running.check_after(0.0)
                for after_s in (50.0, 100.0, 150.0, 200.0):
                    wanted = connection.untaken_bytes - SLOWEST_BYTES_PER_S * 60
                    while connection.untaken_bytes > wanted:
                        await client.reader.read(1000)
                    running.check_after(after_s)
                    assert running.server.open_connections == 1

        run(body)

    def test_one_that_takes_a_little_is_kept(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(self.flood) as running:
                client = await running.client(receive_bytes=4096)
                client.send(GET)
                await until(lambda: any(each.is_blocked for each in running.server.connections))
                (connection,) = running.server.connections
                for after_s in (0.0, 50.0, 100.0, 150.0):
                    backlog = connection.transport.get_write_buffer_size()
                    taken = connection.written_bytes - backlog

                    def has_taken(taken: int = taken) -> bool:
                        return connection.written_bytes - connection.transport.get_write_buffer_size() > taken

                    while not has_taken():
                        await client.reader.read(65536)
                    await until(lambda: connection.is_blocked)
                    running.check_after(after_s)
                    assert running.server.open_connections == 1

        run(body)

    def test_an_answer_that_is_not_fetched_does_not_keep_its_connection(
        self, run: Callable[[Body], None]
    ) -> None:
        """The handler is done, the bytes wait: patience counts all the same."""

        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                reply(outgoing, b"x" * 20_000_000)

            async with serving(handler) as running:
                client = await running.client(receive_bytes=4096)
                client.send(CLOSE)
                await until(lambda: any(each.written_bytes for each in running.server.connections))
                await until(lambda: running.server.active_requests == 0)
                running.check_after(0.0)
                running.check_after(61.0)
                await until(lambda: running.server.open_connections == 0)

        run(body)

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (GET[:-5], 408),
            (post("/x", b"hello")[:-1], 408),
        ],
    )
    def test_a_request_that_drips_is_refused(
        self, run: Callable[[Body], None], data: bytes, status: int
    ) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                client.send(data)
                await until(lambda: any(each._reader.is_inside for each in running.server.connections))
                running.check_after(29.0)
                running.check_after(31.0)
                answer = await client.answer()
                assert answer.status == status
                assert answer.body.endswith(b"did not come in time")
                client.send_end()
                assert await client.is_closed()

        run(body)

    @pytest.mark.parametrize("data", [b"", GET])
    def test_an_idle_connection_is_closed(self, run: Callable[[Body], None], data: bytes) -> None:
        async def body() -> None:
            async with serving(echo) as running:
                client = await running.client()
                if data:
                    client.send(data)
                    await client.answer()
                await until(lambda: running.server.open_connections == 1)
                running.check_after(119.0)
                assert running.server.open_connections == 1
                running.check_after(121.0)
                assert await client.is_closed()

        run(body)

    def test_a_long_wait_for_an_answer_is_not_idleness(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET)
                await until(lambda: gate.arrived == ["/"])
                running.check_after(100_000.0)
                gate.opened.set()
                assert (await client.answer()).status == 200

        run(body)

    def test_the_server_looks_by_itself(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async with serving(echo, idle_timeout_s=0.01) as running:
                client = await running.client()
                assert await client.is_closed()

        run(body)


class TestBrokenHandlers:
    @pytest.fixture(autouse=True)
    def _quiet(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, "ollamalab.gateway.client_connection")

    def test_an_exception_before_the_answer(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            async def handler(incoming: Incoming, outgoing: Outgoing) -> None:
                if incoming.target == "/":
                    raise KeyError("secret")
                await echo(incoming, outgoing)

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET + get("/next"))
                answer = await client.answer()
                assert answer.status == 500
                assert json.loads(answer.body) == {"error": "internal server error"}
                assert (await client.answer()).status == 200

        run(body)

    @pytest.mark.parametrize(
        ("fault", "is_chunked"),
        [
            ("raises", False),
            ("raises", True),
            ("leaves", False),
            ("leaves", True),
            ("too short", False),
            ("too long", False),
        ],
    )
    def test_an_answer_that_breaks_does_not_look_whole(
        self, run: Callable[[Body], None], fault: str, is_chunked: bool
    ) -> None:
        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None if is_chunked else 10)
                outgoing.write(b"line\n")
                if fault == "raises":
                    raise KeyError("x")
                if fault == "too long":
                    outgoing.write(b"123456")
                if fault != "leaves":
                    outgoing.end()

            async with serving(handler) as running:
                answer = await running.ask(GET)
                assert (answer.body, answer.is_whole) == (b"line\n", False)

        run(body)

    def test_a_cut_stream_to_http_1_0_is_reset(self, run: Callable[[Body], None]) -> None:
        """The end of the connection would say that it is whole."""

        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                outgoing.write(b"line\n")
                outgoing.abort()

            async with serving(handler) as running:
                client = await running.client()
                client.send(b"GET / HTTP/1.0\r\n\r\n")
                with pytest.raises(ConnectionResetError):
                    await client.reader.read(-1)

        run(body)

    @pytest.mark.parametrize("value", ["a\r\ncontent-length: 0\r\n\r\n", "a\nb", "a\rb", "\u2713"])
    def test_a_header_cannot_split_the_answer(self, run: Callable[[Body], None], value: str) -> None:
        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {"x-name": value}, length=None)

            async with serving(handler) as running:
                assert (await running.ask(GET)).status == 500

        run(body)

    def test_what_a_handler_raises_is_logged(
        self, run: Callable[[Body], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR, "ollamalab.gateway.client_connection")

        async def body() -> None:
            async def handler(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                outgoing.start(200, {}, length=None)

            async with serving(handler) as running:
                client = await running.client()
                client.send(GET)
                assert await client.is_closed()

        run(body)
        (record,) = caplog.records
        assert "event=handler_failed" in record.message
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], RuntimeError)


class TestStopping:
    def test_idle_connections_close_and_running_requests_finish(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                idle, busy = await running.client(), await running.client()
                idle.send(get("/other"))
                await idle.answer()
                busy.send(GET + get("/behind"))
                await until(lambda: "/" in gate.arrived)
                stopping = asyncio.create_task(running.server.stop(3600.0))
                assert await idle.is_closed()
                with pytest.raises(OSError, match=r"111|Connect call failed"):
                    await running.client()
                assert not stopping.done()
                gate.opened.set()
                answer = await busy.answer()
                assert (answer.status, answer.headers["connection"]) == (200, "close")
                assert await busy.is_closed()
                await stopping
                assert running.server.open_connections == 0
                assert "/behind" not in gate.arrived

        run(body)

    def test_a_stream_that_has_begun_finishes(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            go_on = asyncio.Event()

            async def stream(_: Incoming, outgoing: Outgoing) -> None:
                outgoing.start(200, {}, length=None)
                outgoing.write(b"one\n")
                await go_on.wait()
                outgoing.write(b"two\n")
                outgoing.end()

            async with serving(stream) as running:
                client = await running.client()
                client.send(GET)
                await client.reader.readuntil(b"one\n")
                stopping = asyncio.create_task(running.server.stop(3600.0))
                await asyncio.sleep(0)
                go_on.set()
                assert await client.reader.read() == b"\r\n4\r\ntwo\n\r\n0\r\n\r\n"
                await stopping

        run(body)

    def test_past_the_deadline_requests_are_cut(self, run: Callable[[Body], None]) -> None:
        async def body() -> None:
            gate = Gate()
            async with serving(gate) as running:
                client = await running.client()
                client.send(GET)
                await until(lambda: gate.arrived == ["/"])
                await running.server.stop(0.001)
                assert gate.cancelled == 1
                assert running.server.open_connections == 0

        run(body)


class Recorder:
    """Stands where a connection is; keeps each write apart, which a socket does not."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.is_lost = self.is_blocked = self.is_stopping = False

    def status_and_date(self, status: int) -> bytes:
        return b"HTTP/1.1 %d X\r\n" % status

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    write_soon = write


class TestWrites:
    """Each write may be a system call and a packet."""

    @staticmethod
    def outgoing(recorder: Recorder) -> Outgoing:
        incoming = Incoming("GET", "/", {}, b"", "", 0.0)
        return Outgoing(recorder, incoming)  # type: ignore[arg-type]

    def test_a_small_answer_is_one_write(self) -> None:
        recorder = Recorder()
        reply(self.outgoing(recorder), b"hello")
        assert recorder.writes == [
            b"HTTP/1.1 200 X\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
        ]

    def test_the_head_leaves_with_the_first_line(self) -> None:
        recorder = Recorder()
        outgoing = self.outgoing(recorder)
        outgoing.start(200, {}, length=None)
        assert recorder.writes == []
        outgoing.write(b"")
        outgoing.write(b"one\n")
        outgoing.write(b"two\n")
        outgoing.end()
        outgoing.end()
        outgoing.write(b"late\n")
        assert recorder.writes == [
            b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\none\n\r\n",
            b"4\r\ntwo\n\r\n",
            b"0\r\n\r\n",
        ]

    @pytest.mark.parametrize(
        ("length", "wire"),
        [
            (4, b"content-length: 4\r\n\r\none\n"),
            (None, b"transfer-encoding: chunked\r\n\r\n4\r\none\n\r\n0\r\n\r\n"),
        ],
    )
    def test_a_last_part_leaves_with_the_end(self, length: int | None, wire: bytes) -> None:
        recorder = Recorder()
        outgoing = self.outgoing(recorder)
        outgoing.start(200, {}, length=length)
        outgoing.end(b"one\n")
        assert recorder.writes == [b"HTTP/1.1 200 X\r\n" + wire]

    @pytest.mark.parametrize("length", [0, None])
    def test_an_empty_body_is_one_write(self, length: int | None) -> None:
        recorder = Recorder()
        outgoing = self.outgoing(recorder)
        outgoing.start(200, {}, length=length)
        outgoing.end()
        assert len(recorder.writes) == 1


@pytest.mark.parametrize("name", ["max_body_bytes", "max_connections", "write_timeout_s"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be > 0, got 0"):
        ServerLimits(**{name: 0})
