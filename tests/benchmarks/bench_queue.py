"""What the queue costs: one operation by how many wait, and one request through it without a wait.

The sizes alternate round by round, so that a passing disturbance hits all. A ten times longer queue may
cost a constant more (logarithmic), not ten times as much. Times are the process's own CPU seconds:
nothing here waits, and the machine may be shared.

Run: ``python tests/benchmarks/bench_queue.py`` (about a minute). Writes
``tests/benchmarks/results/queue.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.metrics import summarise
from ollamalab.protocol.calls import named
from ollamalab.protocol.upstream import Reply, Request
from ollamalab.queueing import RequestQueue
from ollamalab.queueing.admission import Admission, Applicant
from ollamalab.queueing.ticket import State, Ticket
from ollamalab.settings import QueueSettings

RESULTS = Path(__file__).parent / "results" / "queue.json"
SIZES = (100, 1_000, 10_000, 100_000)
REQUESTS_PER_CLIENT = 10
ROUNDS = 60
OPERATIONS = 200  # per round and size
LINES = 1_000
BOUND_S = 20e-6  # with 10,000 waiting from 1,000 clients

Row = dict[str, Any]


class Crowd:
    """A queue with so many waiting, kept at that length."""

    def __init__(self, size: int) -> None:
        self.random = random.Random(size)
        self.now_s = 0.0
        self.clients = [f"client {number}" for number in range(size // REQUESTS_PER_CLIENT)]
        settings = QueueSettings(max_queue=2 * size, queue_timeout_s=1e9)
        self.admission = Admission(settings, lambda _lane: 4)
        self.applicants: list[Applicant] = []
        self.waiting: list[Ticket] = []
        self.active: list[Ticket] = []
        self.draw(size + 4)
        for _ in range(size + 4):
            self.arrive()

    def draw(self, count: int) -> None:
        """Make up who will come."""
        draw = self.random
        self.applicants += [
            Applicant(
                lane="model",
                client=draw.choice(self.clients),
                priority=draw.choice((0, 5, 5, 5, 9)),
                deadline_s=draw.choice((None, None, draw.uniform(1e6, 2e6))),
                cost_tokens=draw.uniform(10, 500),
            )
            for _ in range(count)
        ]

    def arrive(self) -> None:
        """One more comes."""
        self.now_s += 1e-3
        ticket, _ = self.admission.arrive(self.applicants.pop(), self.now_s)
        (self.active if ticket.state is State.ACTIVE else self.waiting).append(ticket)

    def serve(self) -> None:
        """One ends, the next gets its place, another comes."""
        ticket = self.active.pop(0)
        cost = ticket.cost_tokens * 0.7
        self.active += self.admission.release(ticket, State.COMPLETED, self.now_s, cost_tokens=cost)
        self.arrive()

    def leave(self) -> None:
        """One of those waiting hangs up, another comes."""
        while True:
            at = int(self.random.random() * len(self.waiting))
            self.waiting[at], self.waiting[-1] = self.waiting[-1], self.waiting[at]
            ticket = self.waiting.pop()
            if ticket.state is State.WAITING:
                break
        self.admission.leave(ticket, State.CANCELLED)
        self.arrive()


class Stub:
    """An upstream that answers at once."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.chunks_given = chunks

    async def send(self, request: Request) -> Reply:
        """Return the same reply each time."""
        return StubReply(self.chunks_given)


class StubReply:
    """Chunks from a list."""

    def __init__(self, chunks: list[bytes]) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}
        self._chunks = chunks

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give them."""
        for chunk in self._chunks:
            yield chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def per_operation_s(crowd: Crowd, action: Callable[[], None]) -> float:
    """Return the mean seconds of one of a round's operations; each is two: one goes, one comes."""
    crowd.draw(OPERATIONS)
    begun_s = time.process_time()
    for _ in range(OPERATIONS):
        action()
    return (time.process_time() - begun_s) / (2 * OPERATIONS)


def row(values: list[float]) -> Row:
    """Return a summary of rounds with the 95 % interval of the median (order statistics)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[round(n / 2 - reach)], ordered[round(n / 2 + reach)]
    return asdict(summarise(values)) | {"p50_low": low, "p50_high": high}


def operations() -> dict[str, dict[int, Row]]:
    """Measure an operation at each size."""
    crowds = {size: Crowd(size) for size in SIZES}
    seconds: dict[str, dict[int, list[float]]] = {
        "serve and arrive": {size: [] for size in SIZES},
        "leave and arrive": {size: [] for size in SIZES},
    }
    for number in range(ROUNDS + 1):
        for size, crowd in crowds.items():
            served, left = per_operation_s(crowd, crowd.serve), per_operation_s(crowd, crowd.leave)
            if number:  # the first warms
                seconds["serve and arrive"][size].append(served)
                seconds["leave and arrive"][size].append(left)
    return {name: {size: row(values) for size, values in sizes.items()} for name, sizes in seconds.items()}


async def passages() -> dict[str, Row]:
    """Measure what the queue adds to a request that does not wait, and to each line of a stream."""
    line = b'{"model":"m","created_at":"2026-01-01T00:00:00Z","message":{"content":"word "},"done":false}\n'
    final = b'{"model":"m","message":{"content":""},"done":true,"eval_count":9,"eval_duration":1}\n'
    upstreams = {"one line": Stub([final]), "long": Stub([line] * LINES + [final])}
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    request = Request(method="POST", path="/api/chat", body=body)

    async def ask_s(upstream: Any, times: int) -> float:
        requests = [named(request) for _ in range(times)]
        begun_s = time.process_time()
        for one in requests:
            async with await upstream.send(one) as reply:
                async for _ in reply.chunks():
                    pass
        return (time.process_time() - begun_s) / times

    seconds: dict[str, list[float]] = {"request": [], "line": []}
    for _ in range(ROUNDS):
        for name, times, per, stub in (
            ("request", 200, 1, upstreams["one line"]),
            ("line", 2, LINES, upstreams["long"]),
        ):
            with_queue_s = await ask_s(RequestQueue().in_front_of(stub), times)
            seconds[name].append((with_queue_s - await ask_s(stub, times)) / per)
    return {name: row(values) for name, values in seconds.items()}


def main() -> None:
    """Measure, print the table, write the results."""
    load_before = os.getloadavg()
    by_size = operations()
    added = asyncio.run(passages())
    table = Table(title="Microseconds", title_justify="left")
    for column in ("", "waiting", "n", "median", "95 % interval"):
        table.add_column(column, justify="right" if column else "left")
    rows = [(name, f"{size:,}", one) for name, sizes in by_size.items() for size, one in sizes.items()]
    rows += [(f"added to a {name}", "0", one) for name, one in added.items()]
    for name, size, one in rows:
        interval = f"{one['p50_low'] * 1e6:.2f} - {one['p50_high'] * 1e6:.2f}"
        table.add_row(name, size, str(one["n"]), f"{one['p50'] * 1e6:.2f}", interval)
    Console(width=110).print(table)
    worst_s = max(sizes[10_000]["p50"] for sizes in by_size.values())
    print(f"with 10,000 waiting from 1,000 clients: {worst_s * 1e6:.1f} us of {BOUND_S * 1e6:.0f} allowed")
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "queue",
                "machine": host.describe(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "operations_s": by_size,
                "added_s": added,
                "bound_s": BOUND_S,
                "holds": worst_s <= BOUND_S,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
