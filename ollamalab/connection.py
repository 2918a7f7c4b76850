"""HTTP out: a connection pool to one Ollama, as bytes.

The only file that knows aiohttp on the way out. Headers that belong to one hop (Host, Connection,
lengths) are made here and never passed on; redirects are not followed; bodies are not decompressed.

Arrival times: ``HttpReply.chunks`` gives a chunk as soon as aiohttp's stream has it, so whoever
stamps there stamps one task switch after the read. Measured with 64 streams of 100 lines/s into one
core, against a stamp taken first thing in the protocol's ``data_received``, on the same 43,000 reads:
0.02 ms later at the median, 0.6 ms at p99. That is not worth an HTTP client of our own; what is late
beyond it is the machine (``tests/benchmarks/bench_instrument.py`` has the sum).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import Self

import aiohttp

from ollamalab.errors import (
    BadReply,
    SettingsError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from ollamalab.protocol.upstream import Request
from ollamalab.protocol.urls import server_url

try:
    from uvloop import new_event_loop
except ImportError:  # no wheel for this platform
    from asyncio import new_event_loop

__all__ = ["ConnectionSettings", "HttpReply", "OllamaConnection", "new_event_loop"]

#: Made anew for each hop; a client's own are dropped (RFC 9110 §7.6.1, and Ollama's Host rule).
_HOP_HEADERS = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "proxy-connection", "te", "trailer")
) | {"transfer-encoding", "upgrade"}

#: aiohttp's error to ours; the first row that fits wins, so the special stand before the general.
_ERRORS: tuple[tuple[type[BaseException], type[UpstreamError]], ...] = (
    (aiohttp.ConnectionTimeoutError, UpstreamUnavailable),  # nothing was sent: as good as refused
    (aiohttp.ServerTimeoutError, UpstreamTimeout),
    (aiohttp.ClientConnectorError, UpstreamUnavailable),
    (aiohttp.ServerFingerprintMismatch, UpstreamUnavailable),
    (aiohttp.ClientConnectionError, BadReply),  # the connection stood, then broke
    (aiohttp.ClientResponseError, BadReply),  # not HTTP
    (aiohttp.ClientPayloadError, BadReply),
    (aiohttp.UploadAbortedError, BadReply),
    (aiohttp.RedirectClientError, BadReply),
    (aiohttp.InvalidURL, UpstreamUnavailable),
    (aiohttp.NonHttpUrlClientError, UpstreamUnavailable),
    (TimeoutError, UpstreamTimeout),
    (OSError, UpstreamUnavailable),
)


def error_type(foreign: type[BaseException]) -> type[UpstreamError] | None:
    """Return what an error of aiohttp becomes here; None if nobody thought of it."""
    return next((ours for theirs, ours in _ERRORS if issubclass(foreign, theirs)), None)


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """How one Ollama is reached."""

    max_connections: int = 900  #: at once; leaves room under the usual 1,024 file descriptors
    connect_timeout_s: float = 5.0  #: to get a connection, the wait for a free one included
    progress_timeout_s: float = 300.0  #: without a byte, before the reply or inside it

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise SettingsError(f"max_connections must be 1 or more, got {self.max_connections!r}")
        for name in ("connect_timeout_s", "progress_timeout_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be > 0, got {getattr(self, name)!r}")


@dataclass(slots=True)
class _Moments:
    """When a connection stood and the request was out; filled in by aiohttp's trace hooks."""

    connected_s: float | None = None
    sent_end_s: float | None = None


class HttpReply:
    """A reply over HTTP whose body is still arriving.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; of a repeated header, all values joined by ", ".
        connected_s: When a new connection stood (``time.perf_counter``); None on a reused one.
        sent_end_s: When the last byte of the request had been handed to the socket.
    """

    def __init__(self, response: aiohttp.ClientResponse, moments: _Moments, owner: OllamaConnection) -> None:
        self._response = response
        self._owner = owner
        self.status = response.status
        self.headers = _lower_case(response)
        self.connected_s = moments.connected_s
        self.sent_end_s = moments.sent_end_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives.

        Raises:
            UpstreamTimeout: No byte within the progress timeout.
            BadReply: The body broke off.
        """
        content = self._response.content
        while True:
            try:
                chunk = await content.readany()
            except (aiohttp.ClientError, OSError) as error:
                raise self._owner.translated(error) from error
            if not chunk:
                return
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._response.close()  # at the body's end the connection is back in the pool already


class OllamaConnection:
    """One Ollama server as an Upstream; used with ``async with``.

    Args:
        url: Address of the server, as ``server_url`` reads it.
        settings: Limits and timeouts.
        headers: Sent with every request, such as ``Authorization``; they win over a request's own.
    """

    def __init__(
        self,
        url: str,
        settings: ConnectionSettings | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url = server_url(url)
        self.settings = settings or ConnectionSettings()
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        limits = self.settings
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_note_connected)
        trace.on_request_chunk_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limits.max_connections),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=limits.connect_timeout_s,
                sock_read=limits.progress_timeout_s,
                ceil_threshold=float("inf"),  # or aiohttp rounds a timeout above 5 s to a whole second
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type"),
            trace_configs=[trace],
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> HttpReply:
        """Send one request; return when status and headers are there.

        Raises:
            UpstreamUnavailable: No connection in time.
            UpstreamTimeout: Connected, but no status within the progress timeout.
            BadReply: Hung up without an answer, or the answer was not HTTP.
        """
        if self._session is None:
            raise SettingsError(f"the connection to {self.url} is not open; use it with `async with`")
        headers = {name.lower(): value for name, value in request.headers.items()} | self._headers
        for name in _HOP_HEADERS & headers.keys():
            del headers[name]
        if request.body:
            headers.setdefault("content-type", "application/json")
        moments = _Moments()
        try:
            response = await self._session.request(
                request.method,
                self.url + request.path,
                data=request.body or None,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=moments,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self.translated(error) from error
        return HttpReply(response, moments, self)

    def translated(self, error: BaseException) -> UpstreamError:
        """Return our error for one of aiohttp's; what, where, and the next step."""
        limits = self.settings
        kind = error_type(type(error)) or BadReply
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            text = f"no connection to {self.url} within {limits.connect_timeout_s:g} s; is the host up?"
        elif kind is UpstreamTimeout:
            waited_s = limits.progress_timeout_s
            text = f"no byte from {self.url} in {waited_s:g} s; is the server overloaded or loading a model?"
            return UpstreamTimeout(text, url=self.url, after_s=waited_s)
        elif kind is UpstreamUnavailable:
            reason = getattr(error, "strerror", None) or error
            text = f"cannot connect to {self.url} ({reason}); is `ollama serve` running there?"
        else:
            text = f"the answer of {self.url} broke off or is not HTTP ({type(error).__name__}: {error})"
        return kind(text, url=self.url)


def _lower_case(response: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


async def _note_connected(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _event: aiohttp.TraceConnectionCreateEndParams,
) -> None:
    context.trace_request_ctx.connected_s = time.perf_counter()


async def _note_sent(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _event: aiohttp.TraceRequestChunkSentParams,
) -> None:
    context.trace_request_ctx.sent_end_s = time.perf_counter()
