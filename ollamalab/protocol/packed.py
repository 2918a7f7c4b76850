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


def unpacked(data: bytes, most_bytes: int = MAX_UNPACKED_BYTES) -> bytes:
    """Return what one or more zstd frames hold.

    Args:
        data: The frames, one behind the other.
        most_bytes: What they may hold; no more memory than that is used.

    Raises:
        SettingsError: No zstd, cut off, or more than allowed; Ollama's words, for a 400.
    """
    parts, left = [], most_bytes
    while data:
        frame = zstd.ZstdDecompressor(options=_LIMITS)
        try:
            part = frame.decompress(data, max_length=left + 1)
        except zstd.ZstdError as error:
            raise SettingsError("failed to decompress zstd body") from error
        left -= len(part)
        if left < 0:
            raise SettingsError("http: request body too large")
        if not frame.eof:
            raise SettingsError("unexpected EOF")
        parts.append(part)
        data = frame.unused_data
    return b"".join(parts)
