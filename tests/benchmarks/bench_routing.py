"""What routing is worth on real servers: three policies, each beside a simpler one, on what it is for.

- *mixed models*: two servers that hold one model each, two models asked for in turn: seconds per request,
  and how many loads there were while the model was in memory elsewhere (avoidable ones);
- *chats*: three chats with the same system prompt that grow side by side, on two servers: prompt tokens
  that the engines evaluated, by their own count; and how far ahead of the other a server ever got;
- *unequal servers*: one has a model that says the same and computes several times as much for it, as a
  slower host would take longer; short and long answers are asked for at moments that do not wait for
  answers (Poisson): seconds per request.

Two embedded servers with SmolLM2, asked through a ``Cluster``. ``METHOD.md``: blocks ABBA or BAAB, both
arms of a block see the same requests and arrivals with different nonces, Hodges-Lehmann estimate with
its exact 95 % interval.

Run: ``python tests/benchmarks/bench_routing.py [--pairs 24]`` (six minutes on a quiet machine). Writes
``tests/benchmarks/results/routing.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table
from routing_servers import ask, deepened, loaded, routed, two_servers

from ollamalab import host
from ollamalab.cluster import Cluster, Member
from ollamalab.compare import Comparison, Metric, Visit, blocks_for_pairs, compare_arms, design
from ollamalab.connection import new_event_loop
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.protocol.calls import Call

RESULTS = Path(__file__).parent / "results" / "routing.json"
SEED = 9
LOAD_S = 0.2  # a shorter ``load_duration`` is no load

SLOTS = 2  # of each server in ``chats``: how far ahead prefix routing may let one get
BURST = 8

DEPTH = 4  # of the slower server's model in ``unequal_servers``, beside the other's
RATE_RPS = 2.5  # about half of what the faster one could take alone
ANSWERS_TOKENS = (4, 16)

SECONDS = Metric(name="e2e_s", better="lower", unit="s")
TOKENS = Metric(name="evaluated_prompt_tokens", better="lower", unit="tokens")

nonces = count()


async def compared(
    arms: tuple[str, str], metric: Metric, pairs: int, visit: Callable[[str, int], Awaitable[float]]
) -> Comparison:
    """Visit both arms in blocks and compare them."""
    values: dict[Visit, float | None] = {}
    for one in design(arms, blocks_for_pairs(pairs, 2), random.Random(SEED)):
        values[one] = await visit(one.arm, one.block)
        print(f"  {one.arm}: {values[one]:.3f} {metric.unit}", flush=True)
    return compare_arms(values, metric, arm=arms[1], baseline=arms[0], is_primary=True)


async def mixed_models(folder: Path, pairs: int) -> dict[str, Any]:
    """Two models on two servers with room for one each."""
    async with two_servers(folder, "--max-loaded-models", "1", "--num-parallel", "1") as both:
        models = (both.servers[0].model, both.servers[0].tools)
        held: dict[str, str] = {}
        loads: dict[str, list[int]] = {}
        avoidable: dict[str, list[int]] = {}

        async def visit(route: str, block: int) -> float:
            rng, seconds, loaded, spared = random.Random(block), [], 0, 0
            async with routed(both.members(), route, block) as cluster:
                for _ in range(4):
                    model = rng.choice(models)
                    prompt = f"{next(nonces)}: name a sea."
                    options = {"num_predict": 8}
                    begun_s = time.perf_counter()
                    name, answer = await ask(
                        cluster, "/api/generate", {"model": model, "prompt": prompt, "options": options}
                    )
                    seconds.append(time.perf_counter() - begun_s)
                    if answer["load_duration"] > LOAD_S * 1e9:
                        loaded += 1
                        spared += model in held.values()
                    held[name] = model
            loads.setdefault(route, []).append(loaded)
            avoidable.setdefault(route, []).append(spared)
            return fmean(seconds)

        for route in ("round-robin", "model-aware"):
            await visit(route, -1)
        loads.clear()
        avoidable.clear()
        found = await compared(("round-robin", "model-aware"), SECONDS, pairs, visit)
    return {
        **asdict(found),
        "loads_per_4_requests": {route: fmean(numbers) for route, numbers in loads.items()},
        "avoidable_loads": {route: sum(numbers) for route, numbers in avoidable.items()},
    }


class Leads:
    """Hears of every request, as ``Visits``: by how many one server was ever ahead of the other.

    Args:
        members: Both.
    """

    def __init__(self, members: list[Member]) -> None:
        self.most = 0
        self._members = members

    def begun(self, name: str, call: Call) -> None:
        """A request is about to be booked at a server."""
        booked = {member.name: member.view.model(call.model_key).in_flight for member in self._members}
        self.most = max(self.most, booked[name] + 1 - min(booked.values()))


async def chats(folder: Path, pairs: int) -> dict[str, Any]:
    """Three chats of three turns each, side by side; fewer pairs, since counts vary less than times."""
    async with two_servers(folder, "--num-parallel", str(SLOTS)) as both, loaded(both, DEFAULT_MODEL):
        ahead: dict[str, int] = {}

        def begin(block: int) -> dict[str, str]:
            duties = "You write down ships, winds and tides in plain words. " * 4
            content = f"Watch {next(nonces)} of {block}. You keep a lighthouse. {duties}"
            return {"role": "system", "content": content}

        async def turn(cluster: Cluster, talk: list[dict[str, str]], words: str, block: int) -> str:
            talk.append({"role": "user", "content": words})
            options = {"num_predict": 4, "seed": block}
            name, answer = await ask(
                cluster, "/api/chat", {"model": DEFAULT_MODEL, "messages": talk, "options": options}
            )
            talk.append({"role": "assistant", "content": answer["message"]["content"]})
            return name

        async def visit(route: str, block: int) -> float:
            before, members = await both.evaluated(), both.members()
            leads = Leads(members)
            async with routed(members, route, block, max_concurrent=SLOTS, visits=leads) as cluster:
                shared = begin(block)
                talks = [[shared] for _ in range(3)]
                for number in range(3):
                    words = f"In hour {number}, what did you see and hear, and what did you write down?"
                    async with asyncio.TaskGroup() as group:
                        for place, talk in enumerate(talks):
                            group.create_task(turn(cluster, talk, f"Keeper {place}: {words}", block))
            ahead[route] = max(ahead.get(route, 0), leads.most)
            return float(await both.evaluated() - before)

        for route in ("round-robin", "prefix"):
            await visit(route, -1)
        found = await compared(("round-robin", "prefix"), TOKENS, pairs // 3, visit)
        members = both.members()
        leads = Leads(members)
        async with routed(members, "prefix", SEED, visits=leads, max_concurrent=SLOTS) as cluster:
            shared = begin(-2)
            async with asyncio.TaskGroup() as group:
                burst = [group.create_task(turn(cluster, [shared], f"{n}?", n)) for n in range(BURST)]
    return {
        **asdict(found),
        "slots": SLOTS,
        "most_ahead": ahead,
        "burst_with_one_beginning": {
            "requests": BURST,
            "by_server": Counter(task.result() for task in burst),
            "most_ahead": leads.most,
        },
    }


async def unequal_servers(folder: Path, pairs: int) -> dict[str, Any]:
    """Two servers with a thread each, one of them slower; each arm knows what it has measured so far."""
    source = ensure_model(DEFAULT_MODEL, ModelStore()).path
    files = folder / "a" / "story.gguf", folder / "b" / "story.gguf"
    for file, times in zip(files, (1, DEPTH), strict=True):
        file.parent.mkdir(parents=True)
        deepened(source, file, times)
    async with (
        two_servers(folder, "--num-parallel", "1", "--threads", "1", models=files) as both,
        loaded(both, "story:latest"),
        routed(both.members(), "least-inflight", SEED) as plain,
        routed(both.members(), "predicted", SEED) as predicted,
    ):
        clusters = {"least-inflight": plain, "predicted": predicted}
        shares: dict[str, list[float]] = {route: [] for route in clusters}

        async def one(route: str, tokens: int, block: int) -> tuple[float, str]:
            prompt = f"{next(nonces)}: tell me about the sea at night."
            options = {"num_predict": tokens, "seed": block}
            begun_s = time.perf_counter()
            body = {"model": "story:latest", "prompt": prompt, "options": options}
            name, _ = await ask(clusters[route], "/api/generate", body)
            return time.perf_counter() - begun_s, name

        async def visit(route: str, block: int) -> float:
            rng, asked = random.Random(block), []
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    asked.append(group.create_task(one(route, rng.choice(ANSWERS_TOKENS), block)))
                    await asyncio.sleep(rng.expovariate(RATE_RPS))
            shares[route].append(fmean(task.result()[1] == "a" for task in asked))
            return fmean(task.result()[0] for task in asked)

        for route in clusters:
            for block in (-1, -2):
                await visit(route, block)
        for numbers in shares.values():
            numbers.clear()
        found = await compared(("least-inflight", "predicted"), SECONDS, pairs, visit)
        speeds = {
            member.name: replica.tokens_per_s
            for member in predicted.statistics().members
            for replica in member.models.values()
        }
    return {
        **asdict(found),
        "share_on_the_faster": {route: fmean(numbers) for route, numbers in shares.items()},
        "tokens_per_s": speeds,
    }


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(title="Routing on two real servers", show_edge=False)
    for column in ("question", "baseline", "arm", "pairs", "estimate", "95 % interval", "verdict"):
        table.add_column(column)
    for question, row in results.items():
        unit = row["metric"]["unit"]
        verdict = row["verdict"]["text"] if row["verdict"] else row["reason"]
        table.add_row(
            question,
            f"{row['baseline']} {row['baseline_value']:.3g} {unit}",
            f"{row['arm']} {row['arm_value']:.3g} {unit}",
            str(row["pairs"]),
            f"{row['estimate']:.2f}×",
            "n/a" if row["low"] is None else f"{row['low']:.2f} … {row['high']:.2f}",
            verdict,
        )
    console = Console(width=150)
    console.print(table)
    own = ("loads_per_4_requests", "avoidable_loads", "most_ahead", "burst_with_one_beginning")
    for row in results.values():
        for fact in (*own, "share_on_the_faster", "tokens_per_s"):
            if fact in row:
                console.print(f"{fact}: {row[fact]}")


QUESTIONS = {"mixed models": mixed_models, "chats": chats, "unequal servers": unequal_servers}


def is_as_claimed(results: dict[str, Any]) -> bool:
    """Return whether every policy is better at what it is for, and keeps what it promises."""
    is_better = all(row["verdict"] and row["verdict"]["is_better"] for row in results.values())
    avoidable = results["mixed models"]["avoidable_loads"]["model-aware"]
    talks = results["chats"]
    ahead = max(talks["most_ahead"]["prefix"], talks["burst_with_one_beginning"]["most_ahead"])
    return is_better and not avoidable and ahead <= SLOTS


async def main(pairs: int, only: str | None) -> int:
    """Run everything, print the table, write the results; 1 if something is not as claimed."""
    load_before = os.getloadavg()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, question in QUESTIONS.items():
            if only in (None, name):
                print(name, flush=True)
                begun_s = time.perf_counter()
                results[name] = await question(Path(folder) / name.replace(" ", "-"), pairs)
                results[name]["took_s"] = time.perf_counter() - begun_s
    show(results)
    if only is not None:
        return 0
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "benchmark": "routing",
                "machine": host.describe(),
                "load_average_before": load_before,
                "load_average_after": os.getloadavg(),
                "questions": results,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )
    return 0 if is_as_claimed(results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What routing is worth on real servers.")
    parser.add_argument("--pairs", type=int, default=24, help="pairs of visits for each question about time")
    parser.add_argument("--only", choices=tuple(QUESTIONS), help="this question only; nothing is written")
    chosen = parser.parse_args()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main(chosen.pairs, chosen.only)))
