"""What answers tell of the work they took, by endpoint; and those of ``/v1/responses`` and ``/v1/messages``.

Pure. These two tell their usage at the end, streamed or not: the one in the last event of a stream, which
repeats the whole answer, the other in the last but one. A transcription, the answer to a form, tells nothing.
"""

from __future__ import annotations

import json

import msgspec

from ollamalab.protocol.endpoints import Endpoint
from ollamalab.queueing.work import NOTHING_TOLD, Meter, Work, work_of_whole

#: From the end of a stream: enough for its usage and what follows it.
_END_BYTES = 4096
_USAGE = b'"usage":'  # within a text its quotes would be escaped

_LINES_PER_EVENT = 3  # its name, its data, none
_EVENTS_WITHOUT_A_TOKEN = 4  # at the start of a stream, about


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Answer(msgspec.Struct):
    """A whole answer; ``status`` is only told by ``/v1/responses``."""

    usage: _Usage
    status: str = "completed"


class EventMeter(Meter):
    """Watches the bytes of one answer, whose events have names if it is a stream.

    Args:
        is_stream: Whether it comes in events.
    """

    __slots__ = ("_end",)

    def __init__(self, *, is_stream: bool) -> None:
        super().__init__(is_stream=is_stream, is_openai=True)
        self._end = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        super().feed(chunk)
        self._end = (self._end + chunk)[-_END_BYTES:]

    def whole(self) -> Work | None:
        """Return what the answer took, at its body's end; None if the answer is not whole."""
        if self._tail is None:
            return _of_events(b"".join(self._chunks))
        if not self._tail.is_whole:
            return None
        return _of_usage(self._end) or self.so_far()

    def _lines(self) -> int:
        return max(0, self._newlines // _LINES_PER_EVENT - _EVENTS_WITHOUT_A_TOKEN)


class SilentMeter(Meter):
    """Watches an answer that tells nothing but its end: a transcription is its text alone."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(is_stream=False, is_openai=True)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes; none are kept."""

    def whole(self) -> Work | None:
        """Return what the answer took, at its body's end."""
        return NOTHING_TOLD


def meter_of(endpoint: Endpoint, *, is_stream: bool) -> Meter:
    """Return the meter for an answer of an endpoint."""
    if endpoint.names_events:
        return EventMeter(is_stream=is_stream)
    if endpoint.takes_form:
        return SilentMeter()
    return Meter(is_stream=is_stream, is_openai=endpoint.is_openai)


def work_of_answer(body: bytes, endpoint: Endpoint) -> Work | None:
    """Return what an unstreamed answer of an endpoint took; None if it is not whole."""
    if endpoint.names_events:
        return _of_events(body)
    return NOTHING_TOLD if endpoint.takes_form else work_of_whole(body, is_openai=endpoint.is_openai)


def _of_events(body: bytes) -> Work | None:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return None if answer.status == "failed" else _work(answer.usage)


def _of_usage(end: bytes) -> Work | None:
    """Return what the last usage in the end of a stream says; None if there is none."""
    start = end.rfind(_USAGE)
    if start < 0:
        return None
    try:
        told, _ = json.JSONDecoder().raw_decode(end[start + len(_USAGE) :].decode().lstrip())
        return _work(msgspec.convert(told, type=_Usage))
    except (ValueError, msgspec.MsgspecError):
        return None


def _work(usage: _Usage) -> Work:
    return Work(output_tokens=usage.output_tokens, prompt_tokens=usage.input_tokens)
