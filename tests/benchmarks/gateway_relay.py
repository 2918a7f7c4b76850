"""A relay without features, on the gateway's own HTTP in and out: the upper bound of what is built on them.

``python gateway_relay.py PORT UPSTREAM_URL``
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

from ollamalab.connection import ConnectionSettings, OllamaConnection, new_event_loop
from ollamalab.gateway.server import HttpServer, Incoming, Outgoing
from ollamalab.protocol.upstream import Request, pour


async def main(port: int, url: str) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with OllamaConnection(url, ConnectionSettings(max_connections=4000)) as upstream:

        async def relay(incoming: Incoming, outgoing: Outgoing) -> None:
            request = Request(
                method=incoming.method, path=incoming.target, headers=incoming.headers, body=incoming.body
            )
            async with await upstream.send(request) as reply:
                length = reply.headers.pop("content-length", None)
                for name in ("transfer-encoding", "connection", "date"):
                    reply.headers.pop(name, None)
                outgoing.start(reply.status, reply.headers, length=int(length) if length else None)

                def take(chunk: bytes) -> asyncio.Future[None] | None:
                    outgoing.write(chunk)
                    return outgoing.lag()

                await pour(reply, take)
                outgoing.end()

        server = HttpServer(relay)
        await server.start(socket.create_server(("127.0.0.1", port)))
        await stopped.wait()
        await server.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2]))
