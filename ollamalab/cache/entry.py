"""An answer as the cache keeps it: what came from the upstream, when, and for how long it holds."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any

import msgspec

#: First byte of every stored answer; another one is another layout, and a miss.
SCHEMA = 1

_CRC_BYTES = 4
_HEAD_BYTES = 1 + _CRC_BYTES

#: What an answer and each of its pieces take in memory besides their bytes: CPython's objects, roughly.
_ANSWER_OVERHEAD_BYTES, _PIECE_OVERHEAD_BYTES = 1_500, 160


class Answer(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One complete answer.

    Attributes:
        status: HTTP status.
        headers: Names in lower case; content-type and what else belongs to the body.
        pieces: The body as it came: NDJSON lines with their newline, SSE events with their blank line;
            one piece for an answer that was not streamed.
        offsets_s: Seconds from the first byte to each piece, one per piece.
        is_stream: Whether it came as a stream.
        is_openai: Whether it is OpenAI's: JSON or SSE instead of Ollama's JSON or NDJSON.
        stored_s: When it was complete, in seconds since 1970: stores outlive processes.
        ttl_s: Seconds for which it is fresh.
        stale_s: Seconds after those in which it may still be served if the upstream fails.
        upstream_s: Seconds that the upstream took from request to last byte.
        model_key: Which model answered (``ModelName.key``).
        digest: Of that model.
    """

    status: int
    headers: dict[str, str]
    pieces: tuple[bytes, ...]
    offsets_s: tuple[float, ...]
    is_stream: bool
    is_openai: bool
    stored_s: float
    ttl_s: float
    stale_s: float
    upstream_s: float
    model_key: str
    digest: str

    @property
    def expires_s(self) -> float:
        """Moment from which it is no longer fresh, in seconds since 1970."""
        return self.stored_s + self.ttl_s

    @property
    def worthless_s(self) -> float:
        """Moment from which it may not even be served stale, in seconds since 1970."""
        return self.stored_s + self.ttl_s + self.stale_s

    @cached_property
    def size_bytes(self) -> int:
        """About what it takes in memory, with one form of it prepared for replay."""
        body = sum(map(len, self.pieces))
        return 2 * body + len(self.pieces) * _PIECE_OVERHEAD_BYTES + _ANSWER_OVERHEAD_BYTES

    @cached_property
    def prepared(self) -> dict[Any, Any]:
        """Forms of it that ``replay`` has made ready; not stored, gone with the object."""
        return {}

    def to_bytes(self) -> bytes:
        """Return it for a store: schema number, CRC-32 of the rest, MessagePack."""
        packed = _encoder.encode(self)
        return bytes((SCHEMA,)) + zlib.crc32(packed).to_bytes(_CRC_BYTES, "big") + packed

    @staticmethod
    def from_bytes(stored: bytes) -> Answer | None:
        """Return a stored answer; None if it is damaged or of another schema."""
        packed = stored[_HEAD_BYTES:]
        if not stored or stored[0] != SCHEMA:
            return None
        if zlib.crc32(packed) != int.from_bytes(stored[1:_HEAD_BYTES], "big"):
            return None
        try:
            return _decoder.decode(packed)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Answer)
