"""Files that are whole or not there.

Bytes go to a temporary name beside their place, reach the disk, and are renamed; a reader, a crash
or a full disk never meets half a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

from ollamalab.errors import RunError

#: Nobody else's files end so: they can be deleted wherever they lie.
_PARTIAL = ".ollamalab.tmp"


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is whole, and none appears before all are on the disk.

    They are renamed into place in the given order: put last the file that makes the others count.

    Args:
        files: Path to content; missing folders are made.

    Raises:
        RunError: They cannot be written (full disk, no permission); the places are as before.
    """
    staged = {partial_name(path): path for path in files}
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


def partial_name(path: Path) -> Path:
    """Return the name beside a file's place under which this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")


def sweep_partials(folder: Path) -> None:
    """Delete the partial files that processes left which are gone, ended by ``kill -9`` or a power cut.

    One that is locked stays, too: its process may be in another container, where pids mean others.
    """
    for found in folder.glob(f".*{_PARTIAL}"):
        pid = found.name.removesuffix(_PARTIAL).rpartition(".")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError), found.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where its file system can: some refuse to sync one."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
