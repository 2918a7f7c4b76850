"""What the way out costs: our HTTP client beside aiohttp's, on one core, into a server on another.

Sixteen clients in a closed loop against a server that answers from memory: *small answers* of 300
bytes, and *streams* of 128 NDJSON lines, each line a write and a chunk of its own. The rounds of the
two clients alternate; the ratio is taken per pair of rounds.

Run: ``python tests/benchmarks/bench_connection.py`` (about 50 s). Writes
``tests/benchmarks/results/connection.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.connection import OllamaConnection, new_event_loop
from ollamalab.protocol.upstream import Request

RESULTS = Path(__file__).parent / "results" / "connection.json"
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
CLIENTS, LINES = 16, 128
ROUNDS = 7
PATHS = {"small answers": ("/small", 12_000), "streams of 128 lines": ("/stream", 1_000)}

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 40}]}).encode()
SMALL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300\r\n\r\n" + b"x" * 300
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
LINE = json.dumps(
    {"model": "m", "message": {"role": "assistant", "content": " word"}, "done": False}
).encode()
CHUNK = b"%x\r\n%b\n\r\n" % (len(LINE) + 1, LINE)

#: Sends one request to a path and reads the whole answer; returns its length.
Exchange = Callable[[str], Awaitable[int]]


class Server(asyncio.Protocol):
    """Answers each request at once; a request is as long as ours are."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self._held = b""

    def data_received(self, data: bytes) -> None:
        """Answer when the request is whole."""
        self._held += data
        if not self._held.endswith(BODY):
            return
        is_stream, self._held = b"/stream " in self._held[:64], b""
        if is_stream:
            self._transport.write(HEAD)
            self._write(LINES)
        else:
            self._transport.write(SMALL)

    def _write(self, lines: int) -> None:
        """Write a line, and the next one when all other streams had their turn."""
        self._transport.write(CHUNK if lines else b"0\r\n\r\n")
        if lines:
            asyncio.get_running_loop().call_soon(self._write, lines - 1)


async def serve() -> None:
    """Serve until killed; print the port."""
    os.sched_setaffinity(0, {SERVER_CORE})
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def serving() -> AsyncIterator[str]:
    """Run the server in a process of its own; give its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{(await process.stdout.readline()).decode().strip()}"
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Exchange]:
    """Give the exchange of our connection."""
    async with OllamaConnection(url) as connection:

        async def exchange(path: str) -> int:
            request = Request(method="POST", path=path, headers={"accept": "*/*"}, body=BODY)
            size = 0
            async with await connection.send(request) as reply:
                async for chunk in reply.chunks():
                    size += len(chunk)
            return size

        yield exchange


@asynccontextmanager
async def theirs(url: str) -> AsyncIterator[Exchange]:
    """Give the exchange of an aiohttp session, trimmed the same way."""
    timeout = aiohttp.ClientTimeout(total=None, connect=5.0, sock_read=300.0)
    async with aiohttp.ClientSession(
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding", "User-Agent"),
    ) as session:

        async def exchange(path: str) -> int:
            size = 0
            headers = {"content-type": "application/json"}
            async with session.post(url + path, data=BODY, headers=headers, allow_redirects=False) as reply:
                while chunk := await reply.content.readany():
                    size += len(chunk)
            return size

        yield exchange


async def rate(exchange: Exchange, path: str, requests: int) -> dict[str, float]:
    """Return requests/s and the CPU time of one of them, over a round."""
    expected = len(LINE) * LINES + LINES if path == "/stream" else 300
    left = requests

    async def client() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            assert await exchange(path) == expected

    cpu_s, began_s = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    elapsed_s = time.perf_counter() - began_s
    return {"rps": requests / elapsed_s, "cpu_us": (time.process_time() - cpu_s) / requests * 1e6}


async def case(name: str) -> dict[str, Any]:
    """Return what both clients did on one kind of answer."""
    path, requests = PATHS[name]
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "aiohttp": []}
    async with serving() as url, ours(url) as our, theirs(url) as their:
        for exchange in (our, their):
            await rate(exchange, path, requests // 10)
        for number in range(ROUNDS):
            order = [("ours", our), ("aiohttp", their)]
            for who, exchange in order if number % 2 else reversed(order):
                rounds[who].append(await rate(exchange, path, requests))
    row: dict[str, Any] = {"case": name, "n": ROUNDS, "requests_per_round": requests, "clients": CLIENTS}
    for measure in ("rps", "cpu_us"):
        values = {who: [each[measure] for each in rounds[who]] for who in rounds}
        ratios = sorted(a / b for a, b in zip(values["ours"], values["aiohttp"], strict=True))
        row |= {f"{who}_{measure}": statistics.median(values[who]) for who in values}
        row |= {
            f"{measure}_ratio": statistics.median(ratios),
            f"{measure}_ratio_range": [ratios[0], ratios[-1]],
        }
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"{CLIENTS} clients on one core, medians of {ROUNDS} rounds", title_justify="left")
    for column in ("case", "ours", "aiohttp", "ratio", "of rounds", "CPU ours", "CPU aiohttp"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        low, high = row["rps_ratio_range"]
        table.add_row(
            row["case"],
            f"{row['ours_rps']:,.0f}/s",
            f"{row['aiohttp_rps']:,.0f}/s",
            f"{row['rps_ratio']:.2f}×",
            f"{low:.2f}–{high:.2f}",
            f"{row['ours_cpu_us']:,.0f} µs",
            f"{row['aiohttp_cpu_us']:,.0f} µs",
        )
    Console(width=110).print(table)


async def main() -> None:
    """Run both cases, print the table, write the results."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    load_before = os.getloadavg()
    rows = [await case(name) for name in PATHS]
    show(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    found = {
        "benchmark": "connection",
        "machine": host.describe(),
        "cores": {"server": SERVER_CORE, "client": CLIENT_CORE},
        "load_average_before": load_before,
        "load_average_after": os.getloadavg(),
        "cases": rows,
    }
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve() if "--serve" in sys.argv else main())
