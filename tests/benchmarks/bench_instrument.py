"""The instrument against the truth: the load generator's numbers against a server that knows its own.

Two questions, each answered against ``python -m ollamalab.scripted`` in a process and on a core of its
own, with the generator on another core:

*Arrival times.* 64 streams of 100 lines/s, 1,280 requests: how far are the reported TTFT and TPOT from
the server's own write stamps? Limits: TTFT p50 within 2 ms, p99 within 6 ms, TPOT within 1 %.

*Queueing.* Response times from the planned send, against Lindley's recursion on the same plan: 3 %.

Run: ``python tests/benchmarks/bench_instrument.py`` (about 80 s). Writes
``tests/benchmarks/results/instrument.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.connection import OllamaConnection, new_event_loop
from ollamalab.loadgen import LoadGenerator, LoadResult, LoadSettings
from ollamalab.metrics import lindley_response_s, measured, percentile, percentile_interval, tpot_s
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome
from ollamalab.scripted import Script
from ollamalab.workload import chat_body, inference_request, text_prompt

RESULTS = Path(__file__).parent / "results" / "instrument.json"
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
STREAMS, REQUESTS = 64, 1280
ROUNDS = 3  # a shared machine takes the core away for 300 ms now and then; the health of a round tells
SERVICE_S = 0.41


def request(index: int) -> Request:
    """Return a request whose prompt begins with its number: the key to the server's log."""
    prompt = text_prompt(f"{index:06d} Tell me about the sea.", num_predict=32)
    return inference_request("/api/chat", chat_body(prompt, "scripted"))


@asynccontextmanager
async def scripted(*options: str) -> AsyncIterator[str]:
    """Give the URL of a scripted server in a process of its own."""
    command = [sys.executable, "-m", "ollamalab.scripted", "--core", str(SERVER_CORE), *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def offer(url: str, settings: LoadSettings) -> tuple[LoadResult, dict[int, dict[str, Any]]]:
    """Return what the generator saw, and what the server itself logged, by request number."""
    async with OllamaConnection(url) as upstream:
        result = await LoadGenerator(upstream, target=url).run(settings, request)
    async with aiohttp.ClientSession() as session, session.get(f"{url}/script/log") as reply:
        log = (await reply.json())["requests"]
    return result, {int(served["prompt"][:6]): served for served in log}


def spread(values: list[float]) -> dict[str, Any]:
    """Return p50, p99, maximum and the 95 % interval of both percentiles, in milliseconds."""
    row: dict[str, Any] = {"n": len(values), "max_ms": max(values) * 1e3}
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        interval = percentile_interval(values, share)
        row[f"{name}_ms"] = percentile(values, share) * 1e3
        row[f"{name}_interval_ms"] = interval and [end * 1e3 for end in interval]
    return row


@dataclass
class ArrivalCase:
    """One way of offering 64 streams."""

    name: str
    settings: LoadSettings


ARRIVAL_CASES = [
    ArrivalCase(
        f"closed loop, {STREAMS} clients",
        LoadSettings(clients=STREAMS, requests=REQUESTS, warmup=STREAMS, ramp_s=SERVICE_S),
    ),
    ArrivalCase(
        f"constant {STREAMS / SERVICE_S:.0f} requests/s",
        LoadSettings(
            arrivals=Arrivals(pattern=ArrivalPattern.CONSTANT, rate_rps=STREAMS / SERVICE_S),
            requests=REQUESTS,
            warmup=STREAMS,
        ),
    ),
]


async def arrival_case(case: ArrivalCase) -> dict[str, Any]:
    """Return how far reported arrival times are from the server's write stamps."""
    async with scripted() as url:
        result, log = await offer(url, case.settings)
    records = measured(result.records)
    assert len(records) == REQUESTS, f"{len(records)} records of {REQUESTS}"
    assert all(record.outcome is Outcome.OK for record in records), "a request failed"
    reported, truth, late, tpot_ratio = [], [], [], []
    for record in records:
        written_s = log[record.index]["written_s"]
        assert record.sent_s is not None
        assert record.first_token_s is not None
        assert len(record.token_times_s) == len(written_s) == 32
        reported.append(record.first_token_s - record.sent_s)
        truth.append(written_s[0] - record.sent_s)
        late.append(record.first_token_s - written_s[0])
        true_tpot_s = (written_s[-1] - written_s[0]) / (len(written_s) - 1)
        tpot_ratio.append((tpot_s(record) or 0.0) / true_tpot_s)
    p50_off_s, p99_off_s = (percentile(reported, s) - percentile(truth, s) for s in (0.5, 0.99))
    tpot_off = abs(statistics.fmean(tpot_ratio) - 1)
    chunks = sum(len(record.token_times_s) for record in records)
    return {
        "case": case.name,
        "ttft_reported": spread(reported),
        "ttft_truth": spread(truth),
        "stamp_late": spread(late),
        "ttft_p50_off_ms": p50_off_s * 1e3,
        "ttft_p99_off_ms": p99_off_s * 1e3,
        "tpot_off_ratio": tpot_off,
        "tpot_worst_request_ratio": max(abs(ratio - 1) for ratio in tpot_ratio),
        "shared_read_ratio": sum(record.shared_reads for record in records) / chunks,
        "health": asdict(result.health),
        "within_limits": abs(p50_off_s) <= 0.002 and abs(p99_off_s) <= 0.006 and tpot_off <= 0.01,
    }


@dataclass
class QueueCase:
    """A plan into one slot, and what arithmetic says of it."""

    name: str
    arrivals: Arrivals
    requests: int
    stall: tuple[int, float] | None = None


CONSTANT, POISSON = ArrivalPattern.CONSTANT, ArrivalPattern.POISSON
QUEUE_CASES = [
    QueueCase("10/s into 410 ms, n = 20", Arrivals(pattern=CONSTANT, rate_rps=10), 20),
    QueueCase("10/s into 410 ms, n = 10", Arrivals(pattern=CONSTANT, rate_rps=10), 10),
    QueueCase("2/s into 410 ms (ρ = 0.82)", Arrivals(pattern=CONSTANT, rate_rps=2), 40),
    QueueCase("Poisson 1.7/s (ρ = 0.7)", Arrivals(pattern=POISSON, rate_rps=1.7), 50),
    QueueCase("1/s, 5 s stall on the 10th", Arrivals(pattern=CONSTANT, rate_rps=1), 30, stall=(9, 5.0)),
]


async def queue_case(case: QueueCase) -> dict[str, Any]:
    """Return response times from the planned send beside Lindley's."""
    script = Script(stalls=dict([case.stall]) if case.stall else {})
    options = ["--slots", "1"] + (["--stall", f"{case.stall[0]}={case.stall[1]}"] if case.stall else [])
    settings = LoadSettings(arrivals=case.arrivals, requests=case.requests)
    async with scripted(*options) as url:
        result, _ = await offer(url, settings)
    records = result.records
    reported = [(record.end_s or 0.0) - record.intended_s for record in records]
    service = [script.service_s(index) for index in range(case.requests)]
    truth = lindley_response_s(settings.plan_s(), service)
    off = statistics.fmean(reported) / statistics.fmean(truth) - 1
    return {
        "case": case.name,
        "n": case.requests,
        "mean_s": statistics.fmean(reported),
        "max_s": max(reported),
        "lindley_mean_s": statistics.fmean(truth),
        "lindley_max_s": max(truth),
        "service_mean_s": statistics.fmean(service),  # the headline of tools that omit the wait
        "off_ratio": off,
        "worst_request_ms": max(abs(a - b) for a, b in zip(reported, truth, strict=True)) * 1e3,
        "send_lag_max_ms": max((record.sent_s or 0.0) - record.intended_s for record in records) * 1e3,
        "within_limits": abs(off) <= 0.03,
    }


def table(title: str, *columns: str) -> Table:
    """Return an empty table with its numbers on the right."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(column, justify="left" if column == "case" else "right")
    return made


def show(arrivals: list[dict[str, Any]], queues: list[dict[str, Any]]) -> None:
    """Print both tables."""
    stamps = table(
        "Reported against the server's write stamps",
        *(
            "case",
            "TTFT p50 off",
            "p99 off",
            "stamp late p50 / p99 / max",
            "TPOT off",
            "CPU",
            "client fit",
            "within limits",
        ),
    )
    for row in arrivals:
        late = row["stamp_late"]
        stamps.add_row(
            row["case"],
            f"{row['ttft_p50_off_ms']:.2f} ms",
            f"{row['ttft_p99_off_ms']:.2f} ms",
            f"{late['p50_ms']:.2f} / {late['p99_ms']:.2f} / {late['max_ms']:.2f} ms",
            f"{row['tpot_off_ratio']:.3%}",
            f"{row['health']['cpu_ratio']:.0%}",
            "no" if row["health"]["reasons"] else "yes",
            "yes" if row["within_limits"] else "no",
        )
    lindley = table(
        "Mean response time from the planned send against Lindley's recursion",
        *("case", "n", "reported", "Lindley", "off", "service alone", "within limits"),
    )
    for row in queues:
        lindley.add_row(
            row["case"],
            f"{row['n']}",
            f"{row['mean_s']:.3f} s",
            f"{row['lindley_mean_s']:.3f} s",
            f"{row['off_ratio']:.2%}",
            f"{row['service_mean_s']:.3f} s",
            "yes" if row["within_limits"] else "no",
        )
    for one in (stamps, lindley):
        Console(width=130).print(one)


async def main() -> None:
    """Run every case, print the tables, write the results."""
    os.sched_setaffinity(0, {CLIENT_CORE})
    load_before = os.getloadavg()
    started_s = time.perf_counter()
    arrivals = [await arrival_case(case) for _ in range(ROUNDS) for case in ARRIVAL_CASES]
    queues = await asyncio.gather(*map(queue_case, QUEUE_CASES))
    show(arrivals, queues)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "instrument",
                "machine": host.describe(),
                "cores": {"server": SERVER_CORE, "client": CLIENT_CORE},
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "wall_s": time.perf_counter() - started_s,
                "arrival_times": arrivals,
                "queueing": queues,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main())
