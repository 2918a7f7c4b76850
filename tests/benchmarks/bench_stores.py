"""What a store costs: one get and one put of a 4 KB answer, in memory, on disk and in Redis.

Operations one after another on the gateway's event loop, seen by the caller: for the disk the way to its
thread and back is in it, for Redis the way over loopback to a real server. The stores alternate round by
round, so that a passing disturbance hits all. Puts are of new keys into a full store of 1,000 answers, so
each evicts one (in Redis, of keys among 1,000: it bounds itself).

Run: ``python tests/benchmarks/bench_stores.py`` (half a minute). Writes
``tests/benchmarks/results/stores.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.cache import MemoryStore, Store
from ollamalab.cache.disk import DiskStore
from ollamalab.cache.redis import RedisStore
from ollamalab.connection import new_event_loop
from ollamalab.metrics import summarise

sys.path.insert(0, str(Path(__file__).parents[1]))
from answers import make_answer
from redis_server import redis_server

RESULTS = Path(__file__).parent / "results" / "stores.json"
ROUNDS = 300
OPERATIONS = 20  # of each kind, per store and round
ENTRIES = 1_000
LINES, LINE_BYTES = 40, 100  # a streamed answer of 4 KB
KEYS = [random.Random(place).randbytes(32) for place in range(ENTRIES + ROUNDS * OPERATIONS)]


class Subject:
    """One store, filled, and what its operations took."""

    def __init__(self, store: Store, *, keys: int) -> None:
        self.store = store
        self.seconds: dict[str, list[float]] = {"get": [], "put": []}
        self._random = random.Random(1)
        self._keys = KEYS[:keys]
        self._put_count = 0
        piece = b"x" * (LINE_BYTES - 1) + b"\n"
        self._answer = make_answer(pieces=(piece,) * LINES, stored_s=time.time())

    async def fill(self) -> None:
        for _ in range(ENTRIES):
            await self._put()

    async def measure(self) -> None:
        for kind, operation in (("get", self._get), ("put", self._put)):
            self.seconds[kind].append(await _each_s(operation))

    async def _get(self) -> None:
        place = self._put_count - 1 - self._random.randrange(ENTRIES // 2)  # the newer half is still there
        if await self.store.get(self._keys[place % len(self._keys)]) is None:
            raise AssertionError(f"answer {place} is gone")

    async def _put(self) -> None:
        await self.store.put(self._keys[self._put_count % len(self._keys)], self._answer)
        self._put_count += 1


async def _each_s(operation: Callable[[], Coroutine[Any, Any, None]]) -> float:
    begun_s = time.perf_counter()
    for _ in range(OPERATIONS):
        await operation()
    return (time.perf_counter() - begun_s) / OPERATIONS


async def measure() -> dict[str, Subject]:
    """Return the stores with what they took, one value per round: the mean of its operations."""
    bounds = {"max_entries": ENTRIES, "max_bytes": 1 << 30}
    with tempfile.TemporaryDirectory() as folder:
        async with redis_server(Path(folder)) as running:
            subjects = {
                "memory": Subject(MemoryStore(**bounds), keys=len(KEYS)),
                "disk": Subject(DiskStore(Path(folder, "cache.db"), **bounds), keys=len(KEYS)),
                "redis": Subject(RedisStore(running.url, max_answer_bytes=1 << 20), keys=ENTRIES),
            }
            for subject in subjects.values():
                await subject.fill()
            for _ in range(ROUNDS):
                for subject in subjects.values():
                    await subject.measure()
            for subject in subjects.values():
                if subject.store.statistics().errors:
                    raise AssertionError("a store failed while it was measured")
                await subject.store.close()
    return subjects


def row(values: list[float]) -> dict[str, Any]:
    """Return a summary of rounds with the 95 % interval of the median (order statistics)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[round(n / 2 - reach)], ordered[round(n / 2 + reach)]
    return asdict(summarise(values)) | {"p50_low": low, "p50_high": high}


def main() -> None:
    """Measure, print the table, write the results."""
    load_before = os.getloadavg()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        subjects = runner.run(measure())
    rows = {
        f"{name} {kind}": row(values)
        for name, subject in subjects.items()
        for kind, values in subject.seconds.items()
    }
    table = Table(title="Microseconds per operation", title_justify="left")
    for column in ("", "n", "median", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in rows.items():
        interval = f"{one['p50_low'] * 1e6:.1f} - {one['p50_high'] * 1e6:.1f}"
        table.add_row(name, f"{one['n']} x {OPERATIONS}", f"{one['p50'] * 1e6:.1f}", interval)
    Console(width=110).print(table)
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "stores",
                "machine": host.describe(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "answer_bytes": LINES * LINE_BYTES,
                "operations_per_round": OPERATIONS,
                "seconds": rows,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
