"""Applies Ollama's Host and Origin rules to every request, known path or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from ollamalab.protocol.origins import PREFLIGHT_HEADERS, AccessRules

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_CORS = "cors"

_FORBIDDEN = 403
_NO_CONTENT = 204


def guard(rules: AccessRules) -> Middleware:
    """Return the middleware that refuses foreign pages and hosts with 403 and an empty body."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        origin = request.headers.get("Origin")
        cors = rules.cors_headers(origin, host)
        if cors is None:
            return web.Response(status=_FORBIDDEN)
        if cors and request.method == "OPTIONS":
            return web.Response(status=_NO_CONTENT, headers={**cors, **PREFLIGHT_HEADERS})
        if not rules.allows_host(host):
            return web.Response(status=_FORBIDDEN, headers=cors)
        request[_CORS] = cors
        return await handler(request)

    return check


async def finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Give a response the headers that let its page read it; take those that Ollama does not send."""
    response.headers.update(request.get(_CORS, {}))
    response.headers.popall("Server", None)
    if isinstance(response, web.Response) and not response.body:
        response.headers.popall("Content-Type", None)
