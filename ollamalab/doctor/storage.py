"""Files that decide how long a first load takes: models on their disk, and the driver's compiled code."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path

from ollamalab.doctor.inventory import Disk, DriverCache, Unread

_BLOCK_BYTES = 8 * 2**20
_MOST_BYTES = 512 * 2**20
_MOST_S = 1.0


def read_speed(folder: Path, file: Path) -> Disk | Unread:
    """Return how fast a file comes from its disk, past the page cache and without changing it; blocks.

    Reads at most 512 MiB and for at most a second.

    Args:
        folder: Of the models; for the report.
        file: A large one.
    """
    buffer = mmap.mmap(-1, _BLOCK_BYTES)  # direct reads want memory that begins with a page
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        return Unread(f"{file} cannot be read past the page cache ({error.strerror})")
    count, start_s = 0, time.perf_counter()
    try:
        while count < _MOST_BYTES and time.perf_counter() - start_s < _MOST_S:
            got = os.preadv(descriptor, [buffer], count)
            count += got
            if got < _BLOCK_BYTES:
                break
    except OSError as error:
        return Unread(f"{file} cannot be read past the page cache ({error.strerror})")
    finally:
        os.close(descriptor)
        buffer.close()
    took_s = time.perf_counter() - start_s
    if not count:
        return Unread(f"{file} is empty")
    return Disk(folder=str(folder), file=str(file), read_bytes_per_s=count / took_s)


def driver_cache(environment: Mapping[str, str]) -> DriverCache | Unread:
    """Return where the NVIDIA driver keeps what it has compiled for a process with these variables.

    Source: the section on just-in-time compilation in NVIDIA's CUDA programming guide.
    """
    home = environment.get("HOME")
    chosen = environment.get("CUDA_CACHE_PATH")
    if not chosen and not home:
        return Unread("the server's environment names no HOME")
    folder = Path(chosen) if chosen else Path(home or "", ".nv", "ComputeCache")
    try:
        files = (
            [path.stat().st_size for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        )
    except PermissionError:
        return Unread(f"{folder} belongs to another user")
    return DriverCache(
        folder=str(folder),
        is_off=environment.get("CUDA_CACHE_DISABLE", "0") not in ("", "0"),
        size_bytes=sum(files),
    )
