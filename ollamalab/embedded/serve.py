"""Runs the embedded server: listens, announces its address, and ends tidily."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from ollamalab.embedded.app import create_app
from ollamalab.embedded.models import ModelStore
from ollamalab.embedded.scheduler import Scheduler
from ollamalab.embedded.service import Service
from ollamalab.listening import StopSignal, access_rules, bound_socket, url_of
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
) -> bool:
    """Serve until SIGINT or SIGTERM; then end every engine.

    Args:
        settings: What the server is started with.
        store: Its models.
        host: Where to listen: an address of this machine, or a name for one.
        port: 0 takes a free one.
        announce: Gets the URL once connections are accepted.
        origins: Web pages allowed beside the default ones, as in ``OLLAMA_ORIGINS``.
        llama_server: The binary to use as engine; None for the built-in llama.cpp.

    Returns:
        Whether Ctrl-C ended it.

    Raises:
        SettingsError: Nobody can listen there.
    """
    stop = StopSignal()
    scheduler = Scheduler(settings, llama_server=llama_server)
    with bound_socket(host, port) as listener:
        app = create_app(Service(store, scheduler, settings), access_rules(listener, origins))
        # A client that hangs up stops its generation; a half-closed connection counts as hung up, as
        # in Go's server, since nothing else would tell a client that has gone.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=_BACKLOG).start()
            announce(url_of(listener))
            is_interrupt = await stop.wait()
            logger.info("event=stopping")
        finally:
            await runner.cleanup()
            await scheduler.close()
    return is_interrupt
