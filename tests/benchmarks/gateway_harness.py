"""What stands on either side of a gateway under test: a scripted Ollama, and clients in a closed loop.

Both are raw protocols on uvloop with canned bytes, each a process of its own, so that their cost stays
well below that of what is measured between them (the row "direct" shows it).

``python gateway_harness.py upstream [PORT]`` serves until killed and prints its port, which several share.
``python gateway_harness.py load`` reads one command a line as JSON, prints one result a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

import httptools
import uvloop

HOST = "127.0.0.1"
LINES = 128
MODEL, STREAM_MODEL, HELD_MODEL, PACED_MODEL = "bench", "bench-stream", "bench-held", "bench-paced"
#: Its streams come so many lines a write: the upstream then costs little, and the gateway is the bound.
GROUPED_MODEL, GROUP = "bench-grouped", 8
#: How long the other lines of a paced stream come after the first, which is measured alone then: a server
#: that writes without a pause keeps a core busy that the client wants.
PACE_S = 0.003
_PROMPT = "Tell me how tides come about, and why some places see two a day and others only one. " * 5
_CREATED = "2026-01-01T00:00:00.000000000Z"
_ANSWER = {"role": "assistant", "content": "The moon pulls. " * 30}
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_LAST_CHUNK = b"0\r\n\r\n"


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def request(path: str, *, is_stream: bool, model: str = MODEL) -> bytes:
    """Return a chat request as a client sends it; without a ``Host`` that depends on the port."""
    body = compact({"model": model, "messages": [{"role": "user", "content": _PROMPT}], "stream": is_stream})
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        "Authorization: Bearer sk-bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _whole(value: Any) -> bytes:
    body = compact(value)
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: "
    return f"{head}{len(body)}\r\n\r\n".encode() + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _line(content: str, **last: Any) -> bytes:
    message = {"role": "assistant", "content": content}
    fields = {"model": STREAM_MODEL, "created_at": _CREATED, "message": message, "done": bool(last), **last}
    return _chunk(compact(fields) + b"\n")


_END = {
    "done_reason": "stop",
    "total_duration": 5_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 90,
    "prompt_eval_duration": 1_000_000,
    "eval_count": LINES,
    "eval_duration": 3_000_000,
}
CHAT = _whole({"model": MODEL, "created_at": _CREATED, "message": _ANSWER, "done": True, **_END})
OPENAI_CHAT = _whole(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": _ANSWER, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 90, "completion_tokens": LINES, "total_tokens": 90 + LINES},
    }
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = [*([_line(" word")] * (LINES - 1)), _line("", **_END) + _LAST_CHUNK]
GROUPS = [b"".join(STREAM[at : at + GROUP]) for at in range(0, LINES, GROUP)]
_MODELS = [
    {"name": f"{model}:latest", "model": f"{model}:latest", "digest": f"{number:064x}", "details": {}}
    for number, model in enumerate((MODEL, STREAM_MODEL, HELD_MODEL, PACED_MODEL, GROUPED_MODEL))
]
GETS = {
    b"/": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nOllama is running",
    b"/api/version": _whole({"version": "0.33.0"}),
    b"/api/tags": _whole({"models": _MODELS}),
    b"/api/ps": _whole(
        {"models": [model | {"size_vram": 1, "expires_at": "2099-01-01T00:00:00Z"} for model in _MODELS]}
    ),
}
_NOT_FOUND = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\r\n404 page not found"
)


class Ollama(asyncio.Protocol):
    """Answers from memory; of a stream, a line whenever all other streams have had theirs."""

    def __init__(self, lines: Round, groups: Round) -> None:
        self._lines = lines
        self._groups = groups

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        data = self._held + data
        head_end = data.find(b"\r\n\r\n") + 4
        length = _LENGTH.search(data, 0, head_end) if head_end > 3 else None
        if head_end < 4 or (length is not None and len(data) < head_end + int(length[1])):
            self._held = data
            return
        self._held = b""
        method, path, _ = data.split(b" ", 2)
        if method != b"POST":
            self._transport.write(GETS.get(path, _NOT_FOUND))
        elif GROUPED_MODEL.encode() in data:
            self._groups.join(self._transport)
        elif b'"stream":true' in data:
            if PACED_MODEL.encode() in data:
                self._transport.write(STREAM_HEAD + STREAM[0])
                asyncio.get_running_loop().call_later(PACE_S, self._transport.write, b"".join(STREAM[1:]))
            elif HELD_MODEL.encode() in data:
                self._transport.write(STREAM_HEAD + STREAM[0])
            else:
                self._lines.join(self._transport)
        else:
            self._transport.write(OPENAI_CHAT if path.startswith(b"/v1") else CHAT)


class Round:
    """All running streams of a kind; each turn of the loop, each of them gets its next piece.

    Pieces are written to the socket itself, which costs half of going through the transport: what stands
    upstream should cost little beside what is measured.

    Args:
        pieces: What a stream is made of.
    """

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, int] = {}  # socket: number of the next piece

    def join(self, transport: asyncio.Transport) -> None:
        transport.write(STREAM_HEAD + self._pieces[0])
        if not self._streams:
            self._loop.call_soon(self._turn)
        self._streams[transport.get_extra_info("socket").fileno()] = 1

    def _turn(self) -> None:
        streams, pieces = self._streams, self._pieces
        for file, number in list(streams.items()):
            try:
                os.write(file, pieces[number])
            except BlockingIOError:
                continue
            except OSError:  # its client is gone
                number = len(pieces)
            if number + 1 < len(pieces):
                streams[file] = number + 1
            else:
                del streams[file]
        if streams:
            self._loop.call_soon(self._turn)


class Caller(asyncio.Protocol):
    """One client in a closed loop: the next request goes out when the answer is whole."""

    def __init__(self, visit: LoadVisit) -> None:
        self._visit = visit
        self._tail = b""
        self._left: int | None = None  # bytes of a body of known length; None for chunks
        self._first_s = self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._visit.lost(self)

    def _send(self) -> None:
        self._first_s = 0.0
        self._sent_s = time.perf_counter()
        self._transport.write(self._visit.request)

    def data_received(self, data: bytes) -> None:
        self._visit.reads += 1
        if not self._first_s:
            self._first_s = time.perf_counter()
            if data[9:12] != b"200":
                self._visit.fail(f"answered {data[:200]!r}")
                return
            head_end = data.find(b"\r\n\r\n") + 4
            assert head_end > 3, "a head in pieces"
            length = _LENGTH.search(data, 0, head_end)
            self._left = None if length is None else head_end + int(length[1])
            self._visit.first()
        if self._left is None:
            self._tail = self._tail[-4:] + data[-5:]
            is_whole = self._tail.endswith(_LAST_CHUNK)
        else:
            self._left -= len(data)
            is_whole = not self._left
        if is_whole:
            self._tail = b""
            if self._visit.done(self._sent_s, self._first_s):
                self._send()
            else:
                self._transport.close()


class LoadVisit:
    """A short load by a number of callers; what completes after the warm-up and in time counts.

    Args:
        request: Sent over and over.
        seconds: How long to count.
        warm_s: How long to run before.
    """

    def __init__(self, request: bytes, seconds: float, warm_s: float) -> None:
        self.request = request
        self.from_s = time.perf_counter() + warm_s
        self.until_s = self.from_s + seconds
        self.over = asyncio.Event()
        self.callers = 0
        self.firsts = 0
        self.answers = 0
        self.all_answers = 0
        self.reads = 0
        self.first_bytes_s: list[float] = []
        self.e2e_s: list[float] = []
        self.error = ""

    def first(self) -> None:
        self.firsts += 1

    def done(self, sent_s: float, first_s: float) -> bool:
        """Note an answer; return whether to send again."""
        now_s = time.perf_counter()
        self.all_answers += 1
        if self.from_s <= sent_s and now_s <= self.until_s:
            self.answers += 1
            self.first_bytes_s.append(first_s - sent_s)
            self.e2e_s.append(now_s - sent_s)
        return now_s < self.until_s and not self.error

    def fail(self, error: str) -> None:
        self.error = self.error or error
        self.over.set()

    def lost(self, caller: Caller) -> None:
        self.callers -= 1
        if time.perf_counter() < self.until_s:
            self.fail("hung up during the visit")
        if not self.callers:
            self.over.set()


async def load(port: int, request: bytes, connections: int, seconds: float, warm_s: float) -> dict[str, Any]:
    """Return what a visit found: answers a second, medians of the time to first byte and to the last."""
    visit = LoadVisit(request, seconds, warm_s)
    visit.callers = connections
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Caller(visit), HOST, port)
    await visit.over.wait()
    if visit.error:
        return {"error": visit.error}
    return {
        "rate": visit.answers / seconds,
        "all_answers": visit.all_answers,
        "reads": visit.reads / max(1, visit.all_answers),
        "first_byte_s": statistics.median(visit.first_bytes_s) if visit.answers else None,
        "e2e_s": statistics.median(visit.e2e_s) if visit.answers else None,
    }


class Holder:
    """Opens streams that do not end, and holds them."""

    def __init__(self) -> None:
        self._transports: list[asyncio.BaseTransport] = []

    async def hold(self, port: int, request: bytes, connections: int) -> dict[str, Any]:
        """Open streams; return when each has had its first line."""
        visit = LoadVisit(request, 3600.0, 0.0)
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            transport, _protocol = await loop.create_connection(lambda: Caller(visit), HOST, port)
            self._transports.append(transport)
        while visit.firsts < connections and not visit.error:  # noqa: ASYNC110 - 1,000 events for one count
            await asyncio.sleep(0.01)
        return {"error": visit.error} if visit.error else {"open": visit.firsts}

    def release(self) -> dict[str, Any]:
        """Hang up on all of them."""
        for transport in self._transports:
            cast("asyncio.Transport", transport).abort()
        self._transports.clear()
        return {}


async def body_of(port: int, request: bytes) -> dict[str, Any]:
    """Return the body of one answer."""
    pieces: list[bytes] = []
    over = asyncio.Event()
    parser = httptools.HttpResponseParser(
        SimpleNamespace(on_body=pieces.append, on_message_complete=over.set)
    )
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(request)
    while not over.is_set() and (data := await reader.read(65536)):
        parser.feed_data(data)
    writer.close()
    return {"body": b"".join(pieces).decode(), "is_whole": over.is_set()}


async def serve_upstream(port: int = 0) -> None:
    lines, groups, loop = Round(STREAM), Round(GROUPS), asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Ollama(lines, groups), HOST, port, backlog=2048, reuse_port=True
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def serve_load() -> None:
    loop, holder = asyncio.get_running_loop(), Holder()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        what = command.pop("do")
        if "request" in command:
            command["request"] = command["request"].encode()
        if what == "load":
            result = await load(**command)
        elif what == "body":
            result = await body_of(**command)
        elif what == "hold":
            result = await holder.hold(**command)
        else:
            result = holder.release()
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    role, *ports = sys.argv[1:]
    uvloop.run(serve_upstream(*map(int, ports)) if role == "upstream" else serve_load())
