"""A process that uses a cache file, for ``test_cache_disk``: PATH SEED ROUNDS, printing what it has done.

It puts and gets answers of twenty keys, checks every byte of what it gets, and prints a line for each
put once it is done: key and number. With RLIMIT_FSIZE set by its parent, its disk is full.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from answers import number_of, vouched

from ollamalab.cache.disk import DiskStore

KEYS = [b"key %d" % number for number in range(20)]


async def use(path: Path, seed: int, rounds: int) -> None:
    source = random.Random(seed)
    store = DiskStore(path, max_entries=15 if seed else 100, max_bytes=10_000_000)
    for number in range(rounds):
        key = source.choice(KEYS)
        await store.put(key, vouched(key, number))
        print(key.decode(), number, sep="\t", flush=True)  # noqa: T201
        wanted = source.choice(KEYS)
        if kept := await store.get(wanted):
            number_of(wanted, kept)
    await store.sweep()
    told = store.statistics()
    await store.close()
    print("errors", told.errors, sep="\t", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(use(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
