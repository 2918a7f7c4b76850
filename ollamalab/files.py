"""Files that are whole or not there.

Bytes go to a temporary name beside their place, reach the disk, and are renamed; a reader, a crash
or a full disk never meets half a file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from ollamalab.errors import RunError


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is whole, and none appears before all are on the disk.

    They are renamed into place in the given order: put last the file that makes the others count.

    Args:
        files: Path to content; missing folders are made.

    Raises:
        RunError: They cannot be written (full disk, no permission); the places are as before.
    """
    staged = {path.with_name(f".{path.name}.{os.getpid()}.tmp"): path for path in files}
    path = Path()
    try:
        for temporary, path in staged.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        for temporary, path in staged.items():
            temporary.replace(path)
        for folder in {path.parent for path in files}:
            _sync_folder(folder)
    except OSError as error:
        raise RunError(
            f"cannot save {path}: {error.strerror or error}; nothing was written there; "
            "free some space or choose another place"
        ) from error
    finally:
        for temporary in staged:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write one file so that it is whole or not there; raises like ``write_together``."""
    write_together({path: content})


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where its file system can: some refuse to sync one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
