"""What routing is worth on real servers: three policies, each beside a simpler one, on what it is for.

- *mixed models*: two servers that hold one model each, two models asked for in turn: seconds per request,
  and how many loads there were while the model was in memory elsewhere (avoidable ones);
- *chats*: three chats that grow, on two servers: prompt tokens that the engines evaluated, by their own
  count;
- *unequal servers*: one with two threads, one with one: seconds per request, one at a time.

Two embedded servers with SmolLM2, asked through a ``Cluster``. ``METHOD.md``: blocks ABBA or BAAB, both
arms of a block see the same requests with different nonces, Hodges-Lehmann estimate with its exact 95 %
interval.

Run: ``python tests/benchmarks/bench_routing.py [--pairs 12]`` (about eight minutes). Writes
``tests/benchmarks/results/routing.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from embedded_server import EmbeddedServer, embedded_server

from ollamalab import host
from ollamalab.cluster import Cluster, Member
from ollamalab.compare import Comparison, Metric, Visit, blocks_for_pairs, compare_arms, design
from ollamalab.connection import OllamaConnection, new_event_loop
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.upstream import Request
from ollamalab.settings import ClusterSettings

RESULTS = Path(__file__).parent / "results" / "routing.json"
SEED = 9
NAMES = ("a", "b")
LOAD_S = 0.2  # a shorter ``load_duration`` is no load
STILL = ClusterSettings(probe_interval_s=3600.0)
_EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\d+)", re.MULTILINE)

SECONDS = Metric(name="e2e_s", better="lower", unit="s")
TOKENS = Metric(name="evaluated_prompt_tokens", better="lower", unit="tokens")

nonces = count()


@dataclass
class Servers:
    """Two servers and connections to them."""

    servers: tuple[EmbeddedServer, EmbeddedServer]
    connections: tuple[OllamaConnection, OllamaConnection]

    def members(self) -> list[Member]:
        """Return them as new members."""
        return [Member(name, connection) for name, connection in zip(NAMES, self.connections, strict=True)]

    async def evaluated(self) -> int:
        """Return how many prompt tokens the engines have evaluated; those from a cache do not count."""
        found = 0
        for server in self.servers:
            for engine in await server.get("/lab/engines"):
                async with server.http.get(f"{engine['url']}/metrics") as reply:
                    found += sum(map(int, _EVALUATED.findall(await reply.text())))
        return found


@asynccontextmanager
async def two_servers(folder: Path, *flags: tuple[str, ...]) -> AsyncIterator[Servers]:
    """Run two servers with these flags."""
    async with AsyncExitStack() as stack:
        servers = []
        for name, own in zip(NAMES, flags, strict=True):
            (folder / name).mkdir(parents=True)
            servers.append(await stack.enter_async_context(embedded_server(folder / name, *own)))
        connections = [await stack.enter_async_context(OllamaConnection(server.url)) for server in servers]
        yield Servers((servers[0], servers[1]), (connections[0], connections[1]))


@asynccontextmanager
async def routed(members: list[Member], route: str, seed: int) -> AsyncIterator[Cluster]:
    """Give a cluster that knows what its members have and hold."""
    async with Cluster(members, route=route, settings=STILL, rng=random.Random(seed)) as cluster:
        for member in members:
            await cluster._watch.list_models(member, 0.0)
            await cluster._watch._list_loaded(member)
        yield cluster


@asynccontextmanager
async def warm(both: Servers) -> AsyncIterator[None]:
    """Have the model loaded on both servers."""
    for server in both.servers:
        await server.post("/api/generate", {"model": server.model, "keep_alive": -1})
    yield


async def ask(cluster: Cluster, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return who answered, and the answer."""
    request = Request(method="POST", path=path, body=json.dumps({**body, "stream": False}).encode())
    async with await cluster.send(request) as reply:
        said = b"".join([chunk async for chunk in reply.chunks()])
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {said[:200]!r}")
        return reply.headers[UPSTREAM_HEADER], json.loads(said)


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
    own = ("--max-loaded-models", "1", "--num-parallel", "1")
    async with two_servers(folder, own, own) as both:
        models = (both.servers[0].model, both.servers[0].tools)
        held: dict[str, str] = {}
        loads: dict[str, list[int]] = {}
        avoidable: dict[str, list[int]] = {}

        async def visit(route: str, block: int) -> float:
            rng, seconds, loaded, spared = random.Random(block), [], 0, 0
            async with routed(both.members(), route, block) as cluster:
                for _ in range(8):
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
        "loads_per_8_requests": {route: fmean(numbers) for route, numbers in loads.items()},
        "avoidable_loads": {route: sum(numbers) for route, numbers in avoidable.items()},
    }


async def chats(folder: Path, pairs: int) -> dict[str, Any]:
    """Three chats of four turns each, a turn of each after the other."""
    own = ("--num-parallel", "2")
    async with two_servers(folder, own, own) as both:
        model = both.servers[0].model

        async def visit(route: str, block: int) -> float:
            before = await both.evaluated()
            async with routed(both.members(), route, block) as cluster:
                talks = [
                    [
                        {
                            "role": "system",
                            "content": f"Talk {next(nonces)} of {block}.{place}. You keep a lighthouse. "
                            + "You write down ships, winds and tides in plain words. " * 5,
                        }
                    ]
                    for place in range(3)
                ]
                for turn in range(4):
                    for talk in talks:
                        words = f"Watch {turn}: what did you see and hear, and what did you write down?"
                        talk.append({"role": "user", "content": words})
                        body = {
                            "model": model,
                            "messages": talk,
                            "options": {"num_predict": 12, "seed": block},
                        }
                        _, answer = await ask(cluster, "/api/chat", body)
                        talk.append({"role": "assistant", "content": answer["message"]["content"]})
            return float(await both.evaluated() - before)

        for route in ("round-robin", "prefix"):
            await visit(route, -1)
        return asdict(await compared(("round-robin", "prefix"), TOKENS, pairs, visit))


async def unequal_servers(folder: Path, pairs: int) -> dict[str, Any]:
    """One server with two threads and one with one; each arm knows what it has measured so far."""
    own = ("--num-parallel", "1")
    async with (
        two_servers(folder, (*own, "--threads", "2"), (*own, "--threads", "1")) as both,
        warm(both),
        routed(both.members(), "least-inflight", SEED) as plain,
        routed(both.members(), "predicted", SEED) as predicted,
    ):
        clusters = {"least-inflight": plain, "predicted": predicted}
        model = both.servers[0].model
        shares: dict[str, list[int]] = {route: [] for route in clusters}

        async def visit(route: str, block: int) -> float:
            seconds, fast = [], 0
            for _ in range(6):
                prompt = f"{next(nonces)}: tell me about the sea at night in block {block}."
                begun_s = time.perf_counter()
                name, _ = await ask(
                    clusters[route],
                    "/api/generate",
                    {"model": model, "prompt": prompt, "options": {"num_predict": 32, "seed": block}},
                )
                seconds.append(time.perf_counter() - begun_s)
                fast += name == "a"
            shares[route].append(fast)
            return fmean(seconds)

        for route in clusters:
            for _ in range(2):
                await visit(route, -1)
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
        "share_on_the_faster": {route: fmean(numbers) / 6 for route, numbers in shares.items()},
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
    console.print(f"loads in 8 requests: {results['mixed models']['loads_per_8_requests']}")
    console.print(f"avoidable loads in all: {results['mixed models']['avoidable_loads']}")
    console.print(f"share on the faster server: {results['unequal servers']['share_on_the_faster']}")


async def main(pairs: int) -> int:
    """Run everything, print the table, write the results; 1 if a policy is not better at what it is for."""
    load_before = os.getloadavg()
    questions = {"mixed models": mixed_models, "chats": chats, "unequal servers": unequal_servers}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, question in questions.items():
            print(name, flush=True)
            results[name] = await question(Path(folder) / name.replace(" ", "-"), pairs)
    show(results)
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
    is_better = [bool(row["verdict"] and row["verdict"]["is_better"]) for row in results.values()]
    return 0 if all(is_better) and not results["mixed models"]["avoidable_loads"]["model-aware"] else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="What routing is worth on real servers.")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of visits for each question")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        sys.exit(runner.run(main(parser.parse_args().pairs)))
