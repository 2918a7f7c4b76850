"""Whether what came from an upstream is a complete answer, and its pieces. Pure.

Complete is a stream whose last line says ``done`` (``[DONE]`` under ``/v1``), all of whose lines are
JSON, and none of which tells an error; or one object that says as much. What says nothing and counts
no token either is left out too: a model that has nothing to say still spends a token on its end. So is
what does not have the shape of an Ollama's answer, of which no other form could be made.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

from ollamalab.cache import sse

_NOT_AN_ANSWER = ("load", "unload")


class _Called(msgspec.Struct):
    function: dict[str, Any] | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Called] | None = None


class _Logprobs(msgspec.Struct):
    content: list[Any] | None = None


class _Line(msgspec.Struct):
    """A line, or the whole, of ``/api/generate`` and ``/api/chat``."""

    response: str = ""
    thinking: str = ""
    message: _Said | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[Any] | None = None
    logprobs: list[Any] | None = None
    done: bool = False
    done_reason: str = ""
    eval_count: int = 0
    error: Any = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Said | None = None
    message: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    """An event, or the whole, of ``/v1``; ``choices`` is there even if empty."""

    choices: list[_Choice]
    usage: _Usage | None = None
    error: Any = None


_parse_line = msgspec.json.Decoder(_Line).decode
_parse_event = msgspec.json.Decoder(_Event).decode


def complete_pieces(body: bytes, *, is_stream: bool, is_openai: bool) -> tuple[bytes, ...] | None:
    """Return the lines or events of a complete answer, one piece if it is no stream.

    Args:
        body: All bytes of a reply of status 200 whose body ended properly.
        is_stream: Whether a stream was asked for.
        is_openai: Whether it is OpenAI's.

    Returns:
        None if the answer is not complete.
    """
    pieces = _cut(body, sse.END if is_openai else b"\n") if is_stream else (body,)
    if not pieces:
        return None
    try:
        if is_openai:
            is_complete = _is_openai_complete(pieces, is_stream=is_stream)
        else:
            is_complete = _is_ollama_complete(pieces)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return pieces if is_complete else None


def piece_offsets_s(
    pieces: Sequence[bytes], chunks: Sequence[bytes], offsets_s: Sequence[float]
) -> tuple[float, ...]:
    """Return when each piece was there in full: with the chunk that held its last byte.

    Args:
        pieces: What the chunks hold, joined.
        chunks: As they arrived.
        offsets_s: Seconds from the first byte to each chunk.
    """
    chunk_ends = list(accumulate(map(len, chunks)))
    return tuple(offsets_s[bisect_left(chunk_ends, end)] for end in accumulate(map(len, pieces)))


def _cut(body: bytes, end: bytes) -> tuple[bytes, ...]:
    *pieces, rest = body.split(end)
    return (*(piece + end for piece in pieces), *((rest,) if rest else ()))


def _is_ollama_complete(pieces: Sequence[bytes]) -> bool:
    lines = [_parse_line(piece) for piece in pieces]
    last = lines[-1]
    return (
        last.done
        and last.done_reason not in _NOT_AN_ANSWER
        and not any(line.done for line in lines[:-1])
        and all(line.error is None for line in lines)
        and (last.eval_count > 0 or any(_says_line(line) for line in lines))
    )


def _is_openai_complete(pieces: Sequence[bytes], *, is_stream: bool) -> bool:
    if is_stream:
        *events, last = pieces
        if last != sse.DONE or not all(event.startswith(b"data: {") for event in events):
            return False
        parsed = [_parse_event(sse.data_of(event)) for event in events]
    else:
        parsed = [_parse_event(pieces[0])]
    choices = [choice for event in parsed for choice in event.choices]
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    return (
        bool(reasons)
        and reasons[-1] not in _NOT_AN_ANSWER
        and all(event.error is None for event in parsed)
        and (
            any(choice.text or _says(choice.delta) or _says(choice.message) for choice in choices)
            or any(event.usage and event.usage.completion_tokens for event in parsed)
        )
    )


def _says_line(line: _Line) -> bool:
    message = None if line.message is msgspec.UNSET else line.message
    return bool(line.response or line.thinking or line.tool_calls) or _says(message)


def _says(said: _Said | None) -> bool:
    return said is not None and bool(said.content or said.thinking or said.reasoning or said.tool_calls)
