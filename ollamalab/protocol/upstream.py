"""The one protocol: whatever answers requests is an Upstream.

An HTTP connection to one Ollama, a cache in front of an Upstream, a queue in front of an
Upstream, a cluster of Upstreams: each is itself an Upstream, so parts combine by wrapping. Body
bytes stay bytes; JSON is parsed only where a part needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import msgspec

if TYPE_CHECKING:
    from ollamalab.protocol.calls import Call


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request to an Ollama server.

    Attributes:
        method: "POST", "GET", "HEAD", "DELETE".
        path: Path with its leading slash, such as "/api/chat".
        headers: Extra headers; names in lower case where a part reads them (``protocol.calls``).
        body: The bytes to send; empty for none.
        call: What it means; None until ``protocol.calls.named`` has read it.
    """

    method: str
    path: str
    headers: Mapping[str, str] = {}
    body: bytes = b""
    call: Call | None = None


class Reply(Protocol):
    """An answer whose body is still arriving; leave it with ``async with``.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; parts on the way may add their own.
    """

    status: int
    headers: dict[str, str]

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives; chunk borders mean nothing.

        Raises:
            UpstreamError: The body broke off or did not come in time.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the connection; before the body's end this hangs up on the server."""
        ...


class Upstream(Protocol):
    """Whatever answers requests."""

    async def send(self, request: Request) -> Reply:
        """Send one request; return when status and headers are there.

        Raises:
            UpstreamUnavailable: No connection.
            UpstreamTimeout: No status in time.
            BadReply: Something that is not HTTP came back.
        """
        ...


#: Takes the chunks of a body, and never waits; a future that it returns is to be awaited before the next.
Sink = Callable[[bytes], "asyncio.Future[None] | None"]


async def pour(reply: Reply, sink: Sink) -> None:
    """Give the body of a reply to a sink as it arrives; return at its end.

    A reply that has a method ``pour`` of its own calls the sink from where its bytes are read, so that no
    task is woken for a chunk. Others need not have it.

    Raises:
        UpstreamError: The body broke off or did not come in time.
    """
    from_source = getattr(reply, "pour", None)
    if from_source is not None:
        await from_source(sink)
        return
    async for chunk in reply.chunks():
        lag = sink(chunk)
        if lag is not None:
            await lag


def whole_of(reply: Reply) -> bytes | None:
    """Return the body of a reply if all of it came with its head; None if ``chunks`` must be asked.

    A small answer mostly comes in one read, and nothing is left to wait for: a part that knows can
    finish its work at once, and nobody has to leave such a reply. It says so by an attribute ``whole``,
    which replies need not have.
    """
    return getattr(reply, "whole", None)
