"""One request and its answer on the wire: what was written, when, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from ollamalab.errors import OllamaLabError
from ollamalab.gateway.served import OWN_PATHS, Ending, Served
from ollamalab.gateway.server import Incoming, Outgoing
from ollamalab.protocol.calls import CACHE_HEADER, Call
from ollamalab.protocol.endpoints import endpoint_of
from ollamalab.protocol.lines import StreamTail

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Exchange(msgspec.Struct, eq=False):
    """Writes one answer and notes what the log and the metrics will want.

    Attributes:
        incoming: The request.
        call: What it means; None while that has not been read.
        cors: Headers added to the answer, whatever it is.
        tail: Of a stream that passes line by line.
        length: Bytes of the body, as its client was told; None if it was not.
    """

    incoming: Incoming
    _outgoing: Outgoing
    call: Call | None = None
    cors: Mapping[str, str] = _NO_HEADERS
    tail: StreamTail | None = None
    length: int | None = None
    _status: int | None = None
    _error: str | None = None
    _ending: Ending = Ending.CLIENT_GONE  # until something better is known
    _cache: str | None = None
    _first_byte_s: float | None = None
    _body_bytes: int = 0

    @property
    def is_started(self) -> bool:
        """Whether the status is out: from here on an error can only end the stream."""
        return self._status is not None

    @property
    def backlog_bytes(self) -> int:
        """What the client has not taken yet."""
        return self._outgoing.backlog_bytes

    def start(self, status: int, headers: Mapping[str, str], *, length: int | None) -> None:
        """Begin the answer.

        Args:
            status: HTTP status.
            headers: Of the reply, names in lower case; those of its hop are left out. Ours are added.
            length: Bytes of the body; None if they will be known at its end.
        """
        self._cache = headers.get(CACHE_HEADER)
        if self.cors:
            headers = {**headers, **{name.lower(): value for name, value in self.cors.items()}}
        self._status, self.length = status, length
        self._first_byte_s = time.perf_counter()
        self._outgoing.start(status, headers, length=length)

    def write(self, data: bytes) -> None:
        """Write a part of the body."""
        self._body_bytes += len(data)
        if self.tail is not None:
            self.tail.feed(data)
        self._outgoing.write(data)

    def lag(self) -> asyncio.Future[None] | None:
        """Return what to wait for while the client is too far behind; None if it is not."""
        return self._outgoing.lag()

    def take(self, data: bytes) -> asyncio.Future[None] | None:
        """Write a part of the body; return what to wait for before the next."""
        self.write(data)
        return self._outgoing.lag()

    def end(self, error: OllamaLabError | None = None) -> None:
        """Finish the answer; with an error it is told as broken, though the body ends properly."""
        self._outgoing.end()
        self._ending = Ending.WHOLE if error is None else Ending.BROKEN
        self._error = None if error is None else str(error)

    def cut(self, error: OllamaLabError) -> None:
        """Break the connection off, so that a body of known length does not look complete."""
        self._outgoing.abort()
        self._ending, self._error = Ending.BROKEN, str(error)

    def whole(
        self, status: int, headers: Mapping[str, str], body: bytes = b"", error: OllamaLabError | None = None
    ) -> None:
        """Write a whole answer at once; ``error`` is what it tells of, for the log."""
        self.start(status, headers, length=len(body))
        self._body_bytes = len(body)
        self._outgoing.end(body)
        self._ending = Ending.WHOLE
        self._error = None if error is None else str(error)

    def served(self) -> Served:
        """Return what is known at the end."""
        arrived_s = self.incoming.received_s
        call = self.call
        return Served(
            method=self.incoming.method,
            path=call.endpoint.path if call else _known_path(self.incoming.target),
            status=self._status,
            ending=self._ending,
            error=self._error,
            client=call.client if call else self.incoming.peer,
            model=call.model if call else "",
            is_stream=call is not None and call.is_stream,
            cache=self._cache,
            queue_s=call.ledger.get("queue") if call else None,
            first_byte_s=None if self._first_byte_s is None else self._first_byte_s - arrived_s,
            e2e_s=time.perf_counter() - arrived_s,
            body_bytes=self._body_bytes,
        )


def _known_path(target: str) -> str:
    """Return the path of a request that no part has read; "other" if nobody knows it."""
    path = target.partition("?")[0]
    return path if path in OWN_PATHS or endpoint_of(path) else "other"
