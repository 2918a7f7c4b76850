"""An Upstream whose every answer is in the test's hand: what comes, when, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from ollamalab.protocol.upstream import Reply, Request

MODEL = "smollm2:135m"
DIGEST = "a" * 64


class HeldCall:
    """One call of the upstream, which is also its Reply."""

    def __init__(self, request: Request, upstream: HeldUpstream) -> None:
        self.request = request
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_hung_up = False
        self._upstream = upstream
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parts: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._has_ended = False

    def open(self, status: int = 200, content_type: str = "application/x-ndjson", **headers: str) -> Self:
        self.status, self.headers = status, {"content-type": content_type, **headers}
        if not self._opened.done():  # else it has been hung up
            self._opened.set_result(None)
        return self

    def refuse(self, error: Exception) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)

    def give(self, *chunks: bytes) -> Self:
        for chunk in chunks:
            self._parts.put_nowait(chunk)
        return self

    def end(self) -> None:
        self._parts.put_nowait(b"")

    def break_off(self, error: Exception) -> None:
        self._parts.put_nowait(error)

    async def opened(self) -> Self:
        try:
            await self._opened
        except asyncio.CancelledError:
            self._hang_up()
            raise
        return self

    async def chunks(self) -> AsyncIterator[bytes]:
        while part := await self._parts.get():
            if isinstance(part, Exception):
                self._has_ended = True
                raise part
            yield part
        self._has_ended = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._has_ended:
            self._hang_up()

    def _hang_up(self) -> None:
        self.is_hung_up = True
        self._upstream.note_change()


class ReadyReply:
    """A reply that is there already."""

    def __init__(self, body: bytes, status: int = 200, content_type: str = "application/json") -> None:
        self.status, self.headers, self._body = status, {"content-type": content_type}, body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class HeldUpstream:
    """Holds every inference request until the test answers it; lists its models at once."""

    def __init__(self) -> None:
        self.calls: list[HeldCall] = []
        self.digests: dict[str, str] = {MODEL: DIGEST}
        self.lists_failing: Exception | None = None
        self.lists_served = 0
        self._changed = asyncio.Event()

    async def send(self, request: Request) -> Reply:
        if request.path == "/api/tags":
            self.lists_served += 1
            if self.lists_failing:
                raise self.lists_failing
            models = [
                {"name": name, "model": name, "digest": digest} for name, digest in self.digests.items()
            ]
            return ReadyReply(json.dumps({"models": models}).encode())
        call = HeldCall(request, self)
        self.calls.append(call)
        self.note_change()
        return await call.opened()

    def note_change(self) -> None:
        self._changed.set()

    async def called(self, count: int) -> HeldCall:
        """Wait for so many calls; return the last of them."""
        while len(self.calls) < count:
            await self._change()
        return self.calls[count - 1]

    async def hung_up(self, index: int = 0) -> None:
        """Wait until a call has been hung up."""
        while not self.calls[index].is_hung_up:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def chat(
    content: str = "hi", *, path: str = "/api/chat", headers: dict[str, str] | None = None, **fields: Any
) -> Request:
    """Return a chat request of the model; fields win over its own."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}
    return Request(method="POST", path=path, headers=headers or {}, body=json.dumps(body).encode())


def line(content: str, **fields: Any) -> bytes:
    """Return a line of a chat's stream, as Ollama writes it."""
    said = {
        "model": MODEL,
        "created_at": "2026-11-21T04:04:24.229688944Z",
        "message": {"role": "assistant", "content": content},
        "done": False,
        **fields,
    }
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


FINAL = line(
    "",
    done=True,
    done_reason="stop",
    total_duration=60015131,
    load_duration=800078,
    prompt_eval_count=3,
    prompt_eval_duration=23594000,
    eval_count=4,
    eval_duration=33878000,
)
STREAM = (line("Hel"), line("lo"), FINAL)


async def body_of(reply: Reply) -> bytes:
    """Read a reply to its end."""
    async with reply:
        return b"".join([chunk async for chunk in reply.chunks()])


def timeless(body: bytes) -> list[Any]:
    """Return the JSON values of lines or events without their ``created_at``."""
    values = []
    for text in body.decode().splitlines():
        text = text.removeprefix("data: ")
        if text and text != "[DONE]":
            value = json.loads(text)
            value.pop("created_at", None)
            values.append(value)
        elif text:
            values.append(text)
    return values
