"""Two embedded servers as the routing benchmark uses them, and a model that makes one of them slow."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from embedded_server import EmbeddedServer, embedded_server

from ollamalab.cluster import Cluster, Member
from ollamalab.connection import OllamaConnection
from ollamalab.embedded.gguf_file import read_gguf
from ollamalab.embedded.gguf_header import TensorRow, field_entry, header, padding_bytes
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.upstream import Request
from ollamalab.settings import ClusterSettings

NAMES = ("a", "b")
STILL = ClusterSettings(probe_interval_s=3600.0)

#: Tensors that decide what a block adds; quantised or not, zeros in the file are zeros.
_OUTPUTS = ("attn_output.weight", "ffn_down.weight")

_EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\d+)", re.MULTILINE)


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
async def two_servers(
    folder: Path, *flags: str, models: tuple[Path, Path] | None = None
) -> AsyncIterator[Servers]:
    """Run two servers with these flags, each perhaps with a model of its own beside the others."""
    async with AsyncExitStack() as stack:
        servers = []
        for name, model in zip(NAMES, models or (None, None), strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            own = () if model is None else ("--model", str(model))
            servers.append(await stack.enter_async_context(embedded_server(folder / name, *flags, *own)))
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


@asynccontextmanager
async def loaded(both: Servers, model: str) -> AsyncIterator[None]:
    """Have a model loaded on both servers, to stay."""
    for server in both.servers:
        await server.post("/api/generate", {"model": model, "keep_alive": -1})
    yield


async def ask(cluster: Cluster, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return who answered, and the answer."""
    request = Request(method="POST", path=path, body=json.dumps({**body, "stream": False}).encode())
    async with await cluster.send(request) as reply:
        said = b"".join([chunk async for chunk in reply.chunks()])
        if reply.status != 200:
            raise RuntimeError(f"{reply.status}: {said[:200]!r}")
        return reply.headers[UPSTREAM_HEADER], json.loads(said)


def deepened(source: Path, target: Path, times: int) -> None:
    """Write a model that says what the source says and takes about as many times as long over it.

    Its blocks are those of the source and then copies of them whose outputs are zero: a block adds its
    output to what comes in, so these change nothing, but are computed like the others.

    Args:
        source: A GGUF file.
        target: The file to write.
        times: Blocks per block of the source.
    """
    metadata, data = read_gguf(source), source.read_bytes()
    entries = {key: data[start:end] for key, (start, end) in metadata.spans.items()}
    key = f"{metadata.architecture}.block_count"
    blocks = metadata.fields[key]
    entries[key] = field_entry(key, blocks * times)
    rows, contents = [], []
    for tensor in metadata.tensors:
        content = data[tensor.start : tensor.start + (tensor.size_bytes or 0)]
        rows.append(TensorRow(tensor.name, tensor.shape, tensor.type_id))
        contents.append(content)
        if not tensor.name.startswith("blk."):
            continue
        _, number, name = tensor.name.split(".", 2)
        for copy in range(1, times):
            rows.append(TensorRow(f"blk.{int(number) + copy * blocks}.{name}", tensor.shape, tensor.type_id))
            contents.append(bytes(len(content)) if name in _OUTPUTS else content)
    with target.open("wb") as file:
        file.write(header(list(entries.values()), rows, metadata.alignment))
        for content in contents:
            file.write(content + bytes(padding_bytes(len(content), metadata.alignment)))
