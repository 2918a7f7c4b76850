"""Turns what goes wrong before the first byte into statuses and bodies, in the form of each API."""

from __future__ import annotations

import html
import logging
import re

import msgspec
from aiohttp import web

from ollamalab.embedded.listing import json_response
from ollamalab.embedded.openai_dialect import JSON_TYPE
from ollamalab.embedded.origin import Handler
from ollamalab.embedded.reading import STREAMING, Unreadable
from ollamalab.errors import OllamaLabError, QueueFull, RequestRefused
from ollamalab.protocol.bodies import error_body, openai_error_body

logger = logging.getLogger(__name__)

_INTERNAL_ERROR, _UNAVAILABLE = 500, 503
_MOVED, _TEMPORARILY_MOVED = 301, 307
_SLASHES = re.compile("/+")


@web.middleware
async def answer_failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with the error that a handler raised."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return await _elsewhere(request) or _text(404, "404 page not found")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods, reverse=True))
        return _text(405, "405 method not allowed", {"Allow": allowed})
    except web.HTTPException as error:
        return _failure(request, error.status, error.text or error.reason)
    except Unreadable as error:
        return _unread(request, error.status, str(error))
    except RequestRefused as error:
        return _failure(request, error.status, str(error))
    except QueueFull as error:
        return _failure(request, _UNAVAILABLE, str(error))
    except OllamaLabError as error:
        return _failure(request, _INTERNAL_ERROR, str(error))
    except ConnectionError:
        raise  # the client has gone: nobody is left to read an answer
    except Exception as error:
        logger.exception("event=handler_failed path=%s", request.path)
        return _failure(request, _INTERNAL_ERROR, f"internal error: {type(error).__name__}: {error}")


async def _elsewhere(request: web.Request) -> web.Response | None:
    """Return a redirection if the path has a slash too many, as Ollama's router gives one."""
    path = _SLASHES.sub("/", request.path).rstrip("/") or "/"
    if path == request.path:
        return None
    found = await request.app.router.resolve(request.clone(rel_url=path))
    if found.http_exception is not None:
        return None
    is_double = "//" in request.path
    if request.method != "GET":
        return web.Response(status=_TEMPORARILY_MOVED, headers={"Location": path})
    status, reason = (
        (_TEMPORARILY_MOVED, "Temporary Redirect") if is_double else (_MOVED, "Moved Permanently")
    )
    return web.Response(
        status=status,
        body=f'<a href="{html.escape(path)}">{reason}</a>.\n\n'.encode(),
        headers={"Location": path, "Content-Type": "text/html; charset=utf-8"},
    )


def _failure(request: web.Request, status: int, message: str) -> web.Response:
    if request.path.startswith("/v1/"):
        body = msgspec.json.encode(openai_error_body(message, status)) + b"\n"
        return web.Response(status=status, body=body, headers={"Content-Type": JSON_TYPE})
    response = json_response(error_body(message), status=status)
    if request.get(STREAMING):
        response.headers["Content-Type"] = JSON_TYPE  # without the charset that it has elsewhere
    return response


def _unread(request: web.Request, status: int, message: str) -> web.Response:
    """Return an error of the layer that reads requests: under ``/v1``, too, it writes as ``/api`` does."""
    is_openai = request.path.startswith("/v1/")
    return json_response(
        openai_error_body(message, status) if is_openai else error_body(message), status=status
    )


def _text(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, body=text.encode(), headers={"Content-Type": "text/plain", **(headers or {})}
    )
