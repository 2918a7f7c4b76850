"""Two real servers behind the gateway, one of them killed under load: who waits is served by the other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway_service import Service, gateway

from ollamalab.embedded.fetch import DEFAULT_MODEL
from ollamalab.hosts.process import Launch, ServerProcess

CLIENTS = 8
TOKENS = 24


class Client:
    """Asks one question after the other, each a stream, and notes how each ends.

    Attributes:
        whole: Streams with their final line.
        broken: Streams that began and ended with an error line.
        lost: What else there was: it must stay empty.
    """

    def __init__(self, service: Service, number: int) -> None:
        self.whole = 0
        self.broken = 0
        self.lost: list[str] = []
        self._service = service
        self._number = number

    async def ask(self) -> None:
        body = {
            "model": DEFAULT_MODEL,
            "prompt": f"{self._number}-{self.whole}: tell me about the sea.",
            "options": {"num_predict": TOKENS, "seed": self._number},
        }
        async with self._service.http.post("/api/generate", json=body) as reply:
            lines = [json.loads(line) for line in (await reply.read()).splitlines()]
            if reply.status != 200:
                self.lost.append(f"{reply.status}: {lines}")
            elif lines[-1].get("done"):
                self.whole += 1
            elif len(lines) > 1 and "error" in lines[-1]:
                self.broken += 1
            else:
                self.lost.append(f"it ended with {lines[-1:]}")


@asynccontextmanager
async def embedded(folder: Path, port: int = 0) -> AsyncIterator[ServerProcess]:
    """Run a server with two slots."""
    flags = ("--port", str(port), "--num-parallel", "2", "--threads", "1")
    launch = Launch(
        name="ollamalab embedded",
        command=(sys.executable, "-m", "ollamalab", "embedded", *flags),
        environment={**os.environ, "OLLAMA_CONTEXT_LENGTH": "512"},
        advice="see its log",
    )
    process = await ServerProcess.start(launch, log_folder=folder)
    try:
        yield process
    finally:
        await process.stop()


async def test_a_killed_server_costs_only_the_streams_that_had_begun(tmp_path: Path) -> None:
    """It is in the rotation again once it has come back, by itself."""
    async with (
        embedded(tmp_path) as doomed,
        embedded(tmp_path) as safe,
        gateway(
            f"{doomed.url},name=doomed",
            f"{safe.url},name=safe",
            route="least-inflight",
            probe_interval="0.2",
        ) as service,
    ):
        clients = [Client(service, number) for number in range(CLIENTS)]
        is_over = False

        async def run(client: Client) -> None:
            while not is_over:
                await client.ask()

        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(run(client))
            await service.until(lambda now: all(each["requests"] > 4 for each in now["upstreams"]))
            os.kill(doomed.pids()[0], signal.SIGKILL)
            await service.until(lambda now: doomed_in(now)["state"] == "down")
            port = urlsplit(doomed.url).port
            assert port is not None
            served = sum(client.whole for client in clients)
            await service.until(lambda _now: sum(client.whole for client in clients) > served + CLIENTS)
            async with embedded(tmp_path, port):
                before = await service.until(lambda now: doomed_in(now)["state"] == "up")
                taken = doomed_in(before)["requests"]
                await service.until(lambda now: doomed_in(now)["requests"] > taken + 4)
                is_over = True
                status = await service.at_rest()
        assert [client.lost for client in clients] == [[]] * CLIENTS
        assert sum(client.broken for client in clients) <= 4  # no more than were in its slots, and a turn
        assert sum(client.whole for client in clients) > 2 * CLIENTS
        assert status["failovers"] >= 1


def doomed_in(status: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in status["upstreams"] if each["name"] == "doomed")
