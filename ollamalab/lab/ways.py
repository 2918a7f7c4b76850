"""The way straight to a server and ways through gateways of ours, each with a ``Tap`` before the server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ollamalab.connection import OllamaConnection
from ollamalab.hosts.process import Launch, ServerProcess
from ollamalab.hosts.web import get_json
from ollamalab.lab.subject import Subject
from ollamalab.lab.tap import Tap
from ollamalab.loadgen import LoadGenerator

STRAIGHT = "straight"

_STATUS_TIMEOUT_S = 10.0
_ENDINGS = ("completed", "failed", "rejected", "timed_out", "cancelled")


@dataclass(frozen=True, kw_only=True)
class QueueCounts:
    """What a gateway's queue has counted.

    Attributes:
        ended: Requests by how they ended there.
        under_way: Requests waiting or being answered now.
    """

    ended: Counter[str]
    under_way: int


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to the server.

    Attributes:
        name: ``STRAIGHT`` or what is in between.
        connection: The clients'.
        tap: Before the server.
        dripping: At the clients' end; what a slow one reads through.
        gateway: In between; None for none.
    """

    name: str
    connection: OllamaConnection
    tap: Tap
    dripping: Tap
    gateway: ServerProcess | None = None

    def generator(self) -> LoadGenerator:
        """Return one that offers loads on this way."""
        return LoadGenerator(self.connection, target=self.connection.url)

    def queue_counts(self) -> QueueCounts:
        """Return what the gateway has counted; blocks for a millisecond or two. Nothing without one."""
        if self.gateway is None:
            return QueueCounts(ended=Counter(), under_way=0)
        seen = get_json(f"{self.gateway.url}/lab/status", timeout_s=_STATUS_TIMEOUT_S)["queue"]
        ended = Counter({name: seen[name] for name in _ENDINGS})
        return QueueCounts(ended=ended, under_way=seen["active"] + seen["waiting"])


class Ways:
    """The ways to one server, open side by side; used with ``async with``, or opened by a ``Lab``.

    Attributes:
        by_name: In order.
    """

    def __init__(
        self,
        subject: Subject,
        gateways: Mapping[str, Mapping[str, object]],
        *,
        pace_bytes_s: float,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            subject: The server and model.
            gateways: Name of a way to what its gateway's file says; each gets a process of its own.
            pace_bytes_s: How fast a slow client reads.
        """
        self.by_name: dict[str, Way] = {}
        self._subject = subject
        self._gateways = gateways
        self._pace_bytes_s = pace_bytes_s
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            async with asyncio.TaskGroup() as group:
                ways = [group.create_task(self._open(STRAIGHT, None, opened))]
                for name, settings in self._gateways.items():
                    ways.append(group.create_task(self._open(name, settings, opened)))
            self.by_name = {way.name: way for way in (task.result() for task in ways)}
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    async def _open(self, name: str, settings: Mapping[str, object] | None, opened: AsyncExitStack) -> Way:
        tap = await opened.enter_async_context(Tap(self._subject.target.url))
        gateway = None
        if settings is not None:
            gateway = await opened.enter_async_context(gateway_process(tap.url, settings))
        url = tap.url if gateway is None else gateway.url
        dripping = await opened.enter_async_context(Tap(url, pace_bytes_s=self._pace_bytes_s))
        return Way(
            name=name,
            connection=await opened.enter_async_context(OllamaConnection(url)),
            tap=tap,
            dripping=dripping,
            gateway=gateway,
        )


@asynccontextmanager
async def gateway_process(upstream: str, settings: Mapping[str, object]) -> AsyncIterator[ServerProcess]:
    """Give an ``ollamalab serve`` in a process of its own.

    Args:
        upstream: URL of the server behind it.
        settings: Further keys of its file.

    Raises:
        TargetError: It does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "gateway.yaml")
        _write(file, {"upstream": upstream, "port": 0, **settings})
        launch = Launch(
            name="ollamalab serve",
            command=(sys.executable, "-m", "ollamalab", "serve", "--config", str(file)),
            environment={**os.environ, "PYTHONUNBUFFERED": "1"},
            advice="try `ollamalab serve` by hand",
        )
        gateway = await ServerProcess.start(launch, log_folder=Path(folder))
        try:
            yield gateway
        finally:
            await gateway.stop()


def _write(file: Path, settings: Mapping[str, object]) -> None:
    file.write_text(json.dumps(settings))  # JSON is YAML
