"""Watches GPUs, the machine and a server, each at its own beat, and keeps the latest of everything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu import GpuSource, Readings
from ollamalab.gpu.values import Values
from ollamalab.host import HostSampler
from ollamalab.monitor.board import Board, GpuState, merged
from ollamalab.monitor.server_state import ServerState
from ollamalab.monitor.server_watch import ServerWatch
from ollamalab.sampling import next_beat

_T = TypeVar("_T")

#: A server is not asked more often: it has better things to do.
_LEAST_SERVER_S = 0.5


class Watching:
    """Reads in threads, so that what is slow delays only itself.

    Args:
        gpus: Stays the caller's to close.
        url: Base URL of the server; None watches none.
        interval_s: Between readings; > 0.
    """

    def __init__(
        self,
        gpus: GpuSource,
        url: str | None,
        *,
        interval_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._gpu_source = gpus
        self._interval_s = interval_s
        self._host_sampler = HostSampler()
        self._server_watch = None if url is None else ServerWatch(url, headers=headers)
        self._gpus: dict[str, GpuState] = {}
        self._host: Values = {}
        self._server = None if url is None else ServerState(url=url, trouble=f"{url} has not answered yet")
        self._ended: list[str] = []
        self._begun_s, self._begun_cpu_s = time.perf_counter(), time.process_time()

    def board(self) -> Board:
        """Return what is known now."""
        now_s = time.perf_counter()
        elapsed_s = now_s - self._begun_s
        return Board(
            now_s=now_s,
            unix_s=time.time(),
            gpus=self._gpus,
            host=self._host,
            server=self._server,
            notes=(*self._gpu_source.notes, *self._ended),
            cpu_ratio=(time.process_time() - self._begun_cpu_s) / elapsed_s if elapsed_s else 0.0,
        )

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_gpus())
            group.create_task(_repeat(self._host_sampler.read, self._keep_host, self._interval_s))
            if self._server_watch is not None:
                every_s = max(self._interval_s, _LEAST_SERVER_S)
                group.create_task(_repeat(self._server_watch.look, self._keep_server, every_s))

    async def _watch_gpus(self) -> None:
        try:
            await _repeat(self._gpu_source.read, self._keep_gpus, self._interval_s)
        except SamplerUnavailable as error:
            self._ended.append(str(error))

    def _keep_gpus(self, read: Readings) -> None:
        self._gpus = merged(self._gpus, read, self._gpu_source.names, time.perf_counter())

    def _keep_host(self, read: Readings) -> None:
        self._host = read["host"]

    def _keep_server(self, state: ServerState) -> None:
        self._server = state


async def _repeat(read: Callable[[], _T], keep: Callable[[_T], None], every_s: float) -> None:
    """Read in a thread and keep the result, at a beat that does not drift."""
    due_s = time.perf_counter()
    while True:
        keep(await asyncio.to_thread(read))
        due_s, _ = next_beat(due_s, time.perf_counter(), every_s)
        await asyncio.sleep(due_s - time.perf_counter())
