"""Answers in memory: the least recently used goes first, and before it whatever is no longer fresh."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import OrderedDict
from collections.abc import Callable

from ollamalab.cache.entry import Answer
from ollamalab.cache.stores import StoreStatistics

_SWEEP_STEP = 500  # entries between two looks at the loop: well under a millisecond

#: When which answer is due. One that was replaced stays in the heap until its time comes, and then no
#: longer fits the time of the answer that is there.
_Due = tuple[float, bytes]


class MemoryStore:
    """A store of this process, bounded in entries and bytes.

    Args:
        max_entries: Answers kept at once.
        max_bytes: Memory they may take (``Answer.size_bytes``); a larger answer is not kept.
        clock: Seconds since 1970.
    """

    def __init__(self, *, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()  # least recently used first
        self._expiring: list[_Due] = []  # heap by expires_s
        self._stale: list[_Due] = []  # heap by worthless_s, of those past expires_s
        self._bytes = 0
        self._evicted = 0
        self._expired = 0

    async def get(self, key: bytes) -> Answer | None:
        """Return the answer of a key, fresh or still of use; None if there is none."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if answer.worthless_s <= self._clock():
            self._remove(key)
            self._expired += 1
            return None
        self._answers.move_to_end(key)
        return answer

    async def put(self, key: bytes, answer: Answer) -> None:
        """Keep an answer, in place of any other of its key."""
        self._remove(key)
        if answer.size_bytes > self._max_bytes:
            return
        self._answers[key] = answer
        self._bytes += answer.size_bytes
        heapq.heappush(self._expiring, (answer.expires_s, key))
        if len(self._answers) > self._max_entries or self._bytes > self._max_bytes:
            self._make_room()
        if len(self._expiring) + len(self._stale) > 2 * len(self._answers) + _SWEEP_STEP:
            self._forget_replaced()

    async def delete(self, key: bytes) -> None:
        """Remove the answer of a key, if there is one."""
        self._remove(key)

    async def clear(self) -> int:
        """Remove every answer; return how many there were."""
        count = len(self._answers)
        self._answers.clear()
        self._expiring.clear()
        self._stale.clear()
        self._bytes = 0
        return count

    async def sweep(self) -> int:
        """Remove what is past its ``worthless_s``; return how many. Others run in between."""
        removed, now_s = 0, self._clock()
        while True:
            for _ in range(_SWEEP_STEP):
                if self._expiring and self._expiring[0][0] <= now_s:
                    self._grow_stale()
                elif self._stale and self._stale[0][0] <= now_s:
                    removed += self._drop(heapq.heappop(self._stale))
                else:
                    self._expired += removed
                    return removed
            await asyncio.sleep(0)

    def statistics(self) -> StoreStatistics:
        """Return what it holds and has let go."""
        return StoreStatistics(
            entries=len(self._answers),
            bytes=self._bytes,
            evicted=self._evicted,
            expired=self._expired,
            errors=0,
        )

    async def close(self) -> None:
        """Let go of everything."""
        await self.clear()

    def _make_room(self) -> None:
        """Evict until the bounds hold: the stale ones nearest to their end first, then by use."""
        now_s = self._clock()
        while self._expiring and self._expiring[0][0] <= now_s:
            self._grow_stale()
        while len(self._answers) > self._max_entries or self._bytes > self._max_bytes:
            if self._stale:
                self._evicted += self._drop(heapq.heappop(self._stale))
            else:
                self._remove(next(iter(self._answers)))
                self._evicted += 1

    def _grow_stale(self) -> None:
        """Move the answer that expired first to the stale ones."""
        due_s, key = heapq.heappop(self._expiring)
        answer = self._answers.get(key)
        if answer is not None and answer.expires_s == due_s:
            heapq.heappush(self._stale, (answer.worthless_s, key))

    def _drop(self, due: _Due) -> bool:
        """Remove the answer that the stale heap means, unless another has taken its place."""
        due_s, key = due
        answer = self._answers.get(key)
        if answer is None or answer.worthless_s != due_s:
            return False
        self._remove(key)
        return True

    def _remove(self, key: bytes) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None:
            self._bytes -= answer.size_bytes

    def _forget_replaced(self) -> None:
        """Make the heaps anew from what is there: what was replaced or removed had stayed in them."""
        now_s = self._clock()
        self._expiring = [(answer.expires_s, key) for key, answer in self._answers.items()]
        self._stale = []
        heapq.heapify(self._expiring)
        while self._expiring and self._expiring[0][0] <= now_s:
            self._grow_stale()
