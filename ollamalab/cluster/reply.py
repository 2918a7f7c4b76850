"""Replies of a cluster: one that comes from a member, and one that it makes itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from ollamalab.cluster.booking import Booking
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.upstream import Reply, Sink, pour


class RoutedReply:
    """A member's reply, booked there until it is left.

    Its chunks are the member's own, so that a token passes through one function fewer.

    Args:
        reply: The member's.
        booking: Is told of the end.
    """

    __slots__ = ("_booking", "_reply", "headers", "status")

    def __init__(self, reply: Reply, booking: Booking) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self.headers[UPSTREAM_HEADER] = booking.member.name
        self._reply = reply
        self._booking = booking

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives; raises what the member raises."""
        return self._reply.chunks()

    async def pour(self, sink: Sink) -> None:
        """Give the body to a sink; raises what the member raises."""
        await pour(self._reply, sink)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._reply.__aexit__(kind, error, trace)
        finally:
            self._booking.left(error)


class MadeReply:
    """A whole reply made here.

    Args:
        status: HTTP status.
        content_type: Of the body.
        body: All of it.
    """

    __slots__ = ("_body", "headers", "status")

    def __init__(self, status: int, content_type: str, body: bytes) -> None:
        self.status = status
        self.headers = {"content-type": content_type, "content-length": str(len(body))}
        self._body = body

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body at once."""
        yield self._body

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""
