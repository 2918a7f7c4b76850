"""Streams through gateways that group lines in different ways: what it delays and what it spares.

A *mode* is what ``ollamalab serve --batch`` takes; an *arm* is a mode and a number of streams at once. A
*frame* is what the gateway writes at once, a *read* what the client gets at once. Each mode has a gateway
process of its own, all in front of one server. The prompts are the same in every visit, so that the server
has evaluated them before: a first token then shows the way, not the prompt.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Self

import pandas as pd

from ollamalab.compare import Comparison, Visit
from ollamalab.connection import OllamaConnection
from ollamalab.hosts.process import Launch, ServerProcess
from ollamalab.hosts.web import get_json
from ollamalab.lab.sentences import plural, result_text
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.trials import Statistic, Trials, Visitor, mean_of
from ollamalab.loadgen import LoadGenerator, LoadSettings, waiting_ratio
from ollamalab.metrics import (
    PERCENTILES,
    Summary,
    completed,
    design_effect,
    output_tokens_per_s,
    summarise,
    token_gaps_s,
    ttft_s,
)
from ollamalab.protocol.upstream import Request
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings.batching import BatchSettings
from ollamalab.workload import chat_body, draw_prompt, inference_request, text_prompt

_STATUS_TIMEOUT_S = 10.0
_SCRIPTED_TOKENS = 12
_MOST = 0.5  # of an arm's streams


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCost:
    """What one visit cost, all of its streams together.

    Attributes:
        gateway_cpu_s: CPU time of the gateway's process.
        client_cpu_s: CPU time of this process, which reads the streams.
        lines: That passed the gateway; it counts none that it does not group.
        frames: In which they left it.
        body_bytes: Of these lines.
    """

    gateway_cpu_s: float
    client_cpu_s: float
    lines: int
    frames: int
    body_bytes: int

    def __sub__(self, before: StreamCost) -> StreamCost:
        """Return what was used since an earlier reading."""
        return StreamCost(
            gateway_cpu_s=self.gateway_cpu_s - before.gateway_cpu_s,
            client_cpu_s=self.client_cpu_s - before.client_cpu_s,
            lines=self.lines - before.lines,
            frames=self.frames - before.frames,
            body_bytes=self.body_bytes - before.body_bytes,
        )


def mode_name(mode: str) -> str:
    """Return a mode in words: "off", "10 lines", "20ms", "adaptive"."""
    return f"{mode} lines" if mode.isdigit() else mode


def arm_name(mode: str, streams: int) -> str:
    """Return "10 lines, 8 streams"."""
    return f"{mode_name(mode)}, {plural(streams, 'stream')}"


class Streams:
    """One gateway per mode in front of a server; used with ``async with``, or opened by a ``Lab``.

    Attributes:
        costs: Index of each visit to what it cost.
    """

    def __init__(self, server: Subject, modes: Sequence[str], *, most: int, seed: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            server: What stands behind the gateways.
            modes: As ``--batch`` takes them.
            most: Streams at once that no gateway may hold back.
            seed: Of the prompts.

        Raises:
            SettingsError: Not a mode.
        """
        self.costs: dict[int, StreamCost] = {}
        self._server = server
        self._modes = [BatchSettings.parse(mode).text for mode in modes]
        self._most = most
        self._seed = seed
        self._gateways: dict[str, ServerProcess] = {}
        self._generators: dict[str, LoadGenerator] = {}
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            async with asyncio.TaskGroup() as group:
                for mode in self._modes:
                    group.create_task(self._open(mode, opened))
            self._opened = opened.pop_all()
        return self

    async def _open(self, mode: str, opened: AsyncExitStack) -> None:
        gateway = batching_gateway(self._server.target.url, mode, most=self._most)
        self._gateways[mode] = started = await opened.enter_async_context(gateway)
        connection = await opened.enter_async_context(OllamaConnection(started.url))
        self._generators[mode] = LoadGenerator(connection, target=started.url)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    def visitors(self, modes: Sequence[str], streams: int, shape: PromptShape) -> dict[str, Visitor]:
        """Return a visitor per mode: so many requests at once.

        Args:
            modes: Of those that there is a gateway for.
            streams: At once.
            shape: Lengths of prompts and answers.
        """
        texts = [BatchSettings.parse(mode).text for mode in modes]
        return {arm_name(mode, streams): self._visitor(mode, streams, shape) for mode in texts}

    def _visitor(self, mode: str, streams: int, shape: PromptShape) -> Visitor:
        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            records, self.costs[visit.index] = await self._offer(mode, streams, shape)
            return records

        return visit

    async def warm_up(self, shape: PromptShape) -> None:
        """Let the server evaluate every prompt, and every gateway carry a stream, before anything counts."""
        await self._offer(self._modes[0], self._most, shape)
        for mode in self._modes[1:]:
            await self._offer(mode, 1, shape)

    async def _offer(
        self, mode: str, streams: int, shape: PromptShape
    ) -> tuple[Sequence[RequestRecord], StreamCost]:
        def request_of(number: int) -> Request:
            rng = random.Random(f"{self._seed}:{number}")
            prompt = draw_prompt(rng, prompt_tokens=shape.prompt_tokens, num_predict=shape.num_predict)
            return inference_request("/api/chat", chat_body(prompt, self._server.model))

        before = _counters(self._gateways[mode])
        result = await self._generators[mode].run(LoadSettings(clients=streams, requests=streams), request_of)
        cost = _counters(self._gateways[mode]) - before
        self._server.health.append(result.health)
        return result.records, cost

    def per_token(self, quantity: Callable[[StreamCost], float | None]) -> Statistic:
        """Return the statistic "so much of a cost per chunk of text" of a visit; None where it is None."""

        def statistic(records: Sequence[RequestRecord]) -> float | None:
            chunks = sum(len(record.token_times_s) for record in records)
            visit = records[0].visit if records else None
            cost = None if visit is None else self.costs.get(visit)
            spent = None if cost is None else quantity(cost)
            return spent / chunks if chunks and spent is not None else None

        return statistic


@asynccontextmanager
async def batching_gateway(upstream: str, mode: str, *, most: int) -> AsyncIterator[ServerProcess]:
    """Give an ``ollamalab serve`` in a process of its own.

    Args:
        upstream: URL of the server behind it.
        mode: As ``--batch`` takes it.
        most: Requests that it lets through at once.

    Raises:
        TargetError: It does not start.
    """
    launch = Launch(
        name="ollamalab serve",
        command=(
            *(sys.executable, "-m", "ollamalab", "serve", "--port", "0", "--upstream", upstream),
            *("--batch", mode, "--max-concurrent", str(most)),
        ),
        environment={**os.environ, "PYTHONUNBUFFERED": "1"},
        advice="try `ollamalab serve` by hand",
    )
    with tempfile.TemporaryDirectory() as folder:
        gateway = await ServerProcess.start(launch, log_folder=Path(folder))
        try:
            yield gateway
        finally:
            await gateway.stop()


def _counters(gateway: ServerProcess) -> StreamCost:
    """Return what a gateway and this process have used until now; blocks for a millisecond or two."""
    batch = get_json(f"{gateway.url}/lab/status", timeout_s=_STATUS_TIMEOUT_S)["batch"]
    return StreamCost(
        # A process's own clock, as clock_getcpuclockid(3) names it: /proc counts ticks of 10 ms.
        gateway_cpu_s=sum(time.clock_gettime((~pid << 3) | 2) for pid in gateway.pids()),
        client_cpu_s=time.process_time(),
        lines=batch["lines"],
        frames=batch["frames"],
        body_bytes=batch["bytes"],
    )


# What the records say


def longest_pause_s(record: RequestRecord) -> float | None:
    """Return the longest gap between two chunks of text; None with fewer than two."""
    return max(token_gaps_s(record), default=None)


def reads_per_token(records: Sequence[RequestRecord]) -> float | None:
    """Return in how many reads a chunk of text came: 1 where each came alone, 0.1 where ten came together."""
    done = completed(records)
    chunks = sum(len(record.token_times_s) for record in done)
    return 1 - sum(record.shared_reads for record in done) / chunks if chunks else None


def gaps_summary(records: Iterable[RequestRecord]) -> Summary:
    """Return the gaps between chunks of text at the client, pooled; those that came together are 0 apart.

    Unlike ``metrics.summarise_gaps``, which asks how fast a server is and refuses streams whose chunks came
    together, this asks what a reader sees.
    """
    groups = [token_gaps_s(record) for record in completed(records)]
    inflation = {share: design_effect(groups, share) for share in PERCENTILES}
    return summarise((gap for group in groups for gap in group), inflation=inflation)


def chunk_gaps(trials: Trials, arms: Iterable[str]) -> pd.DataFrame:
    """Return columns ``arm`` and ``value``: every gap between chunks of text, in milliseconds."""
    rows = [
        (arm, gap_s * 1e3)
        for arm in arms
        for record in completed(trials.of(arm))
        for gap_s in token_gaps_s(record)
    ]
    return pd.DataFrame(rows, columns=["arm", "value"]).astype({"value": float})


def ratio_rows(comparisons: Iterable[Comparison], labels: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of ``plots.ratio_forest``: the mode and what was compared.

    Args:
        comparisons: All with the same number of streams, in order.
        labels: Name of a metric to its words.
    """
    rows = [
        (
            f"{item.arm.partition(',')[0]}: {labels[item.metric.name]}",
            *(item.estimate, item.low, item.high, item.pairs),
        )
        for item in comparisons
    ]
    return pd.DataFrame(rows, columns=["label", "estimate", "low", "high", "n"])


def delays_table(trials: Trials) -> Table:
    """Return what a reader sees of each arm: first text, gaps, longest pause."""
    rows = []
    for arm in trials.arms:
        records = trials.of(arm)
        gap = gaps_summary(records)
        seconds = (mean_of(ttft_s)(records), gap.p50, gap.p99, mean_of(longest_pause_s)(records))
        rows.append((arm, *(None if value is None else value * 1e3 for value in seconds), gap.n))
    names = ("First token", "Gap, p50", "Gap, p99", "Longest pause")
    return Table.of(
        "delays",
        "What a reader sees",
        [
            Column(name="Arm"),
            *(Column(name=name, unit="ms", format=".1f") for name in names),
            Column(name="n"),
        ],
        rows,
        caption="n gaps between chunks of text, at the client; 0 where two came in one read. First token and "
        "longest pause: means over the streams. n/a where n cannot carry a percentile."
        + _queued_text(trials),
    )


def _queued_text(trials: Trials) -> str:
    """Return in which arms most streams waited for a slot, as on a server that has fewer than there are."""
    waits = {arm: waiting_ratio(trials.of(arm)) or 0.0 for arm in trials.arms}
    queued = [f"{arm} ({wait:.0%})" for arm, wait in waits.items() if wait > _MOST]
    if not queued:
        return ""
    return f" Streams waited for a slot of the server, and first tokens tell of that: {', '.join(queued)}."


def costs_table(trials: Trials, streams: Streams) -> Table:
    """Return what each arm took: throughput, frames, reads, bytes, CPU time; means over visits."""
    statistics: tuple[tuple[Statistic, float], ...] = (
        (output_tokens_per_s, 1),
        (streams.per_token(lambda cost: cost.frames or None), 1),
        (reads_per_token, 1),
        (streams.per_token(lambda cost: cost.body_bytes or None), 1),
        (streams.per_token(lambda cost: cost.gateway_cpu_s), 1e6),
        (streams.per_token(lambda cost: cost.client_cpu_s), 1e6),
    )
    rows = []
    for arm in trials.arms:
        values = [trials.per_visit(arm, statistic) for statistic, _ in statistics]
        means = [
            fmean(known) * scale if known else None
            for known, (_, scale) in zip(values, statistics, strict=True)
        ]
        rows.append((arm, *means, len(values[0])))
    return Table.of(
        "costs",
        "What it takes",
        [
            Column(name="Arm"),
            Column(name="Throughput", unit="tokens/s", format=".1f"),
            Column(name="Frames", unit="per token", format=".2f"),
            Column(name="Reads", unit="per token", format=".2f"),
            Column(name="Body", unit="bytes/token", format=".0f"),
            Column(name="Gateway CPU", unit="µs/token", format=".0f"),
            Column(name="Client CPU", unit="µs/token", format=".0f"),
            Column(name="n"),
        ],
        rows,
        caption="Means over n visits. Frames: writes of the gateway, which counts neither lines nor bytes "
        "of a stream that it does not group; reads: of the client. CPU time of the whole process, "
        "requests included, so short answers make a token dear.",
    )


def pause_title(comparison: Comparison) -> str:
    """Return the title of the figure of gaps."""
    if comparison.estimate is None or comparison.low is None or comparison.low <= 1:
        return "How long a reader waits for the next text"
    return f"With {comparison.arm}, the longest pause is {comparison.estimate:.1f}× as long"


def spared_title(throughput: Comparison) -> str:
    """Return the title of the figure of costs."""
    if throughput.verdict is None or throughput.verdict.direction is None:
        return f"With {throughput.arm}, no gain in tokens/s was shown"
    return f"With {throughput.arm}, throughput is {throughput.verdict.text}"


def batching_sentence(throughput: Comparison, reads: Comparison, pause: Comparison) -> str:
    """Return what grouping gave and took; the last two are told without a verdict of their own."""
    return (
        f"{throughput.arm} against {throughput.baseline}: throughput {result_text(throughput)}; "
        f"reads per token {_ratio_text(reads)}; longest pause {_ratio_text(pause)}."
    )


def _ratio_text(item: Comparison) -> str:
    if item.estimate is None or item.low is None or item.high is None:
        return "n/a"
    return f"{item.estimate:.2f}× ({item.low:.2f}–{item.high:.2f})"


# A line that is not JSON


async def malformed_line(mode: str) -> Table:
    """Let one line of an answer be broken, straight and through a gateway, and show what the client notes.

    A real engine cannot be made to send one; the server here is a scripted one.

    Args:
        mode: As ``--batch`` takes it.
    """
    script = Script(
        first_s=0.0, gap_s=0.0, tokens=_SCRIPTED_TOKENS, faults=dict.fromkeys((0, 2), Fault.GARBAGE)
    )
    rows = []
    async with ScriptedServer(script) as server, batching_gateway(server.url, mode, most=1) as gateway:
        for way, url in (("straight", server.url), (f"gateway, {mode_name(mode)}", gateway.url)):
            async with OllamaConnection(url) as connection:
                result = await LoadGenerator(connection, target=url).run(LoadSettings(requests=2), _scripted)
            rows += [
                (way, record.outcome.value, len(record.token_times_s), record.error or "")
                for record in result.records
            ]
    return Table.of(
        "malformed",
        "An answer with a broken line, then one without",
        [Column(name="Way"), Column(name="Outcome"), Column(name="Chunks of text"), Column(name="Noted")],
        rows,
        caption="Scripted server. A stream's first broken line is noted, cut to 200 characters; the rest of "
        "the stream is still read, and the request counts as failed.",
    )


def _scripted(number: int) -> Request:  # noqa: ARG001 - the server counts by itself
    return inference_request("/api/chat", chat_body(text_prompt("Say hello."), "scripted"))
