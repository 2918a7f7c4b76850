"""httpx with a moment for each stage, and its errors as ours: the only file that knows httpx here."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from ollamalab.client.stages import Moments
from ollamalab.errors import BadReply, UpstreamError, UpstreamTimeout, UpstreamUnavailable

#: The request that this task is making; its connection is made in the same task.
_current: ContextVar[Moments] = ContextVar("moments")

#: Gives the addresses of a host's name for a port, the preferred one first; an ``OSError`` if it has none.
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

#: httpcore's trace event to the moment that it marks.
_EVENTS = {
    "connection.connect_tcp.started": "lookup_s",
    "connection.connect_tcp.complete": "connected_s",
    "connection.start_tls.started": "tls_s",
    "connection.start_tls.complete": "secured_s",
    "http11.send_request_headers.started": "send_s",
    "http11.send_request_body.complete": "sent_end_s",
    "http11.receive_response_headers.complete": "headers_s",
}

#: httpx's error to ours; the first row that fits wins, so the special stand before the general.
_ERRORS: tuple[tuple[type[Exception], type[UpstreamError]], ...] = (
    (httpx.ConnectTimeout, UpstreamUnavailable),  # nothing was sent: as good as refused
    (httpx.PoolTimeout, UpstreamUnavailable),
    (httpx.TimeoutException, UpstreamTimeout),
    (httpx.ConnectError, UpstreamUnavailable),
    (httpx.ProxyError, UpstreamUnavailable),
    (httpx.UnsupportedProtocol, UpstreamUnavailable),
    (httpx.InvalidURL, UpstreamUnavailable),
    (httpx.NetworkError, BadReply),  # the connection stood, then broke
    (httpx.ProtocolError, BadReply),
    (httpx.DecodingError, BadReply),
    (httpx.TooManyRedirects, BadReply),
    (httpx.HTTPStatusError, BadReply),
)


def error_type(foreign: type[BaseException]) -> type[UpstreamError] | None:
    """Return what an error of httpx becomes here; None if nobody thought of it."""
    return next((ours for theirs, ours in _ERRORS if issubclass(foreign, theirs)), None)


async def system_lookup(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name as the system knows them; see ``Lookup``."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class StagedTransport:
    """One connection pool to one server; marks the moments of each exchange.

    Args:
        url: Base URL of the server.
        headers: Sent with every request.
        connect_timeout_s: For a lookup and for a connection, each.
        progress_timeout_s: Without a byte, before the reply or inside it.
        ssl_context: For https; None trusts the usual authorities.
        lookup: Looks names up; addresses need none.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: dict[str, str],
        connect_timeout_s: float,
        progress_timeout_s: float,
        ssl_context: ssl.SSLContext | None,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._progress_timeout_s = progress_timeout_s
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Accept-Encoding": "identity", "User-Agent": "ollamalab", **headers},
            timeout=httpx.Timeout(progress_timeout_s, connect=connect_timeout_s, pool=connect_timeout_s),
            transport=_Transport(ssl_context or httpx.create_ssl_context(trust_env=False), lookup),
            trust_env=False,  # no proxies, whatever the environment says
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: bytes, moments: Moments
    ) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Send a request; give status and body, whose stages are marked in ``moments``.

        Raises:
            UpstreamUnavailable: No connection.
            UpstreamTimeout: No byte within the progress timeout.
            BadReply: Hung up, or not HTTP.
        """

        async def mark(event: str, _details: dict[str, Any]) -> None:
            if name := _EVENTS.get(event):
                setattr(moments, name, time.perf_counter())

        token = _current.set(moments)
        try:
            with self._translated():
                headers = {"Content-Type": "application/json"} if body else None
                request = self._http.build_request(
                    method, path, content=body, headers=headers, extensions={"trace": mark}
                )
                moments.prepared_s = time.perf_counter()
                response = await self._http.send(request, stream=True)
            try:
                yield response.status_code, self._chunks(response)
            finally:
                await response.aclose()
        finally:
            _current.reset(token)

    async def _chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        with self._translated():
            async for chunk in response.aiter_raw():
                yield chunk

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> UpstreamError:
        kind = error_type(type(error)) or BadReply
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if kind is UpstreamTimeout:
            waited_s = self._progress_timeout_s
            text = f"no byte from {self._url} in {waited_s:g} s; is the server overloaded or loading a model?"
            return UpstreamTimeout(text, url=self._url, after_s=waited_s)
        if isinstance(error, httpx.ConnectTimeout):
            text = f"no connection to {self._url} within {self._connect_timeout_s:g} s; is the host up?"
        elif kind is UpstreamUnavailable:
            text = f"cannot connect to {self._url} ({detail}); is `ollama serve` running there?"
        else:
            text = f"the answer of {self._url} broke off or is not HTTP ({detail})"
        return kind(text, url=self._url)


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's transport over a pool that looks names up as a stage of its own.

    httpx has no argument for httpcore's ``network_backend``, so the pool is put in its place here; a
    test sees to it that the lookup keeps its moment.
    """

    def __init__(self, ssl_context: ssl.SSLContext, lookup: Lookup) -> None:
        super().__init__(verify=ssl_context)
        self._pool = httpcore.AsyncConnectionPool(ssl_context=ssl_context, network_backend=_Backend(lookup))


class _Backend(httpcore.AsyncNetworkBackend):
    """Looks a name up, marks the moment, then connects to its addresses in turn."""

    def __init__(self, lookup: Lookup) -> None:
        self._connector = httpcore.AnyIOBackend()
        self._lookup = lookup

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers."""
        refusal = httpcore.ConnectError(f"{host} has no address")
        for address in await _addresses(self._lookup, host, port, timeout):
            try:
                return await self._connector.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.ConnectError as error:
                refusal = error
        raise refusal


async def _addresses(lookup: Lookup, host: str, port: int, timeout_s: float | None) -> Sequence[str]:
    """Return the addresses of a name, marking when they were known; of an address, itself."""
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    try:
        async with asyncio.timeout(timeout_s):
            found = await lookup(host, port)
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(f"looking up {host} took too long") from error
    except OSError as error:
        raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
    _current.get().resolved_s = time.perf_counter()
    return found
