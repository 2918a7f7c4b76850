"""Reads request bodies."""

from __future__ import annotations

from aiohttp import web

from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.requests import MAX_TOP_LOGPROBS, Body, decode_body

_BAD_REQUEST = 400


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the body of a request, whatever its content type says.

    Raises:
        RequestRefused: It is not what it should be; Ollama's words.
    """
    try:
        return decode_body(await request.read(), kind)
    except SettingsError as error:
        raise RequestRefused(_BAD_REQUEST, str(error)) from error


def check_top_logprobs(count: int) -> None:
    """Refuse a number of alternatives that nobody answers.

    Raises:
        RequestRefused: It is out of range; Ollama's words.
    """
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise RequestRefused(_BAD_REQUEST, f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
