"""The measuring client against a server whose truth is known: its own error, beside every result."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import msgspec

from ollamalab.connection import OllamaConnection
from ollamalab.errors import TargetError
from ollamalab.lifeline import tethered
from ollamalab.loadgen import InstrumentHealth, LoadGenerator, LoadSettings
from ollamalab.metrics import completed
from ollamalab.protocol.upstream import Request
from ollamalab.report import Column, Table
from ollamalab.workload import chat_body, inference_request, text_prompt

_MODEL = "scripted"


@dataclass(frozen=True, kw_only=True)
class InstrumentCheck:
    """How far the client's arrival times were from the server's own write stamps.

    Attributes:
        streams: At once.
        requests: Measured.
        late_p50_s: First token: stamp of the client - stamp of the server, median.
        late_max_s: The same, the worst request.
        tpot_off_ratio: |TPOT reported / TPOT written - 1|, mean over requests.
        health: How the client fared.
    """

    streams: int
    requests: int
    late_p50_s: float
    late_max_s: float
    tpot_off_ratio: float
    health: InstrumentHealth

    def table(self) -> Table:
        """Return it as one row."""
        return Table.of(
            "instrument",
            "The client against a server that writes down its own truth",
            [
                Column(name="Streams"),
                Column(name="n"),
                Column(name="First token late, p50", unit="ms", format=".2f"),
                Column(name="worst", unit="ms", format=".2f"),
                Column(name="TPOT off", format=".2%"),
                Column(name="Client CPU", format=".0%"),
                Column(name="Fit"),
            ],
            [
                (
                    self.streams,
                    self.requests,
                    self.late_p50_s * 1e3,
                    self.late_max_s * 1e3,
                    self.tpot_off_ratio,
                    self.health.cpu_ratio,
                    self.health.fit,
                )
            ],
            caption="Scripted server: first token after 100 ms, then one each 10 ms. Late is the client's "
            "stamp minus the server's, on one clock.",
        )

    def sentence(self) -> str:
        """Return the finding."""
        return (
            f"The client itself adds {self.late_p50_s * 1e3:.1f} ms to a time to first token (median, "
            f"{self.streams} streams) and is off by {self.tpot_off_ratio:.2%} in the time per token."
        )


async def check_instrument(*, streams: int, requests: int) -> InstrumentCheck:
    """Measure a scripted server and compare with what it wrote down.

    Args:
        streams: At once.
        requests: Measured, after one warm-up request per stream.

    Raises:
        TargetError: The scripted server does not start, or not every request is answered.
    """
    settings = LoadSettings(clients=streams, requests=requests, warmup=streams, ramp_s=0.4)
    async with _scripted() as url, OllamaConnection(url) as connection:
        result = await LoadGenerator(connection, target=url).run(settings, _request)
        log = await _log(connection)
    done = completed(result.records)
    if len(done) < requests:
        errors = [record.error for record in result.records if record.error]
        raise TargetError(
            f"the scripted server answered {len(done)} of {requests} requests ({'; '.join(errors[:1])}), "
            "so the client cannot be checked; try fewer streams"
        )
    late, off = [], []
    for record in done:
        written_s = log[record.index]["written_s"]
        first_s, last_s = record.token_times_s[0], record.token_times_s[-1]
        late.append(first_s - written_s[0])
        off.append(abs((last_s - first_s) / (written_s[-1] - written_s[0]) - 1))
    return InstrumentCheck(
        streams=streams,
        requests=len(late),
        late_p50_s=median(late),
        late_max_s=max(late),
        tpot_off_ratio=fmean(off),
        health=result.health,
    )


def _request(number: int) -> Request:
    """Return a request that begins with its number: the key to the server's log."""
    prompt = text_prompt(f"{number:06d} Tell me about the sea.", num_predict=32)
    return inference_request("/api/chat", chat_body(prompt, _MODEL))


async def _log(connection: OllamaConnection) -> dict[int, dict[str, Any]]:
    """Return what the server wrote down, by number of the request."""
    async with await connection.send(Request(method="GET", path="/script/log")) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
    return {int(served["prompt"][:6]): served for served in msgspec.json.decode(body)["requests"]}


@asynccontextmanager
async def _scripted() -> AsyncIterator[str]:
    """Give the URL of a scripted server in a process of its own."""
    command = tethered([sys.executable, "-m", "ollamalab.scripted"])
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise TargetError("the scripted server did not start; try `python -m ollamalab.scripted` by hand")
        yield url
    finally:
        process.stdin.close()
        await process.wait()
