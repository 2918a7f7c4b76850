"""What the cluster costs, and what becomes of requests when one of three servers fails.

- *decision*: one choice among a thousand upstreams, booked and released, by policy (the process's own
  CPU seconds);
- *added*: time to the last byte at one connection, with the cluster and without it, over real sockets;
- *throughput*: ``serve`` in front of three upstreams beside one, in front of the same scripted servers;
- *faults*: eight clients, one of three servers bad: the share of good answers, and who was asked how often;
- *return*: seconds from a server's return until it is asked again, under load.

Within a block each arm is visited once, in an order drawn anew; ratios and differences are taken per
block (Hodges-Lehmann estimate, exact 95 % interval).

Run: ``python tests/benchmarks/bench_cluster.py [--quick]`` (about four minutes). Writes
``tests/benchmarks/results/cluster.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gateway_subjects as subjects
from bench_gateway import CORES, Load, harness
from gateway_harness import HOST, request
from gateway_subjects import started
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from cluster_nodes import MODEL, Node, running  # type: ignore[import-not-found]
from gateway_service import Reply, gateway  # type: ignore[import-not-found]

from ollamalab import host
from ollamalab.cluster import Cluster, Member
from ollamalab.cluster.booking import book
from ollamalab.compare import Metric, Visit, blocks_for_pairs, compare_arms, design
from ollamalab.connection import ConnectionSettings, OllamaConnection, new_event_loop
from ollamalab.gateway.progress import Progress
from ollamalab.protocol.calls import call_of, named
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.queueing import RequestQueue
from ollamalab.routing import POLICIES
from ollamalab.settings import ClusterSettings

RESULTS = Path(__file__).parent / "results" / "cluster.json"
SEED = 4
UPSTREAMS = 1000
DECISIONS = 500  # per round
FLOOR_S = {name: 200e-6 if name == "prefix" else 50e-6 for name in POLICIES}
MOST_ADDED_S = 50e-6
LEAST_RATIO = 0.95
CLIENTS, REQUESTS = 8, 200
FAULTS = ("refuse", "500", "503", "hang", "cut", "garbage")
MOST_RETURN_S = 10.0
STILL = ClusterSettings(probe_interval_s=3600.0)

LATENCY = Metric(name="e2e_s", better="lower", unit="s", kind="difference", margin=MOST_ADDED_S)
RATE = Metric(name="requests_per_s", better="higher", unit="requests/s", margin=0.05)

Row = dict[str, Any]


def chat(number: int) -> Request:
    """Return a chat with a long system text that all share."""
    messages = [
        {"role": "system", "content": "You are a lighthouse keeper and answer in one sentence. " * 40},
        {"role": "user", "content": f"{number}: how was the night?"},
    ]
    body = {"model": "m", "messages": messages, "stream": False}
    return named(Request(method="POST", path="/api/chat", body=json.dumps(body).encode()))


def interval(values: list[float]) -> Row:
    """Return a median with its 95 % interval (order statistics)."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = ordered[max(0, round(n / 2 - reach))], ordered[min(n - 1, round(n / 2 + reach))]
    return {"n": n, "p50": statistics.median(values), "low": low, "high": high}


async def decisions(rounds: int) -> dict[str, Row]:
    """Measure a choice with its booking among a thousand that are busy to different degrees."""
    rng = random.Random(SEED)
    calls = [call_of(chat(number)) for number in range(DECISIONS)]
    key = calls[0].model_key
    seconds: dict[str, list[float]] = {name: [] for name in POLICIES}
    clusters = {}
    for name in POLICIES:
        members = [Member(f"u{number}", Nowhere(), weight=1 + number % 3) for number in range(UPSTREAMS)]
        clusters[name] = cluster = Cluster(members, route=name, rng=rng)
        for member in members:
            view = cluster._roster.replica(member, key).view
            view.is_resident, view.in_flight = rng.random() < 0.3, rng.randrange(6)
            view.booked_tokens, view.tokens_per_s, view.load_s = (
                rng.random() * 500,
                20 + rng.random() * 80,
                5.0,
            )
            member.view.in_flight = view.in_flight
        cluster._roster.changed()
    for number in range(rounds + 1):
        for name, cluster in rng.sample(sorted(clusters.items()), len(clusters)):
            begun_s = time.process_time()
            for call in calls:
                candidates = cluster._roster.pool(key, 0.0).candidates
                member = cluster._choose(call, key, 128.0, candidates)
                clock = time.perf_counter
                booking = book(
                    cluster._roster, member, call, now_s=clock(), tokens=128.0, tried=(), clock=clock
                )
                booking.release()
            if number:  # the first warms
                seconds[name].append((time.process_time() - begun_s) / DECISIONS)
    return {name: {**interval(values), "floor": FLOOR_S[name]} for name, values in seconds.items()}


class Nowhere:
    """An upstream that is never asked."""

    async def send(self, request: Request) -> Any:
        raise AssertionError(request)


@asynccontextmanager
async def upstreams(count: int) -> AsyncIterator[tuple[list[int], list[int]]]:
    """Run scripted servers; give their ports and pids."""
    async with AsyncExitStack() as stack:
        ports, pids = [], []
        for _ in range(count):
            process = await stack.enter_async_context(harness("upstream"))
            assert process.stdout is not None
            ports.append(int(await process.stdout.readline()))
            pids.append(process.pid)
        yield ports, pids


async def added(rounds: int) -> Row:
    """Compare the pipeline with a cluster of one or three with one without, a request at a time."""
    async with upstreams(3) as (ports, _), AsyncExitStack() as stack:

        async def watched(port: int) -> Progress:
            settings = ConnectionSettings(progress_timeout_s=float("inf"), resend_stale=True)
            url = f"http://{HOST}:{port}"
            return Progress(await stack.enter_async_context(OllamaConnection(url, settings)))

        async def clustered(count: int) -> Upstream:
            members = [Member(str(port), await watched(port)) for port in ports[:count]]
            cluster = await stack.enter_async_context(Cluster(members, settings=STILL))
            while any(member.digests is None for member in members):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
            return RequestQueue(capacity=cluster.capacity).in_front_of(cluster)

        arms: dict[str, Upstream] = {
            "queue": RequestQueue().in_front_of(await watched(ports[0])),
            "queue, cluster of 1": await clustered(1),
            "queue, cluster of 3": await clustered(3),
        }
        body = json.loads(request("/api/chat", is_stream=False).partition(b"\r\n\r\n")[2])
        data = json.dumps(body).encode()

        async def visit(upstream: Upstream) -> float:
            seconds = []
            for _ in range(200):
                asked = named(Request(method="POST", path="/api/chat", body=data))
                begun_s = time.perf_counter()
                async with await upstream.send(asked) as reply:
                    async for _ in reply.chunks():
                        pass
                seconds.append(time.perf_counter() - begun_s)
            return statistics.median(seconds)

        for upstream in arms.values():
            await visit(upstream)
        names = list(arms)
        values: dict[Visit, float | None] = {}
        for one in design(names, blocks_for_pairs(rounds, len(names)), random.Random(SEED)):
            values[one] = await visit(arms[one.arm])
        return {
            arm: {
                **asdict(compare_arms(values, LATENCY, arm=arm, baseline=names[0])),
                "floor": MOST_ADDED_S,
            }
            for arm in names[1:]
        }


async def throughput(rounds: int, seconds: float) -> Row:
    """Compare ``serve`` with three upstreams and with one, each with the same gateway settings."""
    async with upstreams(3) as (ports, pids), harness("load") as process, AsyncExitStack() as stack:
        load = Load(process)
        more = [part for port in ports[1:] for part in ("--upstream", f"http://{HOST}:{port}")]
        plans = {"one": subjects.ours("one"), "three": subjects.ours("three", *more)}
        arms = {
            name: await stack.enter_async_context(started(plan, ports[0])) for name, plan in plans.items()
        }
        for subject in arms.values():
            for each in subject.processes():
                os.sched_setaffinity(each.pid, CORES[-1:])
        for pid in (process.pid, *pids):
            os.sched_setaffinity(pid, CORES[:-1] or CORES)
        data = request("/api/chat", is_stream=False).decode()

        async def visit(name: str) -> float:
            found = await load.do(
                "load",
                port=arms[name].port,
                request=data,
                connections=16,
                seconds=seconds,
                warm_s=seconds / 4,
            )
            if "error" in found:
                raise RuntimeError(found["error"])
            return float(found["rate"])

        for name in arms:
            await visit(name)
        values: dict[Visit, float | None] = {}
        for one in design(list(arms), blocks_for_pairs(rounds, 2), random.Random(SEED)):
            values[one] = await visit(one.arm)
        return {**asdict(compare_arms(values, RATE, arm="three", baseline="one")), "floor": LEAST_RATIO}


async def faults() -> list[Row]:
    """Let one of three servers be bad, in every way."""
    rows = []
    for does in FAULTS:
        bad, *_ = nodes = [Node(does), Node(), Node()]
        async with (
            running(*nodes),
            gateway(
                *(f"{node.url},name={name}" for name, node in zip("abc", nodes, strict=True)),
                route="least-inflight",
                request_timeout="0.5",
                load_timeout="0.5",
            ) as service,
        ):
            await service.until(lambda now: all(each["probes"] for each in now["upstreams"]))
            if does == "refuse":
                await bad.stop()
            left, replies = iter(range(REQUESTS)), list[Reply]()
            begun_s = time.perf_counter()

            async def client(service: Any = service, left: Any = left, replies: Any = replies) -> None:
                for _ in left:
                    replies.append(await service.post("/api/generate", {"model": MODEL, "prompt": "hi"}))

            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(client())
            status = await service.at_rest()
            good = sum(reply.status == 200 and bool(reply.lines[-1].get("done")) for reply in replies)
            rows.append(
                {
                    "server a": does,
                    "requests": REQUESTS,
                    "good": good,
                    "begun_and_broken": sum(
                        "error" in reply.lines[-1] for reply in replies if reply.status == 200
                    ),
                    "statuses": Counter(reply.status for reply in replies),
                    "asked": {each["name"]: each["requests"] for each in status["upstreams"]},
                    "failovers": status["failovers"],
                    "seconds": time.perf_counter() - begun_s,
                }
            )
    return rows


async def returns(rounds: int) -> Row:
    """Measure how long a server that listens again is left alone, with the usual looks every two seconds."""
    a, b = Node(), Node()
    async with (
        running(a, b),
        gateway(f"{a.url},name=a", f"{b.url},name=b", route="least-inflight") as service,
    ):
        is_over = False

        async def client() -> None:
            while not is_over:
                await service.post("/api/generate", {"model": MODEL, "prompt": "hi"})
                await asyncio.sleep(0.01)

        seconds = []
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())
            for _ in range(rounds):
                await a.called(len(a.asked) + 20)
                await a.stop()
                await service.until(lambda now: now["upstreams"][0]["state"] == "down")
                await asyncio.sleep(random.Random(len(seconds)).uniform(0.0, 2.0))
                begun_s, asked = time.perf_counter(), len(a.asked)
                await a.start()
                await a.called(asked + 1)
                seconds.append(time.perf_counter() - begun_s)
            is_over = True
    return {**interval(seconds), "max": max(seconds), "floor": MOST_RETURN_S}


def show(results: Row) -> bool:
    """Print the tables; return whether every floor is kept."""
    console, kept = Console(width=130), []
    table = Table(title="Microseconds and ratios", show_edge=False)
    for column in ("", "n", "median", "95 % interval", "floor"):
        table.add_column(column, justify="left" if not column else "right")

    def add(name: str, n: int, value: str, span: str, floor: str, is_kept: bool) -> None:
        kept.append(is_kept)
        table.add_row(name, str(n), value, span, f"{floor} {'kept' if is_kept else 'MISSED'}")

    for policy, row in results["decision_s"].items():
        span = f"{row['low'] * 1e6:.1f} … {row['high'] * 1e6:.1f}"
        floor, is_kept = f"{row['floor'] * 1e6:.0f}", row["p50"] <= row["floor"]
        add(f"decision, {policy}", row["n"], f"{row['p50'] * 1e6:.1f}", span, floor, is_kept)
    for arm, row in results["added"].items():
        span = f"{row['low'] * 1e6:+.1f} … {row['high'] * 1e6:+.1f}"
        value, is_kept = f"{row['estimate'] * 1e6:+.1f}", row["estimate"] <= row["floor"]
        add(f"added by: {arm}", row["pairs"], value, span, f"{row['floor'] * 1e6:.0f}", is_kept)
    row = results["throughput"]
    span = f"{row['low']:.3f} … {row['high']:.3f}"
    value, is_kept = f"{row['estimate']:.3f}×", row["estimate"] >= row["floor"]
    add("requests/s, three beside one", row["pairs"], value, span, f"{row['floor']:.2f}", is_kept)
    row = results["return_s"]
    span = f"{row['low']:.2f} … {row['high']:.2f} s"
    add(
        "asked again after",
        row["n"],
        f"{row['p50']:.2f} s",
        span,
        f"{row['floor']:.0f} s",
        row["max"] <= row["floor"],
    )
    console.print(table)
    table = Table(title=f"Server a is bad; {REQUESTS} requests of {CLIENTS} clients", show_edge=False)
    for column in ("a", "good", "broken after begin", "asked a / b / c", "failovers", "seconds"):
        table.add_column(column, justify="right")
    for row in results["faults"]:
        asked = " / ".join(str(count) for count in row["asked"].values())
        cells = (row["server a"], row["good"], row["begun_and_broken"], asked, row["failovers"])
        table.add_row(*map(str, cells), f"{row['seconds']:.2f}")
        kept.append(row["good"] + row["begun_and_broken"] == REQUESTS)
    console.print(table)
    return all(kept)


async def main(arguments: argparse.Namespace) -> int:
    """Run everything, print the tables, write the results; 1 if a floor is missed."""
    rounds, seconds, load_before = (
        (6, 0.4, os.getloadavg()) if arguments.quick else (20, 1.5, os.getloadavg())
    )
    results = {
        "decision_s": await decisions(3 * rounds),
        "added": await added(2 * rounds),
        "throughput": await throughput(rounds, seconds),
        "faults": await faults(),
        "return_s": await returns(rounds),
    }
    is_kept = show(results)
    heads = {"benchmark": "cluster", "machine": host.describe(), "load_average_before": load_before}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {**heads, "load_average_after": os.getloadavg(), "is_kept": is_kept, **results},
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    return 0 if is_kept else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter visits, to try it")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main(parser.parse_args())))
