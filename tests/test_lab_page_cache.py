"""The page cache: what was written lies in it, what was dropped does not, and looking changes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollamalab.lab.page_cache import cached_ratio, drop_from_cache

BYTES = 20_000_000


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that was just written."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as written:
        written.write(os.urandom(BYTES))
        written.flush()
        os.fsync(written.fileno())
    return path


@pytest.fixture
def dropped(file: Path) -> Path:
    """A file that was just written and dropped."""
    if not drop_from_cache(file):
        pytest.skip("this file system keeps the pages of its files (tmpfs, for one)")
    return file


def known_ratio(path: Path) -> float:
    ratio = cached_ratio(path)
    assert ratio is not None
    return ratio


def test_a_file_just_written_is_cached(file: Path) -> None:
    assert known_ratio(file) > 0.9


def test_a_dropped_file_is_not_cached_until_it_is_read(dropped: Path) -> None:
    assert known_ratio(dropped) < 0.1
    assert len(dropped.read_bytes()) == BYTES
    assert known_ratio(dropped) > 0.9


def test_looking_reads_nothing_back_in(dropped: Path) -> None:
    """It once did: probes by reads that do not wait made the kernel read ahead, up to the whole file."""
    assert max(known_ratio(dropped) for _ in range(100)) < 0.1


def test_a_part_that_was_read_is_told_as_a_part(dropped: Path) -> None:
    with dropped.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # else the system may read on ahead
        opened.read(BYTES // 2)
    assert 0.4 < known_ratio(dropped) < 0.9


def test_memory_has_nowhere_to_drop_to() -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    path = Path(f"/dev/shm/ollamalab-test-{os.getpid()}")
    try:
        path.write_bytes(bytes(100_000))
        assert cached_ratio(path) == 1.0
        assert not drop_from_cache(path)
    finally:
        path.unlink()


def test_an_empty_file_has_no_share(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert cached_ratio(path) is None
    assert not drop_from_cache(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.gguf"):
        cached_ratio(tmp_path / "missing.gguf")
    with pytest.raises(FileNotFoundError, match=r"missing\.gguf"):
        drop_from_cache(tmp_path / "missing.gguf")
