"""Bodies packed with zstd: every frame counts, no byte more than allowed is unpacked."""

import random

import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.packed import unpacked, zstd


def test_frames_add_up_and_an_empty_body_stays_empty() -> None:
    assert unpacked(zstd.compress(b"one ") + zstd.compress(b"two")) == b"one two"
    assert unpacked(b"") == b""


def test_the_limit_holds_over_all_frames() -> None:
    frames = zstd.compress(b"1234") + zstd.compress(b"5678")
    assert unpacked(frames, 8) == b"12345678"
    with pytest.raises(SettingsError, match="too large"):
        unpacked(frames, 7)


def test_a_window_larger_than_ollama_takes_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 24}
    far = zstd.ZstdCompressor(options=options)
    with pytest.raises(SettingsError, match="failed to decompress"):
        unpacked(far.compress(bytes(2**25)) + far.flush())


def test_a_large_body_is_read_in_pieces_whatever_their_borders() -> None:
    noise = random.Random(1).randbytes(200_000)
    frames = zstd.compress(noise) + zstd.compress(b"") + zstd.compress(noise[::-1])
    assert unpacked(frames) == noise + noise[::-1]
    for cut in (len(frames) - 1, 70_000, 3):
        with pytest.raises(SettingsError, match="unexpected EOF"):
            unpacked(frames[:cut])


def test_a_body_of_empty_frames_is_given_up_soon() -> None:
    """Each was unpacked by itself and all behind it copied: 64 MiB of them held the gateway up for hours."""
    empty = zstd.compress(b"")
    assert unpacked(empty * 1000) == b""
    with pytest.raises(SettingsError, match="more than 1024 frames"):
        unpacked(empty * 7_000_000)
