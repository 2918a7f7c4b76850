"""Answers in a SQLite file, bounded in entries and bytes. Blocking, for one thread.

Any number of processes may have the file open. A read takes no lock and writes nothing: which answers
were used is noted here, and written with the next answer or sweep. So the order of eviction is that
of use, but for what other processes have used in the last moments.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from ollamalab.cache.database import open_database
from ollamalab.cache.entry import Answer
from ollamalab.cache.seal import DamagedAnswer, seal, unseal

_ROW_BYTES = 200  #: of a row besides the sealed answer: its key, its other columns, four indexes
_SWEPT_AT_ONCE = 200  #: rows per transaction: a few milliseconds
_MOST_NOTED = 10_000  #: uses not yet written; the oldest, being the least recent, are forgotten

_GET = "SELECT sealed FROM answers WHERE key = ? AND worthless_s > ?"
_PUT = """
INSERT INTO answers (key, used, expires_s, worthless_s, bytes, sealed)
VALUES (?, (SELECT ifnull(max(used), 0) + 1 FROM answers), ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET used = excluded.used, expires_s = excluded.expires_s,
    worthless_s = excluded.worthless_s, bytes = excluded.bytes, sealed = excluded.sealed
"""
_DELETE = "DELETE FROM answers WHERE key = ?"
_MOST_USED = "SELECT ifnull(max(used), 0) FROM answers"
_USE = "UPDATE answers SET used = ? WHERE key = ?"
_TOTALS = "SELECT entries, bytes FROM totals"
_LONGEST_EXPIRED = "SELECT id FROM answers WHERE expires_s <= ? ORDER BY expires_s LIMIT 1"
_LEAST_USED = "SELECT id FROM answers ORDER BY used LIMIT 1"
_EVICT = "DELETE FROM answers WHERE id = ?"
_HAS_WORTHLESS = "SELECT EXISTS (SELECT 1 FROM answers WHERE worthless_s <= ?)"
_SWEEP = "DELETE FROM answers WHERE id IN (SELECT id FROM answers WHERE worthless_s <= ? LIMIT ?)"


class AnswerFile:
    """A file of answers; every method may raise ``sqlite3.Error``, and has then changed nothing.

    Attributes:
        entries: Answers in the file as of the last write or sweep.
        bytes: Of these answers, as ``max_bytes`` counts them.
        evicted: Answers that this object removed to make room.
        expired: Answers that this object removed because their time was over.

    Args:
        path: Where it is, or is to be made.
        max_entries: Answers kept at once.
        max_bytes: Bytes they may take in the file; a larger answer is not kept.
        clock: Seconds since 1970.

    Raises:
        SettingsError: The file cannot be used; the message says why and what to do.
    """

    def __init__(self, path: Path, *, max_entries: int, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._noted: dict[bytes, None] = {}  # keys used since the last write, least recent first
        self._connection = open_database(path)
        self.entries, self.bytes = self._totals()
        self.evicted = 0
        self.expired = 0

    def get(self, key: bytes) -> Answer | None:
        """Return the answer of a key, fresh or still of use.

        Raises:
            DamagedAnswer: What was there was not whole, and has been removed.
        """
        row = self._connection.execute(_GET, (key, self._clock())).fetchone()
        if row is None:
            return None
        try:
            answer = unseal(key, row[0])
        except DamagedAnswer:
            self.delete(key)
            raise
        self._noted.pop(key, None)
        self._noted[key] = None
        if len(self._noted) > _MOST_NOTED:
            del self._noted[next(iter(self._noted))]
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in place of any other of its key, and let others go as the bounds ask."""
        sealed = seal(key, answer)
        size_bytes = len(sealed) + _ROW_BYTES
        with self._transaction():
            self._write_uses()
            if size_bytes > self._max_bytes:
                self._connection.execute(_DELETE, (key,))
                evicted = 0
            else:
                row = (key, answer.expires_s, answer.worthless_s, size_bytes, sealed)
                self._connection.execute(_PUT, row)
                evicted = self._make_room()
            totals = self._totals()
        self._noted.clear()
        self.entries, self.bytes = totals
        self.evicted += evicted

    def delete(self, key: bytes) -> None:
        """Remove the answer of a key, if there is one."""
        with self._transaction():
            self._connection.execute(_DELETE, (key,))
            totals = self._totals()
        self.entries, self.bytes = totals

    def clear(self) -> int:
        """Remove every answer and give the space back; return how many there were."""
        with self._transaction():
            count = self._connection.execute("DELETE FROM answers").rowcount
        self._noted.clear()
        self.entries, self.bytes = 0, 0
        with contextlib.suppress(sqlite3.OperationalError):  # others write, or keep an old state in view
            self._connection.execute("VACUUM")  # of an empty file: next to nothing is copied
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return count

    def sweep_some(self) -> int:
        """Remove some of what is past its ``worthless_s``; return how many, 0 once there is no more."""
        now_s = self._clock()
        (has_worthless,) = self._connection.execute(_HAS_WORTHLESS, (now_s,)).fetchone()
        count = 0
        if has_worthless or self._noted:
            with self._transaction():
                self._write_uses()
                count = self._connection.execute(_SWEEP, (now_s, _SWEPT_AT_ONCE)).rowcount
            self._noted.clear()
            self.expired += count
        self.entries, self.bytes = self._totals()
        return count

    def close(self) -> None:
        """Write which answers were used, if that is possible, and let go of the file."""
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._write_uses()
        self._connection.close()

    def _totals(self) -> tuple[int, int]:
        entries, size_bytes = self._connection.execute(_TOTALS).fetchone()
        return entries, size_bytes

    def _write_uses(self) -> None:
        if self._noted:
            (most_used,) = self._connection.execute(_MOST_USED).fetchone()
            uses = ((most_used + place, key) for place, key in enumerate(self._noted, start=1))
            self._connection.executemany(_USE, uses)

    def _make_room(self) -> int:
        """Evict until the bounds hold: those longest expired first, then by use; return how many."""
        evicted = 0
        while True:
            entries, size_bytes = self._totals()
            if entries <= self._max_entries and size_bytes <= self._max_bytes:
                return evicted
            victim = self._connection.execute(_LONGEST_EXPIRED, (self._clock(),)).fetchone()
            victim = victim or self._connection.execute(_LEAST_USED).fetchone()
            if victim is None:
                raise sqlite3.DatabaseError("the totals do not fit an empty file")
            self._connection.execute(_EVICT, victim)
            evicted += 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")  # at once for writing: an upgrade could not wait
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # a full disk may have ended it already
                self._connection.execute("ROLLBACK")
            raise
