"""One Ollama server as an Upstream."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from ollamalab.connection.failures import Blame, Unanswered, is_worth_sending_again
from ollamalab.connection.heads import RequestHeads
from ollamalab.connection.pool import Pool
from ollamalab.connection.reply import HttpReply
from ollamalab.connection.settings import ConnectionSettings
from ollamalab.errors import SettingsError
from ollamalab.protocol.upstream import Request
from ollamalab.protocol.urls import server_url


class OllamaConnection:
    """One Ollama server as an Upstream; used with ``async with``.

    Args:
        url: Address of the server, as ``server_url`` reads it.
        settings: Limits and timeouts.
        headers: Sent with every request, such as ``Authorization``; they win over a request's own.

    Raises:
        SettingsError: The address or a header cannot be used.
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
        self._heads = RequestHeads(self.url, headers or {})
        self._blame = Blame(self.url, self.settings)
        self._pool: Pool | None = None

    async def __aenter__(self) -> Self:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        tls = tls_context(self.settings) if parts.scheme == "https" else None
        self._pool = Pool(parts.hostname, parts.port, tls, self.settings, self._blame)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

    @property
    def open_connections(self) -> int:
        """Open sockets to the server, idle ones included."""
        return 0 if self._pool is None else self._pool.open_connections

    async def send(self, request: Request) -> HttpReply:
        """Send one request; return when status and headers are there.

        With ``resend_stale``, a request that a reused connection swallowed without an answer is sent
        once more where the server most likely never had it.

        Raises:
            UpstreamUnavailable: No connection in time.
            UpstreamTimeout: Connected, but no status within the progress timeout.
            BadReply: Hung up without an answer, or the answer was not HTTP.
            SettingsError: Not open, or a request that HTTP cannot carry.
        """
        if self._pool is None:
            raise SettingsError(f"the connection to {self.url} is not open; use it with `async with`")
        pool, head, may_resend = self._pool, self._heads.head_of(request), self.settings.resend_stale
        while True:
            wire = pool.take_idle() or await pool.take()
            is_reused = wire.is_used
            is_head_only = request.method == "HEAD"
            reply = wire.exchange(head, request.body, is_head_only=is_head_only, call=request.call)
            try:
                while not reply.is_started:
                    if reply.failure is not None:
                        raise reply.failure
                    await reply.news()
            except Unanswered as lost:
                may_resend = may_resend and is_worth_sending_again(
                    request.method, is_reused=is_reused, after_s=lost.after_s
                )
                if not may_resend:
                    raise
            except BaseException:
                reply.leave()
                raise
            else:
                return reply
            may_resend = False  # twice would be a loop
            pool.drop_idle()


def tls_context(settings: ConnectionSettings) -> ssl.SSLContext:
    """Return how certificates are checked.

    Raises:
        SettingsError: The file of authorities cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError too: no certificate in it
        reason = error.strerror or error
        raise SettingsError(
            f"ca_file {str(settings.ca_file)!r} cannot be used ({reason}); give a file of PEM certificates"
        ) from error
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
