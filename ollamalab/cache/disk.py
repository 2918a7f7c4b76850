"""Answers on disk: they outlive the process, and processes of one host share them."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ollamalab.cache.answer_file import AnswerFile
from ollamalab.cache.entry import Answer
from ollamalab.cache.seal import DamagedAnswer
from ollamalab.cache.stores import StoreStatistics
from ollamalab.errors import StoreError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class DiskStore:
    """A store in one SQLite file; the loop never waits for the disk, a thread of the store's own does.

    What goes wrong with the file while it is open (full, damaged, locked) means misses and answers
    not kept, is counted, and is logged once per kind. The file needs a local file system.

    Args:
        path: The file; made with the folders above it if it is not there.
        max_entries: Answers kept at once.
        max_bytes: Bytes they may take in the file; a larger answer is not kept.
        clock: Seconds since 1970.

    Raises:
        SettingsError: The file cannot be used; the message says why and what to do.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_entries: int,
        max_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._errors = 0
        self._logged: set[str] = set()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ollamalab-cache")
        opening = partial(AnswerFile, self._path, max_entries=max_entries, max_bytes=max_bytes, clock=clock)
        try:
            self._file = self._worker.submit(opening).result()
        except BaseException:
            self._worker.shutdown()
            raise
        self._is_closed = False

    async def get(self, key: bytes) -> Answer | None:
        """Return the answer of a key, fresh or still of use; None if there is none or the file fails."""
        return await self._try(partial(self._file.get, key), None)

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in place of any other of its key, unless the file fails."""
        await self._try(partial(self._file.put, key, answer), None)

    async def delete(self, key: bytes) -> None:
        """Remove the answer of a key, if there is one."""
        await self._try(partial(self._file.delete, key), None)

    async def clear(self) -> int:
        """Remove every answer; return how many there were.

        Raises:
            StoreError: They could not be removed.
        """
        try:
            return await self._do(self._file.clear)
        except sqlite3.Error as error:
            raise StoreError(f"cache file {self._path} cannot be emptied ({error}); delete it") from error

    async def sweep(self) -> int:
        """Remove what is past its ``worthless_s``; return how many. Reads go on in between."""
        removed = 0
        while count := await self._try(self._file.sweep_some, 0):
            removed += count
        return removed

    def statistics(self) -> StoreStatistics:
        """Return what the file holds as of the last write or sweep, and what this process let go."""
        return StoreStatistics(
            entries=self._file.entries,
            bytes=self._file.bytes,
            evicted=self._file.evicted,
            expired=self._file.expired,
            errors=self._errors,
        )

    async def close(self) -> None:
        """Finish what is being written and let go of the file."""
        if not self._is_closed:
            self._is_closed = True
            await self._do(self._file.close)
            self._worker.shutdown()

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _try(self, work: Callable[[], T], failed: T) -> T:
        try:
            return await self._do(work)
        except (sqlite3.Error, DamagedAnswer) as error:
            self._errors += 1
            kind = getattr(error, "sqlite_errorname", type(error).__name__)
            if kind not in self._logged:
                self._logged.add(kind)
                _log.warning(
                    "cache file fails: path=%s error=%s (%s); answers are asked anew, further ones of "
                    "this kind are only counted",
                    self._path,
                    kind,
                    error,
                )
            return failed
