"""What the response cache costs: a lookup, its key, a replay, and a miss against no cache at all.

The upstream is in this process and answers at once, so that only the cache is seen; rows alternate, so
that a passing disturbance hits all. The request is a chat of 4 KB, read from its bytes each time as the
gateway does; the answer a stream of 128 lines.

Run: ``python tests/benchmarks/bench_cache.py`` (half a minute). Writes
``tests/benchmarks/results/cache.json``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ollamalab import ResponseCache, host
from ollamalab.cache.key import cache_key
from ollamalab.connection import new_event_loop
from ollamalab.metrics import summarise
from ollamalab.protocol.calls import call_of
from ollamalab.protocol.upstream import Reply, Request

sys.path.insert(0, str(Path(__file__).parents[1]))
from held_upstream import DIGEST, FINAL, MODEL, ReadyReply, line

RESULTS = Path(__file__).parent / "results" / "cache.json"
ROUNDS = 3_000
LINES = 128
BUDGET_S = 40e-6  # of a lookup, its key included

MESSAGES = [
    {"role": "assistant" if number % 2 else "user", "content": f"{number} " + "word " * 36}
    for number in range(20)
]
OPTIONS = {"temperature": 0, "num_ctx": 2048, "seed": 1}


def chat(**fields: Any) -> Request:
    """Return a chat of 4 KB."""
    body = {"model": MODEL, "messages": MESSAGES, "options": OPTIONS, **fields}
    return Request(method="POST", path="/api/chat", body=json.dumps(body).encode())


class Streaming(ReadyReply):
    """A stream whose lines come one by one, the loop turning in between."""

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(LINES - 1):
            await asyncio.sleep(0)
            yield LINE
        yield FINAL


class Instant:
    """An upstream that answers at once."""

    async def send(self, request: Request) -> Reply:
        if request.path == "/api/tags":
            return ReadyReply(json.dumps({"models": [{"name": MODEL, "digest": DIGEST}]}).encode())
        if call_of(request).is_stream:
            return Streaming(b"", content_type="application/x-ndjson")
        return ReadyReply(WHOLE)


LINE = line("Hello ")
WHOLE = line("Hello " * LINES, done=True, done_reason="stop")


async def read(reply: Reply) -> None:
    """Read a reply to its end."""
    async with reply:
        async for _ in reply.chunks():
            pass


async def measure() -> dict[str, list[float]]:
    """Return seconds of each row, one per round."""
    upstream = Instant()
    async with ResponseCache(upstream) as cache:
        stream, whole = chat(), chat(stream=False)
        await read(await cache.send(stream))
        call = call_of(stream)
        numbers = itertools.count()

        async def look() -> None:
            await cache.send(stream)

        async def key() -> None:
            cache_key(call, DIGEST)

        async def hit_stream() -> None:
            await read(await cache.send(stream))

        async def hit_whole() -> None:
            await read(await cache.send(whole))

        async def through_whole() -> None:
            await read(await cache.send(chat(stream=False, x=next(numbers))))

        async def bare_whole() -> None:
            await read(await upstream.send(chat(stream=False, x=next(numbers))))

        async def through_stream() -> None:
            await read(await cache.send(chat(x=next(numbers))))

        async def bare_stream() -> None:
            await read(await upstream.send(chat(x=next(numbers))))

        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "lookup of a 4 KB chat that hits, from its bytes": look,
            "  its key alone": key,
            f"hit, stream of {LINES} lines read": hit_stream,
            "hit, unstreamed, read": hit_whole,
            "miss, unstreamed": through_whole,
            "  unstreamed without a cache": bare_whole,
            f"miss, stream of {LINES} lines": through_stream,
            "  the stream without a cache": bare_stream,
        }
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(ROUNDS):
            # What is measured must still be there after the misses between.
            await read(await cache.send(stream))
            for name, action in actions.items():
                begun_s = time.perf_counter()
                await action()
                seconds[name].append(time.perf_counter() - begun_s)
    return seconds


def row(values: list[float]) -> dict[str, Any]:
    """Return a summary with the 95 % interval of the median (order statistics)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[round(n / 2 - reach)], ordered[round(n / 2 + reach)]
    return asdict(summarise(values)) | {"p50_low": low, "p50_high": high}


def main() -> None:
    """Measure, print the table, write the results."""
    load_before = os.getloadavg()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        rows = {name: row(values) for name, values in runner.run(measure()).items()}
    table = Table(title="Microseconds", title_justify="left")
    for column in ("", "n", "median", "95 % interval", "p99"):
        table.add_column(column, justify="right" if column else "left")
    for name, one in rows.items():
        interval = f"{one['p50_low'] * 1e6:.1f} – {one['p50_high'] * 1e6:.1f}"
        table.add_row(name, str(one["n"]), f"{one['p50'] * 1e6:.1f}", interval, f"{one['p99'] * 1e6:.0f}")
    console = Console(width=110)
    console.print(table)
    console.print(f"A lookup may take {BUDGET_S * 1e6:.0f} µs. The request has {len(chat().body)} bytes.")
    result = {
        "benchmark": "cache",
        "machine": host.describe(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "request_bytes": len(chat().body),
        "lookup_budget_s": BUDGET_S,
        "rows_s": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
