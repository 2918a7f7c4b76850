"""Where answers are kept: the protocol of every store, and what a store tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ollamalab.cache.entry import Answer
from ollamalab.errors import SettingsError
from ollamalab.settings import CacheSettings

_REDIS = ("redis://", "rediss://")
DISK = "disk:"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStatistics:
    """What a store holds and has let go since it was opened; None where it cannot tell."""

    entries: int | None  #: held now, expired ones included
    bytes: int | None  #: taken by them
    evicted: int | None  #: removed to make room
    expired: int | None  #: removed because their time was over
    errors: int | None  #: calls that the store's backend failed


class Store(Protocol):
    """Keeps answers by key, within bounds; a backend that fails means misses, never exceptions."""

    async def get(self, key: bytes) -> Answer | None:
        """Return the answer of a key; None if there is none.

        One that is no longer fresh is returned as well: whether it is still of use is the cache's
        decision (stale-if-error). One past its ``worthless_s`` may be returned or not.
        """
        ...

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer in place of any other of its key, removing others as the bounds ask."""
        ...

    async def delete(self, key: bytes) -> None:
        """Remove the answer of a key; nothing happens if there is none."""
        ...

    async def clear(self) -> int:
        """Remove every answer; return how many there were.

        Raises:
            StoreError: They could not all be removed: here nobody may be told that all is well.
        """
        ...

    async def sweep(self) -> int:
        """Remove what is past its ``worthless_s``, without stalling the loop; return how many."""
        ...

    def statistics(self) -> StoreStatistics:
        """Return what it holds and has let go."""
        ...

    async def close(self) -> None:
        """Finish what is being written and let go of files and connections."""
        ...


def open_store(where: str, settings: CacheSettings) -> Store | None:
    """Open the store that a command line or settings file names. Close it when done.

    Opening a file reads all of it (up to half a GB), so that damage shows before anybody waits; a Redis
    is not asked until used, and may be away.

    Args:
        where: "off", "memory", "disk:PATH", "redis://..." or "rediss://...".
        settings: Its bounds.

    Returns:
        None for "off".

    Raises:
        SettingsError: None of these, or it cannot be used; says which and what to do.
    """
    # Only what is asked for is imported: redis is an extra.
    if where == "off":
        return None
    if where == "memory":
        from ollamalab.cache.memory import MemoryStore

        return MemoryStore(max_entries=settings.max_entries, max_bytes=settings.max_bytes)
    if where.startswith(DISK) and where != DISK:
        from ollamalab.cache.database import file_path
        from ollamalab.cache.disk import DiskStore

        path = file_path(where.removeprefix(DISK))
        return DiskStore(path, max_entries=settings.max_entries, max_bytes=settings.max_bytes)
    if is_redis(where):
        try:
            from ollamalab.cache.redis import RedisStore
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"a cache in Redis needs the package {error.name}; run: pip install 'ollamalab[redis]'"
            ) from error
        return RedisStore(where, max_answer_bytes=settings.max_answer_bytes)
    shown = f"{where.partition(':')[0]!r}:..." if "@" in where else repr(where)  # there may be a password
    raise SettingsError(f"cache must be off, memory, disk:PATH or redis://HOST[:PORT], got {shown}")


def is_redis(where: str) -> bool:
    """Whether a text means a Redis server, by its scheme."""
    return where.startswith(_REDIS)
