"""What a client reads when its request fails: statuses and bodies in the form of its API. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ollamalab.errors import (
    NoUpstream,
    OllamaLabError,
    QueueFull,
    RequestRefused,
    SettingsError,
    ShareExceeded,
    UpstreamError,
    UpstreamTimeout,
    WaitTimeout,
)
from ollamalab.protocol.bodies import error_body, openai_error_body
from ollamalab.protocol.lines import encode_line

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain"

_BAD_REQUEST, _TOO_MANY, _INTERNAL_ERROR, _UNAVAILABLE, _TIMEOUT = 400, 429, 500, 503, 504

#: Our error to its status; the first row that fits wins, so the special stand before the general.
#: An upstream that breaks off before its first byte is no upstream: 503 as for one that refuses.
_STATUSES: tuple[tuple[type[OllamaLabError], int], ...] = (
    (ShareExceeded, _TOO_MANY),
    (QueueFull, _UNAVAILABLE),
    (WaitTimeout, _TIMEOUT),
    (UpstreamTimeout, _TIMEOUT),
    (UpstreamError, _UNAVAILABLE),
    (SettingsError, _BAD_REQUEST),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    """A whole answer that needs no upstream; header names in lower case."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def failure_of(error: OllamaLabError, *, is_openai: bool) -> Whole:
    """Return the answer to a request that failed before its first byte.

    Args:
        error: What the parts raised.
        is_openai: Whether the client speaks ``/v1``.
    """
    if isinstance(error, RequestRefused):
        status = error.status
    else:
        status = next((status for kind, status in _STATUSES if isinstance(error, kind)), _INTERNAL_ERROR)
    headers = {"content-type": JSON_TYPE}
    if isinstance(error, QueueFull | NoUpstream) and error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return Whole(status=status, body=_body(str(error), status, is_openai=is_openai), headers=headers)


def text_answer(status: int, text: str, headers: Mapping[str, str] | None = None) -> Whole:
    """Return a plain text, as Ollama's router answers unknown paths and wrong verbs."""
    return Whole(status=status, body=text.encode(), headers={"content-type": TEXT_TYPE, **(headers or {})})


def error_line(
    error: OllamaLabError, *, is_openai: bool, is_mid_line: bool, names_events: bool = False
) -> bytes:
    """Return the last line of a stream that failed after its first byte.

    Args:
        error: What happened.
        is_openai: Whether the stream is SSE.
        is_mid_line: Whether the stream broke inside a line or an event, which then is ended first.
        names_events: Whether the stream's events have names: clients of such APIs skip those without.
    """
    if not is_openai:
        return b"\n" * is_mid_line + encode_line(error_body(str(error)))
    body = openai_error_body(str(error), _INTERNAL_ERROR)
    name = b"event: error\n" if names_events else b""
    data = msgspec.json.encode({"type": "error", **body} if names_events else body)
    return b"\n\n" * is_mid_line + name + b"data: " + data + b"\n\n"


def _body(message: str, status: int, *, is_openai: bool) -> bytes:
    if is_openai:
        return msgspec.json.encode(openai_error_body(message, status)) + b"\n"
    return msgspec.json.encode(error_body(message))
