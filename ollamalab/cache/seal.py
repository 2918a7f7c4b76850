"""An answer sealed to its key, as stores outside this process keep it.

An answer's own checksum shows that it is whole, not that it belongs to the question: a damaged index,
or a reply read by the wrong caller, would hand out another question's answer. The seal covers both.
"""

from __future__ import annotations

import zlib

from ollamalab.cache.entry import Answer

_SEAL_BYTES = 4


class DamagedAnswer(Exception):
    """What is stored is not what was stored under this key."""


def seal(key: bytes, answer: Answer) -> bytes:
    """Return the answer for storage under its key: CRC-32 of key and answer, then the answer."""
    stored = answer.to_bytes()
    return _checksum(key, stored) + stored


def unseal(key: bytes, sealed: bytes) -> Answer | None:
    """Return a stored answer; None if another version of ollamalab wrote it in another layout.

    Raises:
        DamagedAnswer: Not what was stored under this key.
    """
    stored = sealed[_SEAL_BYTES:]
    if sealed[:_SEAL_BYTES] != _checksum(key, stored):
        raise DamagedAnswer(f"the checksum of a stored answer of {len(stored)} bytes does not fit")
    return Answer.from_bytes(stored)


def _checksum(key: bytes, stored: bytes) -> bytes:
    return zlib.crc32(stored, zlib.crc32(key)).to_bytes(_SEAL_BYTES, "big")
