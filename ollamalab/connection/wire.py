"""One connection: bytes out, bytes in, one exchange at a time."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from ollamalab.connection.failures import PARSE_ERRORS, Blame
from ollamalab.connection.heads import HOP_HEADERS
from ollamalab.connection.reply import HELD_LIMIT_BYTES, HttpReply
from ollamalab.errors import UpstreamError

if TYPE_CHECKING:
    from ollamalab.protocol.calls import Call

#: Of a head, or of trailers and chunk extensions, that may come in a row without a byte of body.
MAX_HEAD_BYTES = 64 * 1024

#: A body up to here leaves in one piece with its head, for the price of a copy.
_JOINED_BYTES = 64 * 1024

_SHORT_BYTES = 256  # of a header's value, to be remembered

_INTERIM = range(100, 200)  # 100 Continue, 103 Early Hints: the head of the reply is still to come


class Keeper(Protocol):
    """Who has the connection between exchanges."""

    def free(self, wire: Wire) -> None:
        """It can carry another exchange."""
        ...

    def closing(self, wire: Wire) -> None:
        """It will carry no more; ``lost`` follows."""
        ...

    def lost(self, wire: Wire) -> None:
        """Its socket is closed."""
        ...


class Wire(asyncio.Protocol):
    """One connection to a server.

    The parser appends what it finds of the body straight to a list, so that the chunks of one read cost
    no call of Python each, and become one chunk of ours.

    Args:
        keeper: Told when the connection is free again, and when it closes.
        blame: Words the errors.
        progress_timeout_s: Longest wait of a reader for a byte.

    Attributes:
        loop: The one it lives on.
        connected_s: When it stood, TLS included; ``time.perf_counter``.
        is_used: Whether an exchange has begun on it.
        is_paused: Whether it reads no further because the reader of the reply lags.
        on_body: What the parser calls with each piece of a body.
    """

    def __init__(self, keeper: Keeper, blame: Blame, progress_timeout_s: float) -> None:
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self.loop = asyncio.get_running_loop()
        self.connected_s = 0.0
        self.is_used = False
        self.is_paused = False
        self._keeper = keeper
        self._blame = blame
        self._progress_timeout_s = progress_timeout_s
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_sending = False
        # Of the exchange in progress.
        self._reply: HttpReply | None = None
        self._is_head_only = False
        self._sent_s = 0.0
        self._heard_s: float | None = None
        self._headers: dict[str, str] = {}
        self._hop_headers: dict[str, str] = {}
        self._is_begun = self._is_whole = False  # its head, its body
        self._is_until_close = self._is_kept = False
        self._framing_bytes = 0

    @property
    def is_open(self) -> bool:
        """Whether it can carry an exchange."""
        return self._transport is not None

    def exchange(
        self, head: bytes, body: bytes, *, is_head_only: bool, call: Call | None = None
    ) -> HttpReply:
        """Send a request; the reply fills as bytes come.

        Args:
            head: Request line and headers.
            body: What follows them.
            is_head_only: Whether the method is HEAD: a reply without a body, whatever its headers say.
            call: Says when the reader of the reply wants to rest.
        """
        reply = HttpReply(self, None if self.is_used else self.connected_s, call)
        self.is_used = True
        transport = self._transport
        if transport is None:  # it closed on its way to us
            reply.fail(self._blame.unanswered(None, 0.0))
            return reply
        self._reply = reply
        self._is_head_only = is_head_only
        self._sent_s = time.perf_counter()
        self._heard_s = None
        self._is_begun = self._is_whole = False
        self._framing_bytes = 0
        if self._timer is None:
            self._watch(self._progress_timeout_s)
        if len(body) <= _JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        if not self._is_sending:
            reply.sent_end_s = time.perf_counter()
        return reply

    def resume(self) -> None:
        """Read on, now that the reader of the reply has caught up."""
        self.is_paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    def read_from(self, least_bytes: int) -> None:
        """Have reads wait until there is so much, or the server closes; 1 reads whatever comes."""
        if self._transport is None:
            return
        if self._socket is None:  # a handle of our own: uvloop's makes itself anew for every call
            file = self._transport.get_extra_info("socket").fileno()
            try:
                self._socket = socket.socket(fileno=os.dup(file))
            except OSError:  # this process may open no more files: each read is then one of its own
                return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)

    def hang_up(self) -> None:
        """Close at once; a reply in progress fails."""
        self._fail(self._blame.broken("we hung up"))

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the connection."""
        self.connected_s = time.perf_counter()
        self._parser = httptools.HttpResponseParser(self)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=_JOINED_BYTES, low=0)

    def data_received(self, data: bytes) -> None:
        """Take in what one read brought; wake the reader once."""
        now_s = self._heard_s = time.perf_counter()
        reply, parser = self._reply, self._parser
        if reply is None or parser is None:  # bytes that nobody asked for
            self._close()
            return
        failure: BaseException | str | None = None
        try:
            parser.feed_data(data)
        except PARSE_ERRORS as error:
            failure = error.__context__ or error  # for an error of a callback, the callback's own
            self._is_kept = False
        if pieces := self._pieces:
            reply.add(pieces[0] if len(pieces) == 1 else b"".join(pieces), now_s)
            pieces.clear()
            self._framing_bytes = 0
        else:
            self._framing_bytes += len(data)
            if self._framing_bytes > MAX_HEAD_BYTES:
                failure = failure or f"more than {MAX_HEAD_BYTES} bytes of headers"
        if self._is_whole:
            self._end(reply)
        elif failure is not None:
            self._fail(self._blame.broken(failure))
        elif self._is_begun:
            if reply.held_bytes > HELD_LIMIT_BYTES and not self.is_paused and self._transport is not None:
                self.is_paused = True
                self._transport.pause_reading()
            reply.wake()

    def eof_received(self) -> None:
        """The server closed: the end of a body of unknown length, too early for any other."""
        if self._reply is not None and self._is_begun and self._is_until_close:
            self._end(self._reply)
        else:
            self._fail(self._gone(None))

    def connection_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        self._fail(self._gone(error))
        self._parser = None  # it holds our methods, and we it
        if self._timer is not None:
            self._timer.cancel()
        self._keeper.lost(self)

    def pause_writing(self) -> None:
        """The socket is full, and part of the request still with us."""
        self._is_sending = True

    def resume_writing(self) -> None:
        """All of the request is out."""
        self._is_sending = False
        if self._reply is not None:
            self._reply.sent_end_s = time.perf_counter()

    # The parser's side; its order is begin, headers, complete, begin ...

    def on_message_begin(self) -> None:
        """Refuse a second reply to one request."""
        if self._is_whole:
            raise httptools.HttpParserError("more than one reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers are dropped."""
        if self._is_begun:
            return
        is_short = len(value) <= _SHORT_BYTES
        key, text, is_hop = _field(name, value) if is_short else _field_of(name, value)
        fields = self._hop_headers if is_hop else self._headers
        fields[key] = f"{fields[key]}, {text}" if key in fields else text

    def on_headers_complete(self) -> None:
        """Hand status and headers to the reply, unless they announce others."""
        headers, hop_headers = self._headers, self._hop_headers
        self._headers, self._hop_headers = {}, {}
        assert self._parser is not None
        assert self._reply is not None
        status = self._parser.get_status_code()
        if status in _INTERIM:
            return
        coding = hop_headers.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise httptools.HttpParserError(f"transfer-encoding {coding!r}")
        for name in hop_headers.get("connection", "").lower().split(","):
            headers.pop(name.strip(), None)
        self._is_begun = True
        self._is_kept = self._parser.should_keep_alive()
        self._is_until_close = coding is None and "content-length" not in headers
        self._reply.begin(status, headers, self._heard_s or 0.0)
        if self._is_head_only:
            # The parser waits for a body; it cannot be told that there is none. Rare: not worth keeping.
            self._is_whole = True
            raise httptools.HttpParserError("the body of a reply to HEAD")

    def on_message_complete(self) -> None:
        """Note the end of the body."""
        self._is_whole = self._is_begun  # an interim head is a message of its own

    # Ends.

    def _end(self, reply: HttpReply) -> None:
        """Let go of a whole reply; the connection is free or of no more use."""
        self._reply = None
        transport = self._transport
        # An answer before it had our whole request: the rest would still have to go out.
        if self._is_kept and transport is not None and not transport.get_write_buffer_size():
            self._keeper.free(self)
        else:
            self._close()
        reply.end()

    def _fail(self, failure: UpstreamError) -> None:
        reply, self._reply = self._reply, None
        self._close()
        if reply is not None:
            reply.fail(failure)

    def _gone(self, error: Exception | None) -> UpstreamError:
        """Return why the server's closing is a failure."""
        if self._heard_s is None:
            return self._blame.unanswered(error, time.perf_counter() - self._sent_s)
        return self._blame.broken(error or "closed before its end")

    def _close(self) -> None:
        """Close the socket now; a polite end would wait for the server."""
        transport, self._transport = self._transport, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if transport is not None:
            self._keeper.closing(self)
            transport.abort()

    # A timer per connection, not per wait: it looks now and then whether it has been too long.

    def _watch(self, in_s: float) -> None:
        self._timer = self.loop.call_later(in_s, self._check_progress)

    def _check_progress(self) -> None:
        """Fail the reply whose reader has waited too long, or look again when that could be."""
        self._timer = None
        if self._reply is None:
            return  # the next exchange sets a timer
        waiting_since_s, silent_s = self._reply.waiting_since_s, 0.0
        if waiting_since_s is not None:
            silent_s = time.perf_counter() - max(waiting_since_s, self._heard_s or 0.0)
        if silent_s < self._progress_timeout_s:
            self._watch(self._progress_timeout_s - silent_s)
        else:
            self._fail(self._blame.no_progress())


def _field_of(name: bytes, value: bytes) -> tuple[str, str, bool]:
    """Return name, value, and whether it is a header of this hop."""
    key = name.decode("latin-1").lower()
    return key, value.decode("latin-1").rstrip(" \t"), key in HOP_HEADERS


#: A server sends mostly the same headers.
_field = lru_cache(maxsize=1024)(_field_of)
