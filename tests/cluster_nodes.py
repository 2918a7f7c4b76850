"""Small Ollamas on real sockets that fail as a test says, and a cluster of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from ollamalab.cluster import Cluster, Member
from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.upstream import Request
from ollamalab.settings import ClusterSettings

MODEL = "m:latest"
KEY = f"registry.ollama.ai/library/{MODEL}"
WORDS = 4

#: Looks come as quickly as a test can want; none decides what a test finds.
QUICK = ClusterSettings(probe_interval_s=0.02, probe_timeout_s=0.5, list_interval_s=0.02)
#: Looks come once, at the start.
STILL = ClusterSettings(probe_interval_s=3600.0, list_interval_s=3600.0)


class Node:
    """One server.

    Attributes:
        url: Where it listens; the same after a restart.
        does: What it does with inference: "answer", "500", "503", "hang", "cut" in the middle, "garbage",
            "error_line", "truncate": the end of the body without the final line.
        is_silent: Whether it accepts connections and answers nothing at all, probes included.
        models: Name to digest, as it lists them.
        loaded: Names, as it lists them.
        asked: Path of each inference request, in order.
        looks: Path of each other request, in order.
        keys: Bearer tokens of all requests; "" for those without.
        hung_up: How many requests were left before their end.
    """

    def __init__(self, does: str = "answer", *, models: dict[str, str] | None = None) -> None:
        self.url = ""
        self.does = does
        self.is_silent = False
        self.models = {MODEL: "d" * 64} if models is None else models
        self.loaded: list[str] = []
        self.asked: list[str] = []
        self.looks: list[str] = []
        self.keys: list[str] = []
        self.hung_up = 0
        self.gate = asyncio.Event()  # holds streams in their middle while clear
        self.gate.set()
        self._server: asyncio.Server | None = None
        self._is_stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._port = 0

    async def start(self) -> None:
        """Listen; after a stop on the same port."""
        self._is_stopped = False
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Listen no more, and cut all connections, as a killed process does."""
        assert self._server is not None
        loop = asyncio.get_running_loop()
        for listener in self._server.sockets:  # asyncio never closes what it has accepted at the close
            loop.remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        self._is_stopped = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait for something that a request changes."""
        while not fact():
            self._changed.clear()
            await self._changed.wait()

    async def called(self, count: int) -> None:
        """Wait for so many inference requests."""
        await self.until(lambda: len(self.asked) >= count)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_stopped:  # accepted before the stop, told after it
            writer.transport.abort()
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # even if it was cancelled before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lengths = [
                    int(line[15:]) for line in head.split("\r\n") if line.startswith("content-length:")
                ]
                body = await reader.readexactly(sum(lengths))
                method, path, _ = head.split(" ", 2)
                self.keys.append(head.partition("\r\nauthorization: Bearer ")[2].partition("\r\n")[0])
                await self._answer(method, path.partition("?")[0], body, reader, writer)

    async def _answer(
        self,
        method: str,
        path: str,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        is_inference = method == "POST" and path != "/api/show"
        (self.asked if is_inference else self.looks).append(path)
        self._changed.set()
        if self.is_silent or (is_inference and self.does == "hang"):
            await reader.read()
            self.hung_up += 1
            self._changed.set()
            raise ConnectionError
        if not is_inference:
            _write(writer, *self._look(path, body))
            return
        if self.does in ("500", "503"):
            _write(writer, int(self.does), {"error": f"it says {self.does}"})
        elif self.does == "garbage":
            writer.write(b"\x16\x03\x01 not HTTP\r\n\r\n")
            raise ConnectionError
        elif not self._has(json.loads(body)["model"]):
            _write(writer, 404, {"error": f"model '{json.loads(body).get('model')}' not found"})
        elif json.loads(body).get("stream", True) and not path.startswith("/api/embed"):
            await self._stream(writer)
        else:
            _write(writer, 200, {"model": MODEL, "response": "word " * WORDS, **_FINAL})

    def _has(self, model: str) -> bool:
        return parse_name(model).key in {parse_name(name).key for name in self.models}

    def _look(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        entries = [
            {"name": name, "model": name, "digest": digest, "modified_at": f"2026-01-{number:02}T00:00:00Z"}
            for number, (name, digest) in enumerate(self.models.items(), start=1)
        ]
        if path == "/api/tags":
            return 200, {"models": entries}
        if path == "/api/ps":
            return 200, {"models": [entry for entry in entries if entry["name"] in self.loaded]}
        if path == "/v1/models":
            data = [
                {"id": name, "object": "model", "created": 1, "owned_by": "library"} for name in self.models
            ]
            return 200, {"object": "list", "data": data}
        if path == "/api/show":
            model = json.loads(body)["model"]
            return (200, {"of": self.url}) if model in self.models else (404, {"error": f"no {model}"})
        return 200, {"version": "0.33.0"}

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for number in range(WORDS):
            if number == WORDS // 2:
                await self.gate.wait()
                if self.does == "cut":
                    raise ConnectionError
                if self.does == "truncate":
                    break
                if self.does == "error_line":
                    _write_line(writer, {"error": "the model runner has stopped"})
                    break
            _write_line(writer, {"model": MODEL, "response": f"{number} ", "done": False})
            await writer.drain()
        else:
            _write_line(writer, {"model": MODEL, "response": "", **_FINAL})
        writer.write(b"0\r\n\r\n")


_FINAL = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 60_000_000,
    "load_duration": 1_000_000,
    "prompt_eval_count": 3,
    "prompt_eval_duration": 20_000_000,
    "eval_count": WORDS,
    "eval_duration": 20_000_000,
}


def _write(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _write_line(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    line = json.dumps(value).encode() + b"\n"
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    """Run these nodes; those that a test stopped stay so."""
    try:
        for node in nodes:
            await node.start()
        yield
    finally:
        for node in nodes:
            await node.stop()


@asynccontextmanager
async def clustered(*nodes: Node, **options: Any) -> AsyncIterator[Cluster]:
    """Give a cluster of these nodes, which it starts and stops; members are called a, b, c."""
    options.setdefault("settings", QUICK)
    async with running(*nodes), AsyncExitStack() as stack:
        members = [await member_of(node, name, stack) for name, node in zip("abcdefgh", nodes, strict=False)]
        yield await stack.enter_async_context(Cluster(members, **options))


async def member_of(node: Node, name: str, stack: AsyncExitStack, *, weight: int = 1) -> Member:
    """Return a member whose connection closes with the stack."""
    connection = await stack.enter_async_context(
        OllamaConnection(node.url, ConnectionSettings(progress_timeout_s=5.0, resend_stale=True))
    )
    return Member(name, connection, url=node.url, weight=weight)


async def listed(cluster: Cluster) -> None:
    """Wait until every member has said which models it has."""
    while any(member.digests is None for member in cluster.members):  # noqa: ASYNC110 - a look sends no event
        await asyncio.sleep(0.001)


def generate(prompt: str = "hi", *, path: str = "/api/generate", **fields: Any) -> Request:
    """Return a request for text."""
    body = {"model": MODEL, "prompt": prompt, **fields}
    return Request(method="POST", path=path, body=json.dumps(body).encode())


def get(path: str) -> Request:
    return Request(method="GET", path=path)


async def body_of(cluster: Cluster, request: Request) -> tuple[int, str, bytes]:
    """Return status, name of the upstream, and body of an answer."""
    async with await cluster.send(request) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
        return reply.status, reply.headers.get("x-ollamalab-upstream", ""), body


def is_at_rest(cluster: Cluster) -> bool:
    """Return whether nothing is booked anywhere, and no breaker waits for the end of a trial."""
    return all(
        member.view.in_flight == 0
        and not member.waiting
        and not any(replica.breaker._is_trying for replica in member.replicas.values())
        and all(model.in_flight == 0 and model.booked_tokens == 0.0 for model in member.view.models.values())
        for member in cluster.members
    )
