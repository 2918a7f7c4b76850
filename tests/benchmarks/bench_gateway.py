"""What the gateway costs beside nginx and LiteLLM, in front of the same scripted upstream.

One worker each. The gateway under test has the last core for itself, upstream and clients share the
others; for latencies nothing is bound. With three cores or more the upstream has all but two. Within a
block each arm is visited once, in an order drawn anew; ratios and differences are taken per block
(Hodges-Lehmann estimate, exact 95 % interval).

Streams of single lines cost the upstream as much as the gateway, 128 writes through TCP: on two cores
upstream and clients are the bound of every fast arm. A gateway that is itself the bound finds several lines
at each read, nginx too, so its streams cost less the further it is behind: the row of streams that come in
groups shows that end.

*direct* is the upstream without a gateway, so the bound of this harness; *relay* is our HTTP in and out
with nothing between them, the bound of what is built on them. ``cpu`` is processor time of the gateway's
processes per request, which a busy neighbour and the harness falsify least.

Run: ``python tests/benchmarks/bench_gateway.py [--rounds 12] [--quick] [--litellm VENV]`` (about six
minutes). Writes ``tests/benchmarks/results/gateway.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pstats
import random
import re
import resource
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gateway_harness
import gateway_subjects as subjects
from gateway_harness import (
    GROUP,
    GROUPED_MODEL,
    HELD_MODEL,
    LINES,
    MODEL,
    PACED_MODEL,
    STREAM_MODEL,
    request,
)
from gateway_subjects import Plan, Subject, started
from gateway_table import show

from ollamalab import host
from ollamalab.compare import Comparison, Metric, Visit, blocks_for_pairs, compare_arms, design
from ollamalab.connection import new_event_loop

RESULTS = Path(__file__).parent / "results" / "gateway.json"
SEED = 11
CORES = sorted(os.sched_getaffinity(0))
UPSTREAMS = max(1, len(CORES) - 2)  # processes
HELD_STREAMS = 1000
MOST_RESIDENT_BYTES = 120 * 2**20
OPEN_FILES = 8192
PROFILE_LINES = 25
_CREATED_AT = re.compile('"created_at":"[^"]*"')
CHAT, OPENAI = "/api/chat", "/v1/chat/completions"
DIRECT, NGINX, NGINX_CACHE, LITELLM = "direct", "nginx", "nginx proxy_cache", "LiteLLM"
OURS, ADAPTIVE, CACHE, RELAY = "ollamalab", "ollamalab --batch adaptive", "ollamalab --cache memory", "relay"

RATE = Metric(name="requests_per_s", better="higher", unit="requests/s", margin=0.05)
LINE_RATE = Metric(name="lines_per_s", better="higher", unit="lines/s", margin=0.05)
CAPACITY = Metric(name="lines_per_cpu_s", better="higher", unit="lines/s", margin=0.05)
LATENCY = Metric(name="e2e_s", better="lower", unit="s", kind="difference", margin=0.0002)
FIRST = Metric(name="first_byte_s", better="lower", unit="s", kind="difference", margin=0.0002)


_KEYS = {
    RATE: "rate",
    LINE_RATE: "lines",
    CAPACITY: "lines_per_cpu_s",
    LATENCY: "e2e_s",
    FIRST: "first_byte_s",
}


@dataclass(frozen=True)
class Row:
    """One question of the table.

    Attributes:
        case: As shown.
        metric: What is compared.
        baseline: With what the others are compared.
        arms: The others; those with a floor come first.
        floors: What the first ones must reach: a ratio at least, or a difference at most.
        path: Where requests go.
        is_stream: Whether answers are streams.
        connections: Clients in a closed loop.
        model: What they ask for.
    """

    case: str
    metric: Metric
    baseline: str
    arms: tuple[str, ...]
    floors: dict[str, float]
    path: str = CHAT
    is_stream: bool = False
    connections: int = 16
    model: str = MODEL


ROWS = (
    Row("non-streaming, 16 connections", RATE, NGINX, (OURS, RELAY, DIRECT), {OURS: 0.35}),
    Row("non-streaming /v1, 16 connections", RATE, LITELLM, (OURS,), {OURS: 50.0}, OPENAI),
    Row(
        f"streams of {LINES} lines, 16 connections",
        LINE_RATE,
        NGINX,
        (OURS, ADAPTIVE, RELAY, DIRECT),
        {OURS: 1.0, ADAPTIVE: 1.5},
        is_stream=True,
    ),
    Row(
        "the same, per second of the gateway's processor",
        CAPACITY,
        NGINX,
        (OURS, ADAPTIVE, RELAY),
        {OURS: 1.0, ADAPTIVE: 1.5},
        is_stream=True,
    ),
    Row(
        f"streams of {LINES} lines, {GROUP} a write, 16 connections",
        LINE_RATE,
        NGINX,
        (OURS, ADAPTIVE, RELAY),
        {},
        is_stream=True,
        model=GROUPED_MODEL,
    ),
    Row("non-streaming, 1 connection", LATENCY, DIRECT, (OURS, RELAY, NGINX), {OURS: 0.0005}, connections=1),
    Row(
        "time to first token, 1 connection",
        FIRST,
        DIRECT,
        (OURS, RELAY, NGINX),
        {OURS: 0.0006},
        is_stream=True,
        connections=1,
        model=PACED_MODEL,
    ),
    Row("cache hits, 16 connections", RATE, NGINX_CACHE, (CACHE,), {CACHE: 0.25}),
)


class Load:
    """The process of the clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def do(self, what: str, **command: Any) -> dict[str, Any]:
        """Give a command, return its result; with ``error`` if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **command}).encode() + b"\n")
        return dict(json.loads(await self.process.stdout.readline()))


@asynccontextmanager
async def harness(*role: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the upstream, if need be at a port that it shares, or the clients."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        gateway_harness.__file__,
        *role,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


class Bench:
    """Upstream, clients and every gateway that can be had, all running.

    Attributes:
        subjects: By name.
        missing: Why the others are not there.
    """

    def __init__(
        self, upstreams: Sequence[asyncio.subprocess.Process], load: Load, upstream_port: int
    ) -> None:
        self._harness = (*(process.pid for process in upstreams), load.process.pid)
        self.load = load
        self.subjects = {DIRECT: Subject(DIRECT, upstream_port)}
        self.missing: dict[str, str] = {}

    def place(self, subject: Subject, *, is_bound: bool) -> None:
        """Give the gateway a core of its own, or let the system place everything."""
        own, others = (CORES[-1:], CORES[:-1] or CORES) if is_bound else (CORES, CORES)
        for process in subject.processes():
            os.sched_setaffinity(process.pid, own)
        for pid in self._harness:
            os.sched_setaffinity(pid, others)

    async def visit(self, row: Row, name: str, seconds: float) -> dict[str, Any]:
        """Return what one visit found; ``cpu_s`` is the gateway's per request.

        Raises:
            RuntimeError: A request failed.
        """
        subject = self.subjects[name]
        self.place(subject, is_bound=row.connections > 1)
        data = request(row.path, is_stream=row.is_stream, model=row.model).decode()
        cpu_s = subject.cpu_s()
        found = await self.load.do(
            "load",
            port=subject.port,
            request=data,
            connections=row.connections,
            seconds=seconds,
            warm_s=seconds / 4,
        )
        if "error" in found:
            raise RuntimeError(f"{name}, {row.case}: {found['error']}")
        found["cpu_s"] = (subject.cpu_s() - cpu_s) / max(1, found["all_answers"])
        found["lines"] = found["rate"] * LINES if row.is_stream else None
        found["lines_per_cpu_s"] = LINES / found["cpu_s"] if row.is_stream and found["cpu_s"] else None
        return found

    async def check(self) -> None:
        """Fail unless every gateway but LiteLLM, which speaks another API, passes answers on byte by byte.

        Asked twice, so that caches answer from what they keep, with the moment of the answer made new;
        each form has a model of its own, since a stored answer serves both.

        Raises:
            RuntimeError: One does not.
        """
        for model in (MODEL, STREAM_MODEL) * 2:
            data = request(CHAT, is_stream=model == STREAM_MODEL, model=model).decode()
            bodies = {
                subject.name: await self.load.do("body", port=subject.port, request=data)
                for subject in self.subjects.values()
                if subject.name != LITELLM
            }
            texts = {name: _CREATED_AT.sub("", body["body"]) for name, body in bodies.items()}
            wrong = [name for name, text in texts.items() if text != texts[DIRECT]]
            if wrong or not bodies[DIRECT]["is_whole"]:
                raise RuntimeError(f"{', '.join(wrong) or DIRECT} does not pass on what the upstream says")

    async def held_memory(self, name: str, streams: int) -> dict[str, Any]:
        """Return the memory of a gateway with so many open streams, and before."""
        subject = self.subjects[name]
        before = subject.resident_bytes()
        data = request(CHAT, is_stream=True, model=HELD_MODEL).decode()
        found = await self.load.do("hold", port=subject.port, request=data, connections=streams)
        if "error" in found:
            raise RuntimeError(f"{name}, held streams: {found['error']}")
        result = {"open_streams": streams, "resident_bytes": subject.resident_bytes(), "before_bytes": before}
        await self.load.do("release")
        return result


@asynccontextmanager
async def bench(plans: Sequence[Plan]) -> AsyncIterator[Bench]:
    """Start everything."""
    async with AsyncExitStack() as stack:
        upstreams, port = [], 0
        for _ in range(UPSTREAMS):
            upstreams.append(await stack.enter_async_context(harness("upstream", str(port))))
            printed = upstreams[-1].stdout
            assert printed is not None
            port = int(await printed.readline())
        load = Load(await stack.enter_async_context(harness("load")))
        everything = Bench(upstreams, load, port)
        for plan in plans:
            if plan.reason:
                everything.missing[plan.name] = plan.reason
                continue
            try:
                everything.subjects[plan.name] = await stack.enter_async_context(started(plan, port))
            except RuntimeError as error:
                everything.missing[plan.name] = str(error)
        yield everything


async def measure(
    everything: Bench, row: Row, rounds: int, seconds: float, rng: random.Random
) -> dict[str, Any]:
    """Return one row: every arm beside the baseline."""
    arms = [name for name in (row.baseline, *row.arms) if name in everything.subjects]
    if row.baseline not in arms or len(arms) < 2:
        absent = [name for name in (row.baseline, *row.arms) if name in everything.missing]
        return {
            "case": row.case,
            "not_run": "; ".join(f"{name}: {everything.missing[name]}" for name in absent),
        }
    key = _KEYS[row.metric]
    for arm in arms:
        await everything.visit(row, arm, seconds)
    values: dict[Visit, float | None] = {}
    cpu_s: dict[str, list[float]] = {arm: [] for arm in arms}
    reads: dict[str, list[float]] = {arm: [] for arm in arms}
    for visit in design(arms, blocks_for_pairs(rounds, len(arms)), rng):
        found = await everything.visit(row, visit.arm, seconds)
        values[visit] = found[key]
        cpu_s[visit.arm].append(found["cpu_s"])
        reads[visit.arm].append(found["reads"])
    return {
        "case": row.case,
        "baseline": row.baseline,
        "cpu_s_per_request": {arm: statistics.median(seen) for arm, seen in cpu_s.items()},
        "client_reads_per_answer": {arm: statistics.median(seen) for arm, seen in reads.items()},
        "arms": [
            judged(compare_arms(values, row.metric, arm=arm, baseline=row.baseline), row.floors.get(arm))
            for arm in arms[1:]
        ],
    }


def judged(found: Comparison, floor: float | None) -> dict[str, Any]:
    """Return a comparison as saved, with whether it keeps to its floor."""
    assert found.estimate is not None
    is_ratio = found.metric.kind == "ratio"
    is_kept = None if floor is None else found.estimate >= floor if is_ratio else found.estimate <= floor
    return {**asdict(found), "floor": floor, "floor_kept": is_kept}


async def profiled(upstream_port: int, load: Load, row: Row, seconds: float) -> dict[str, Any]:
    """Return which functions of the gateway take most of the time under a load.

    What runs in C without a frame (uvloop, llhttp, system calls) counts for the function that called it,
    and for none where the event loop did; the profiler itself makes small functions look larger.
    """
    data = request(row.path, is_stream=row.is_stream).decode()
    command = {"request": data, "connections": row.connections, "seconds": seconds, "warm_s": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile"
        async with started(subjects.ours(OURS, profile=file), upstream_port) as subject:
            (process, *_) = subject.processes()
            await load.do("load", port=subject.port, **command)
            process.send_signal(signal.SIGUSR1)
            found = await load.do("load", port=subject.port, **command)
            process.send_signal(signal.SIGUSR2)
            while not file.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.01)
        timings: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
        timings = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    answers = found["all_answers"]
    lines = [
        {
            "function": f"{Path(source).name}:{number} {name}",
            "calls_per_answer": round(calls / answers, 2),
            "own_us_per_answer": round(own_s / answers * 1e6, 2),
            "with_callees_us_per_answer": round(whole_s / answers * 1e6, 2),
        }
        for (source, number, name), (_, calls, own_s, whole_s, _) in timings.items()
    ]
    tables = {
        key: sorted(lines, key=lambda line: -line[f"{key}_us_per_answer"])[:PROFILE_LINES]
        for key in ("own", "with_callees")
    }
    return {"answers": answers, **tables}


async def main(arguments: argparse.Namespace) -> int:
    """Run everything, print the tables, write the results; 1 if a floor is missed."""
    rounds, seconds = (6, 0.4) if arguments.quick else (arguments.rounds, 1.5)
    rng, load_before = random.Random(SEED), os.getloadavg()
    plans = [
        subjects.nginx(NGINX, subjects.STREAMS),
        subjects.nginx(NGINX_CACHE, subjects.CACHING),
        subjects.litellm(arguments.litellm),
        subjects.ours(OURS),
        subjects.ours(ADAPTIVE, "--batch", "adaptive"),
        subjects.ours(CACHE, "--cache", "memory"),
        subjects.relay(RELAY),
    ]
    async with bench(plans) as everything:
        await everything.check()
        memory: list[dict[str, Any]] = []
        for name in (OURS, NGINX):
            if name in everything.subjects:
                memory.append({"arm": name, **await everything.held_memory(name, HELD_STREAMS)})
            else:
                memory.append({"arm": name, "not_run": everything.missing[name]})
        rows = [await measure(everything, row, rounds, seconds, rng) for row in ROWS]
        profiles: dict[str, Any] = {}
        if OURS in everything.subjects:
            port, load = everything.subjects[DIRECT].port, everything.load
            profiles = {row.case: await profiled(port, load, row, seconds) for row in (ROWS[0], ROWS[2])}
    show(rows, memory)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "gateway",
                "machine": host.describe(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "upstream_processes": UPSTREAMS,
                "rounds": rounds,
                "seconds_per_visit": seconds,
                "rows": rows,
                "memory": memory,
                "most_resident_bytes": MOST_RESIDENT_BYTES,
                "profile": profiles,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    kept = [arm["floor_kept"] for row in rows for arm in row.get("arms", ())]
    kept += [held["resident_bytes"] <= MOST_RESIDENT_BYTES for held in memory[:1] if "resident_bytes" in held]
    return 1 if False in kept else 0


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12, help="blocks per row; each visits every arm")
    parser.add_argument("--quick", action="store_true", help="six short rounds, to see that it works")
    parser.add_argument(
        "--litellm", metavar="VENV", default=os.environ.get("LITELLM_VENV"), help="with litellm[proxy] in it"
    )
    return parser.parse_args()


if __name__ == "__main__":
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main(parsed())))
