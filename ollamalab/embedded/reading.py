"""Reads request bodies and what is in them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ollamalab.embedded.bodies import schema_of
from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.options import Options, parse_options
from ollamalab.protocol.requests import MAX_TOP_LOGPROBS, Body, decode_body

_BAD_REQUEST, _INTERNAL_ERROR = 400, 500


#: Key of a request whose answer has begun as a stream, though no line of it is out yet.
STREAMING = "streaming"


class Unreadable(RequestRefused):
    """A request is refused before any part of Ollama proper has seen it, with status 400.

    Under ``/v1`` another layer answers then, in a form that differs in small ways.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_BAD_REQUEST, message)


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Return the body of a request, whatever its content type says.

    Raises:
        Unreadable: It is not what it should be; Ollama's words.
    """
    try:
        return decode_body(await request.read(), kind)
    except SettingsError as error:
        raise Unreadable(str(error)) from error


def read_schema(format: object) -> dict[str, Any] | None:
    """Return the JSON schema that a ``format`` field means; None for any text.

    Raises:
        RequestRefused: It means none; Ollama's status and words.
    """
    try:
        return schema_of(format)
    except SettingsError as error:
        raise RequestRefused(_INTERNAL_ERROR, str(error)) from error


def read_options(raw: dict[str, Any]) -> Options:
    """Return a request's options.

    Raises:
        RequestRefused: One has the wrong type; Ollama's status and words.
    """
    try:
        return parse_options(raw)
    except SettingsError as error:
        raise RequestRefused(_INTERNAL_ERROR, str(error)) from error


def check_top_logprobs(count: int) -> None:
    """Refuse a number of alternatives that nobody answers.

    Raises:
        RequestRefused: It is out of range; Ollama's words.
    """
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise RequestRefused(_BAD_REQUEST, f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}")
