"""Where answers are kept: the protocol of every store, and what a store tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ollamalab.cache.entry import Answer


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
        """Remove every answer; return how many there were."""
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
