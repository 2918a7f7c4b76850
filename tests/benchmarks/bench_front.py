"""What our front costs: the embedded server against the llama.cpp server underneath it.

Both arms ask the same engine process, in turn: ``/api/chat`` of the embedded server, and
``/v1/chat/completions`` of the engine it has loaded, with the body that the front would send. So the
engine, the model, the slots and the prompts are the same, and the difference is ours.

A limit is kept if the whole 95 % interval keeps it.

*Throughput*: tokens per second over a visit, 1 and 8 streams of 48 tokens each. At least 0.97 of raw.
*Time to first token*: one stream at a time. At most 3 ms more at the median.

The prompts are the same in every visit, and the engine has them in its cache: what is left is decoding
and the way there and back, which is what the arms differ in. A prompt to evaluate would add time that
varies from visit to visit, and the same to both.

Run: ``python tests/benchmarks/bench_front.py`` (about four minutes; front, engine and client share the
machine). Writes ``tests/benchmarks/results/front.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rich.console import Console
from rich.table import Table

from ollamalab import host
from ollamalab.compare import Comparison, Metric, Visit, blocks_for_pairs, compare_arms, design
from ollamalab.connection import new_event_loop
from ollamalab.embedded.bodies import CHAT_PATH, chat_body
from ollamalab.embedded.fetch import DEFAULT_MODEL
from ollamalab.hosts import open_target
from ollamalab.protocol.options import Options
from ollamalab.protocol.requests import Message
from ollamalab.settings import ServerSettings

RESULTS = Path(__file__).parent / "results" / "front.json"
RAW, FRONT = "raw llama.cpp", "our front"
SLOTS = 8
CONTEXT_TOKENS = 1024
TOKENS = 48
THROUGHPUT_PAIRS = {1: 80, 8: 40}
TTFT_PAIRS = 120
LEAST_RATIO = 0.97
MOST_TTFT_S = 0.003
SEED = 7

RATE = Metric(name="output_tokens_per_s", better="higher", unit="tokens/s", margin=0.03)
TTFT = Metric(name="ttft_s", better="lower", unit="s", kind="difference", margin=MOST_TTFT_S)


@dataclass(frozen=True)
class Answered:
    """One answer: when its first text came, and how many tokens it had."""

    ttft_s: float
    tokens: int


class Asker:
    """Asks one arm or the other, with the same client and the same reading of lines."""

    def __init__(self, session: aiohttp.ClientSession, front_url: str, engine_url: str) -> None:
        self._session = session
        self._front_url = front_url
        self._engine_url = engine_url

    async def ask(self, arm: str, prompt: str, tokens: int) -> Answered:
        """Return how an answer of this arm came."""
        options = {"num_predict": tokens, "temperature": 0.0, "seed": 1}
        if arm == FRONT:
            url, marks = f"{self._front_url}/api/chat", (b'"content":"', b'"eval_count":')
            messages = [{"role": "user", "content": prompt}]
            body = {"model": DEFAULT_MODEL, "messages": messages, "options": options}
        else:
            url, marks = f"{self._engine_url}{CHAT_PATH}", (b'"content":"', b'"predicted_n":')
            message = Message(role="user", content=prompt)
            body = chat_body([message], Options(**options), num_ctx=CONTEXT_TOKENS)
        # The engine closes connections after a stream without saying so: never reuse them.
        headers = {"Connection": "close"} if arm == RAW else {}
        data = msgspec.json.encode(body)
        first_s, count, tail = None, None, b""
        started_s = time.perf_counter()
        async with self._session.post(url, data=data, headers=headers) as reply:
            reply.raise_for_status()
            async for chunk in reply.content.iter_any():
                if first_s is None and marks[0] in chunk:
                    first_s = time.perf_counter()
                tail = (tail + chunk)[-2000:]
        count = int(tail.rpartition(marks[1])[2].split(b",")[0])
        assert first_s is not None
        return Answered(first_s - started_s, count)


def prompt(stream: int) -> str:
    """Return the prompt of a stream, which shares no beginning with the others."""
    return f"{stream} Tell a long story about the sea and the people who live by it."


async def throughput(asker: Asker, streams: int, rng: random.Random) -> dict[Visit, float | None]:
    """Return tokens per second of each visit."""

    async def visit(arm: str) -> float:
        started_s = time.perf_counter()
        answers = await asyncio.gather(*(asker.ask(arm, prompt(stream), TOKENS) for stream in range(streams)))
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - started_s)

    return await visits(THROUGHPUT_PAIRS[streams], rng, visit)


async def first_tokens(asker: Asker, rng: random.Random) -> dict[Visit, float | None]:
    """Return the time to first token of each visit."""

    async def visit(arm: str) -> float:
        return (await asker.ask(arm, "Say hello.", 2)).ttft_s

    return await visits(TTFT_PAIRS, rng, visit)


async def visits(
    pairs: int, rng: random.Random, visit: Callable[[str], Awaitable[float]]
) -> dict[Visit, float | None]:
    """Visit the arms in the order of the design; a warm-up visit of each goes before."""
    for arm in (RAW, FRONT):
        await visit(arm)
    plan = design([RAW, FRONT], blocks_for_pairs(pairs, 2), rng)
    return {planned: await visit(planned.arm) for planned in plan}


def judged(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as saved, with whether it keeps to its limit."""
    is_rate = comparison.metric is RATE
    low, high = comparison.low, comparison.high
    assert low is not None
    assert high is not None
    is_kept = low >= LEAST_RATIO if is_rate else high <= MOST_TTFT_S
    return {**asdict(comparison), "limit": LEAST_RATIO if is_rate else MOST_TTFT_S, "limit_kept": is_kept}


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="Our front against the llama.cpp server underneath", show_edge=False)
    for column in ("case", "pairs", RAW, FRONT, "front / raw, or - raw", "95 % interval", "limit", "kept"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case, row in rows.items():
        scale, unit = (1000, " ms") if case.startswith("time") else (1, "")
        digits = 2 if scale == 1000 else 3

        def text(value: float, digits: int = digits, scale: int = scale, unit: str = unit) -> str:
            return f"{value * scale:.{digits}f}{unit}"

        table.add_row(
            case,
            str(row["pairs"]),
            text(row["baseline_value"], 1),
            text(row["arm_value"], 1),
            text(row["estimate"]),
            f"{text(row['low'])} … {text(row['high'])}",
            text(row["limit"]),
            "yes" if row["limit_kept"] else "no",
        )
    Console(width=130).print(table)


async def main() -> int:
    """Run every case, print the table, write the results; 1 if a limit is not kept."""
    rng = random.Random(SEED)
    load_before = os.getloadavg()
    settings = ServerSettings(num_parallel=SLOTS, context_length=CONTEXT_TOKENS)
    async with open_target("embedded", settings, models=[DEFAULT_MODEL]) as target:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            preload = {"model": DEFAULT_MODEL}
            async with session.post(f"{target.url}/api/generate", json=preload) as reply:
                reply.raise_for_status()
            async with session.get(f"{target.url}/lab/engines") as reply:
                (engine,) = await reply.json()
            asker = Asker(session, target.url, engine["url"])
            rows: dict[str, dict[str, Any]] = {}
            for streams in THROUGHPUT_PAIRS:
                values = await throughput(asker, streams, rng)
                found = compare_arms(values, RATE, arm=FRONT, baseline=RAW)
                rows[f"{streams} stream{'s' if streams > 1 else ''}"] = judged(found)
            ttft_values = await first_tokens(asker, rng)
            found = compare_arms(ttft_values, TTFT, arm=FRONT, baseline=RAW)
            rows["time to first token"] = judged(found)
    medians = {
        arm: statistics.median(value for visit, value in ttft_values.items() if visit.arm == arm and value)
        for arm in (RAW, FRONT)
    }
    show(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "front",
                "machine": host.describe(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "slots": SLOTS,
                "tokens_per_answer": TOKENS,
                "ttft_median_s": medians,
                "cases": rows,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    return 0 if all(row["limit_kept"] for row in rows.values()) else 1


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main()))
