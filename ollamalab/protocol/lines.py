"""NDJSON lines and what the final one says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from ollamalab.errors import BadReply
from ollamalab.protocol.durations import to_s
from ollamalab.records import ServerTimings

#: Longest line that is still buffered; llama.cpp events may be up to 8 MB.
MAX_LINE_BYTES = 64 * 1024 * 1024


def encode_line(value: Mapping[str, Any]) -> bytes:
    """Return one NDJSON line, ended by a newline, without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class LineSplitter:
    """Cuts a byte stream into lines, whatever the borders of its chunks."""

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._held = bytearray()
        self._max_line_bytes = max_line_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that this chunk completes, without their newline; empty ones left out.

        Raises:
            BadReply: A line grows past the limit.
        """
        if not self._held and chunk.endswith(b"\n"):
            return [line for line in chunk.split(b"\n") if line.strip()]
        self._held += chunk
        *whole, rest = self._held.split(b"\n")
        self._held = rest
        if len(rest) > self._max_line_bytes:
            raise BadReply(f"a line grew past {self._max_line_bytes} bytes without a newline")
        return [bytes(line) for line in whole if line.strip()]

    def rest(self) -> bytes:
        """Return what is left after the last newline: the end of a cut stream, or nothing."""
        return bytes(self._held)


def content_of(line: Mapping[str, Any]) -> str:
    """Return the text that a line of ``/api/chat`` or ``/api/generate`` adds, thinking included."""
    message = line.get("message")
    if isinstance(message, dict):
        return f"{message.get('thinking') or ''}{message.get('content') or ''}"
    return f"{line.get('thinking') or ''}{line.get('response') or ''}"


def timings_of(final: Mapping[str, Any]) -> ServerTimings:
    """Return the six metrics of a final line in seconds; what it left out is None."""
    return ServerTimings(
        total_s=to_s(final.get("total_duration")),
        load_s=to_s(final.get("load_duration")),
        prompt_tokens=final.get("prompt_eval_count"),
        prompt_eval_s=to_s(final.get("prompt_eval_duration")),
        eval_tokens=final.get("eval_count"),
        eval_s=to_s(final.get("eval_duration")),
    )


#: Types of the event that ends a stream of ``/v1/responses`` or ``/v1/messages`` as it should.
_LAST_TYPES = ("message_stop", "response.completed", "response.incomplete")
_ERROR_TYPES = ("error", "response.failed")

_EVENT_ENDS = (b"\n\n", b"\n\r\n")


class StreamTail:
    """Keeps the last line of a stream that passes by, to tell at its end whether it is whole.

    Of a line longer than ``MAX_LINE_BYTES`` only the begin and the latest bytes are kept; it counts as no
    end of a stream.

    Args:
        is_openai: Whether it is SSE, which ends with ``data: [DONE]`` or an event of a last type, or
            NDJSON, whose last line says ``"done": true``.
    """

    __slots__ = ("_is_openai", "_line")

    def __init__(self, *, is_openai: bool) -> None:
        self._is_openai = is_openai
        self._line: bytes | bytearray = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        text = chunk.rstrip(b"\r\n")
        start = text.rfind(b"\n")
        if start >= 0:
            self._line = chunk[start + 1 :]
        elif not self._line or (text and self._line.endswith(b"\n")):
            self._line = chunk
        else:
            self._add(chunk)

    @property
    def is_mid_line(self) -> bool:
        """Whether the last byte was not the end of a line; under SSE, that of an event: the empty line."""
        return bool(self._line) and not self._line.endswith(_EVENT_ENDS if self._is_openai else b"\n")

    @property
    def is_whole(self) -> bool:
        """Whether the stream has come to its proper end."""
        if not self._is_openai:
            return self.final() is not None
        if self._line.strip() == b"data: [DONE]":
            return True
        value = self._value() if b'"type"' in self._line else None
        return value is not None and value.get("type") in _LAST_TYPES

    @property
    def is_error(self) -> bool:
        """Whether the last line tells of an error; what sent it has said all it will."""
        if b'"error"' not in self._line:
            return False
        value = self._value()
        return value is not None and ("error" in value or value.get("type") in _ERROR_TYPES)

    def final(self) -> dict[str, Any] | None:
        """Return the final line of NDJSON; None if the last line is another."""
        if b'"done"' not in self._line:
            return None
        value = self._value()
        return value if value is not None and value.get("done") is True else None

    def _add(self, chunk: bytes) -> None:
        """Take more of a line that has begun; in place, or a line in many chunks would be copied as often."""
        if isinstance(self._line, bytes):
            self._line = bytearray(self._line)
        self._line += chunk
        if len(self._line) > MAX_LINE_BYTES:
            del self._line[1 : -len(chunk)]

    def _value(self) -> dict[str, Any] | None:
        try:
            value = msgspec.json.decode(self._line.strip().removeprefix(b"data:"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return value if isinstance(value, dict) else None
