"""Bodies packed with zstd, which Ollama takes at ``/v1/responses``. Pure."""

from __future__ import annotations

import sys

from ollamalab.errors import SettingsError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_UNPACKED_BYTES = 20 * 2**20
_LIMITS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}  # 8 MiB, as in Ollama

#: More frames than any client sends, each of which costs as much as a thousand bytes; an empty one has nine.
_MOST_FRAMES = 1024

#: Taken at a time, since what is behind the end of a frame is copied.
_PIECE_BYTES = 64 * 1024


def unpacked(data: bytes, most_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
    """Return what one or more zstd frames hold.

    Args:
        data: The frames, one behind the other.
        most_bytes: What they may hold; no more memory than that is used.

    Raises:
        SettingsError: No zstd, cut off, or more than allowed; Ollama's words, for a 400. Far too many frames.
    """
    parts, left, rest = [], most_bytes, memoryview(data)
    frame, frames = None, 0
    while rest:
        if frame is None:
            frame, frames = zstd.ZstdDecompressor(options=_LIMITS), frames + 1
            if frames > _MOST_FRAMES:
                raise SettingsError(f"the zstd body has more than {_MOST_FRAMES} frames")
        piece = rest[:_PIECE_BYTES]
        try:
            part = frame.decompress(piece, max_length=left + 1)
        except zstd.ZstdError as error:
            raise SettingsError("failed to decompress zstd body") from error
        left -= len(part)
        if left < 0:
            raise SettingsError("http: request body too large")
        parts.append(part)
        rest = rest[len(piece) - len(frame.unused_data) :]
        if frame.eof:
            frame = None
    if frame is not None:
        raise SettingsError("unexpected EOF")
    return b"".join(parts)
