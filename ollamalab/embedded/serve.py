"""Runs the embedded server: listens, announces its address, and ends tidily."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from ollamalab.embedded.app import create_app
from ollamalab.embedded.models import ModelStore
from ollamalab.embedded.origin import access_rules
from ollamalab.embedded.scheduler import Scheduler
from ollamalab.embedded.service import Service
from ollamalab.errors import SettingsError
from ollamalab.settings import ServerSettings

logger = logging.getLogger(__name__)

#: Answers under way get this long to finish when the server is asked to end.
SHUTDOWN_S = 2.0

_BACKLOG = 1024  # connections that wait to be accepted; a burst of clients must not be refused


async def serve(
    settings: ServerSettings,
    store: ModelStore,
    *,
    host: str,
    port: int,
    announce: Callable[[str], None],
    origins: tuple[str, ...] = (),
    llama_server: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; then end every engine.

    Args:
        settings: What the server is started with.
        store: Its models.
        host: Where to listen: an address of this machine, or a name for one.
        port: 0 takes a free one.
        announce: Gets the URL once connections are accepted.
        origins: Web pages allowed beside the default ones, as in ``OLLAMA_ORIGINS``.
        llama_server: The binary to use as engine; None for the built-in llama.cpp.

    Raises:
        SettingsError: Nobody can listen there.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    scheduler = Scheduler(settings, llama_server=llama_server)
    with _listen(host, port) as listener:
        address, actual_port = listener.getsockname()[:2]
        app = create_app(Service(store, scheduler, settings), access_rules(address, origins))
        # A client that hangs up stops its generation; a half-closed connection counts as hung up, as
        # in Go's server, since nothing else would tell a client that has gone.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=_BACKLOG).start()
            shown = f"[{address}]" if ":" in address else address
            announce(f"http://{shown}:{actual_port}")
            await stop.wait()
            logger.info("event=stopping")
        finally:
            await runner.cleanup()
            await scheduler.close()


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error}; see --host and --port") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; end what listens there or use another --port"
        ) from error
    return listener
