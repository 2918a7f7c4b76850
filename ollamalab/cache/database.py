"""The SQLite file of answers: how it is made, opened, and refused. Blocking.

A file is refused, and left as it is, unless it is a cache of ollamalab in a schema that this version
reads and in one piece. It is its owner's alone from the first moment on; SQLite gives the files
beside it (``-wal``, ``-shm``) the same mode.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

from ollamalab.errors import SettingsError

#: Marks a SQLite file as ours (``PRAGMA application_id``).
APPLICATION_ID = int.from_bytes(b"OLLC", "big")
#: Layout of the tables (``PRAGMA user_version``); that of the answers within is ``entry.SCHEMA``.
SCHEMA = 1

_BUSY_S = 2.0  #: to wait while another process writes; a write takes well under a millisecond
_CHECKED_BYTES = 512 * 1024 * 1024  #: a longer file would take seconds: its damage shows when met
_WAL_BYTES = 16 * 1024 * 1024  #: to which the log is cut after a long transaction

_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_VERSION_AT, _APPLICATION_AT = slice(60, 64), slice(68, 72)

# ``totals`` is kept by triggers: counting the rows at each write would take longer the more there are.
_TABLES = f"""
BEGIN;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA};
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    used INTEGER NOT NULL,      -- grows with each use: the least is the least recently used
    expires_s REAL NOT NULL,    -- since 1970
    worthless_s REAL NOT NULL,
    bytes INTEGER NOT NULL,
    sealed BLOB NOT NULL
);
CREATE INDEX answers_used ON answers (used);
CREATE INDEX answers_expires ON answers (expires_s);
CREATE INDEX answers_worthless ON answers (worthless_s);
CREATE TABLE totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER answer_added AFTER INSERT ON answers BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER answer_replaced AFTER UPDATE OF bytes ON answers BEGIN
    UPDATE totals SET bytes = bytes + new.bytes - old.bytes;
END;
CREATE TRIGGER answer_removed AFTER DELETE ON answers BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - old.bytes;
END;
COMMIT;
"""

#: Files that this process has found to be ours, by device and inode. Their header is not read again:
#: closing a file lets go of every lock that the process has on it, SQLite's among them.
_ours: set[tuple[int, int]] = set()


def file_path(text: str) -> Path:
    """Return the path that a person means by a text; "~" is the home folder.

    Raises:
        SettingsError: The home folder of nobody is meant.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"cache file {text}: there is no such home folder; name another file") from error


def open_database(path: Path) -> sqlite3.Connection:
    """Open a file of answers, made if it is not there; folders above it are made for the owner alone.

    Returns:
        A connection for the calling thread, outside any transaction.

    Raises:
        SettingsError: The file cannot be made or used, is not ours, newer, or damaged.
    """
    try:
        if not path.exists():
            _make_folder(path.parent)
            _make(path)
        _refuse_foreign(path)
        _make_private(path)
        return _connect(path)
    except (OSError, ValueError) as error:  # ValueError: no name for a file, as with a null in it
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SettingsError(f"cache file {path}: {reason}; name another file after disk:") from error


def _make_folder(folder: Path) -> None:
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    for above in reversed(missing):  # not mkdir(parents=True), which gives the mode to the last one only
        above.mkdir(mode=0o700, exist_ok=True)


def _make(path: Path) -> None:
    """Make an empty database; whole or not there, whoever else makes it and whenever this is killed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600, and ours alone
    os.close(descriptor)
    temporary = Path(name)
    try:
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.executescript(_TABLES)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        finally:
            connection.close()
        if mode != "wal":
            raise OSError(
                f"{path.parent} is on a file system without shared memory, which SQLite's log needs"
            )
        path.hardlink_to(temporary)  # fails if it is there meanwhile
    except FileExistsError:
        pass  # another process was first
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
    finally:
        temporary.unlink()


def _refuse_foreign(path: Path) -> None:
    """Look at the header before SQLite does, which would begin with recovery and files beside it."""
    if not path.is_file():
        raise SettingsError(f"cache file {path} is not a file; name a file after disk:")
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise SettingsError(f"cache file {path} belongs to another user; name another file after disk:")
    if (status.st_dev, status.st_ino) in _ours:
        return
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    application_id = int.from_bytes(header[_APPLICATION_AT], "big")
    if not header.startswith(_MAGIC) or application_id != APPLICATION_ID:
        raise SettingsError(f"{path} is not a cache of ollamalab; name another file after disk:")
    version = int.from_bytes(header[_VERSION_AT], "big")
    if version != SCHEMA:
        age = "a newer" if version > SCHEMA else "an older"
        raise SettingsError(
            f"{path} was written by {age} ollamalab (schema {version}; this one reads {SCHEMA}); "
            "use that version, or name another file after disk:"
        )
    _ours.add((status.st_dev, status.st_ino))


def _make_private(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        file = path.with_name(name)
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)


def _connect(path: Path) -> sqlite3.Connection:
    connection = None
    try:
        # mode=rw: never made here, where it would get the umask's mode
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None
        )
        # A commit survives the end of the process; the last ones may be lost with the power, never half.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        # Some builds overwrite all that is deleted with zeros, which writes each answer twice.
        connection.execute("PRAGMA secure_delete = FAST")
        _refuse_damaged(connection, path)
    except BaseException as error:
        if connection is not None:
            connection.close()
        if not isinstance(error, sqlite3.Error):
            raise
        if error.sqlite_errorcode in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise SettingsError(_damaged(path, str(error))) from error
        raise SettingsError(f"cache file {path}: {error}; name another file after disk:") from error
    return connection


def _refuse_damaged(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("SELECT entries, bytes FROM totals").fetchone()
    if path.stat().st_size <= _CHECKED_BYTES:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise SettingsError(_damaged(path, finding))


def _damaged(path: Path, finding: str) -> str:
    reason = " ".join(finding.split())
    return f"cache file {path} is damaged ({reason}); delete it, or name another file after disk:"
