"""Sends answers: a stream with each line flushed at once, or the whole in one piece."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from aiohttp import web

from ollamalab.embedded.dialect import Dialect, Finished
from ollamalab.embedded.events import Ending, Piece, TokenProbability
from ollamalab.errors import EngineError, OllamaLabError

Parts = AsyncGenerator[Piece | Finished]
"""The pieces of an answer, then how it finished."""


async def send_answer(
    request: web.Request, dialect: Dialect, parts: Parts, *, stream: bool
) -> web.StreamResponse:
    """Send an answer and return the response.

    What goes wrong before the first byte is raised, so that it becomes a status; what goes wrong after
    it becomes the stream's last line.

    Args:
        request: Whom to answer.
        dialect: How to write it.
        parts: What to write; closed in any case, which stops the engine.
        stream: Whether each piece is sent at once.
    """
    async with aclosing(parts):
        return await (_send_stream(request, dialect, parts) if stream else _whole(dialect, parts))


def send_bare(dialect: Dialect, done_reason: str, *, stream: bool) -> web.Response:
    """Return the answer to a request that generates nothing, such as "load" or "unload"."""
    finished = Finished(Ending(done_reason=done_reason))
    if stream and dialect.is_bare_streamed:
        return _response(dialect.ending(finished, time.time_ns()), dialect.stream_type)
    return _response(dialect.whole(finished, time.time_ns()), dialect.whole_type)


async def _send_stream(request: web.Request, dialect: Dialect, parts: Parts) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": dialect.stream_type})
    part: Piece | Finished | None = await anext(parts)  # before the headers: a failure here is a status
    await response.prepare(request)
    try:
        while part is not None:
            now_ns = time.time_ns()
            if isinstance(part, Piece):
                await response.write(dialect.piece(part, now_ns))
            else:
                await response.write(dialect.ending(part, now_ns))
            part = await anext(parts, None)
    except OllamaLabError as error:
        await response.write(dialect.failure(str(error)))
    await response.write_eof()
    return response


async def _whole(dialect: Dialect, parts: Parts) -> web.Response:
    content: list[str] = []
    thinking: list[str] = []
    logprobs: list[TokenProbability] = []
    async for part in parts:
        piece = part.ending.piece if isinstance(part, Finished) else part
        content.append(piece.content)
        thinking.append(piece.thinking)
        logprobs += piece.logprobs
        if isinstance(part, Finished):
            everything = Piece("".join(content), "".join(thinking), tuple(logprobs))
            finished = replace(part, ending=replace(part.ending, piece=everything))
            return _response(dialect.whole(finished, time.time_ns()), dialect.whole_type)
    raise EngineError("the answer has no end")


def _response(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type})
