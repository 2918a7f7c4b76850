"""Whether a model file lies in the page cache, and taking it out of it.

A first-ever load reads the file from the disk; every later one finds it in memory. Dropping needs no
privileges: a file's clean pages may be given up by anybody who can read it.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROBES = 256


def cached_ratio(path: Path) -> float | None:
    """Return the share of a file that lies in the page cache; None where the system cannot tell.

    Probed at evenly spaced pages with reads that refuse to wait for the disk.
    """
    if not hasattr(os, "preadv"):
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        hits = 0
        for probe in range(_PROBES):
            try:
                os.preadv(descriptor, [bytearray(1)], size * probe // _PROBES, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
            hits += 1
        return hits / _PROBES
    except OSError:
        return None
    finally:
        os.close(descriptor)


def drop_from_cache(path: Path) -> bool:
    """Take a file out of the page cache; return whether it worked.

    Pages that another process has mapped stay, so nothing that was loaded from it may still run.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    ratio = cached_ratio(path)
    return ratio is not None and ratio < 0.1
