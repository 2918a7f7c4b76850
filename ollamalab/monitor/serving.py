"""Serving pages that can only be read, by Ollama's Host and Origin rules."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from ollamalab.gateway.server import HttpServer, Incoming, Outgoing
from ollamalab.listening import access_rules, url_of
from ollamalab.protocol.origins import PREFLIGHT_HEADERS, AccessRules

_OK, _NO_CONTENT = 200, 204
_FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED = 403, 404, 405
_READ = ("GET", "HEAD")

#: Requests that are being answered get so long when the monitor ends.
_STOP_S = 1.0

Pages = Mapping[str, Callable[[], tuple[str, bytes]]]
"""Path to what makes content type and body."""


@asynccontextmanager
async def serving(listener: socket.socket, pages: Pages) -> AsyncIterator[str]:
    """Answer requests for pages; give the URL.

    Args:
        listener: Bound; closed by the caller.
        pages: What there is; everything else is 404.
    """
    server = HttpServer(_Site(access_rules(listener), pages).handle)
    await server.start(listener)
    try:
        yield url_of(listener)
    finally:
        await server.stop(_STOP_S)


class _Site:
    def __init__(self, rules: AccessRules, pages: Pages) -> None:
        self._rules = rules
        self._pages = pages

    async def handle(self, incoming: Incoming, outgoing: Outgoing) -> None:
        """Answer one request."""
        status, headers, body = self._answer(incoming)
        outgoing.start(status, headers, length=len(body))
        outgoing.end(body)

    def _answer(self, incoming: Incoming) -> tuple[int, Mapping[str, str], bytes]:
        if incoming.problem is not None:
            return incoming.problem.status, {}, b""
        host, origin = incoming.headers.get("host", ""), incoming.headers.get("origin")
        cors = self._rules.cors_headers(origin, host)
        if cors is None:
            return _FORBIDDEN, {}, b""
        if cors and incoming.method == "OPTIONS":
            return _NO_CONTENT, {**cors, **PREFLIGHT_HEADERS}, b""
        if not self._rules.allows_host(host):
            return _FORBIDDEN, cors, b""
        page = self._pages.get(incoming.target.partition("?")[0])
        if page is None:
            return _NOT_FOUND, cors, b"404 page not found"
        if incoming.method not in _READ:
            return _NOT_ALLOWED, {**cors, "Allow": ", ".join(_READ)}, b"405 method not allowed"
        content_type, body = page()
        return _OK, {**cors, "Content-Type": content_type}, body
