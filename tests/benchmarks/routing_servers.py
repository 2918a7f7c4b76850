"""Two embedded servers as the routing benchmark uses them, one of them perhaps on a slower host."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from embedded_server import EmbeddedServer, embedded_server

from ollamalab.cluster import Cluster, Member
from ollamalab.connection import OllamaConnection
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.upstream import Request
from ollamalab.settings import ClusterSettings

NAMES = ("a", "b")
STILL = ClusterSettings(probe_interval_s=3600.0)

#: A processor that is given out in such turns, as a container's quota or ``cpulimit`` does it; short
#: beside the time of a token, so that every token is slower and none is late.
_TURN_S = 0.02

_EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\d+)", re.MULTILINE)

_LIMITER = """
import os, signal, sys, time
pid, turn_s, ratio = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
parent = os.getppid()
while os.getppid() == parent:
    os.kill(pid, signal.SIGCONT)
    time.sleep(turn_s * ratio)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(turn_s * (1 - ratio))
os.kill(pid, signal.SIGCONT)
"""


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
async def two_servers(folder: Path, *flags: str) -> AsyncIterator[Servers]:
    """Run two servers with these flags."""
    async with AsyncExitStack() as stack:
        servers = []
        for name in NAMES:
            (folder / name).mkdir(parents=True)
            servers.append(await stack.enter_async_context(embedded_server(folder / name, *flags)))
        connections = [await stack.enter_async_context(OllamaConnection(server.url)) for server in servers]
        yield Servers((servers[0], servers[1]), (connections[0], connections[1]))


@asynccontextmanager
async def routed(members: list[Member], route: str, seed: int, **options: Any) -> AsyncIterator[Cluster]:
    """Give a cluster that knows what its members have and hold."""
    rng = random.Random(seed)
    async with Cluster(members, route=route, settings=STILL, rng=rng, **options) as cluster:
        for member in members:
            await cluster._watch.list_models(member, 0.0)
            await cluster._watch._list_loaded(member)
        yield cluster


async def load(both: Servers) -> None:
    """Have the model loaded on both servers, to stay."""
    for server in both.servers:
        await server.post("/api/generate", {"model": server.model, "keep_alive": -1})


async def ask(cluster: Cluster, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return who answered, and the answer."""
    request = Request(method="POST", path=path, body=json.dumps({**body, "stream": False}).encode())
    async with await cluster.send(request) as reply:
        said = b"".join([chunk async for chunk in reply.chunks()])
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {said[:200]!r}")
        return reply.headers[UPSTREAM_HEADER], json.loads(said)


async def engine_pid(server: EmbeddedServer) -> int:
    """Return the process that computes, of a server with one model loaded."""
    (engine,) = await server.get("/lab/engines")
    return int(engine["pid"])


@contextmanager
def limited(pid: int, ratio: float) -> Iterator[None]:
    """Give a process this share of the time only, as on a host that is slower by as much."""
    command = [sys.executable, "-c", _LIMITER, str(pid), str(_TURN_S), str(ratio)]
    limiter = subprocess.Popen(command)
    try:
        yield
    finally:
        limiter.kill()
        limiter.wait()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
