"""Runs the monitor until it is told to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress

from ollamalab.errors import SettingsError
from ollamalab.gpu import GpuSource
from ollamalab.listening import StopSignal, bound_socket
from ollamalab.monitor.board import Board
from ollamalab.monitor.exposition import Exposition
from ollamalab.monitor.serving import serving
from ollamalab.monitor.watching import Watching

_PATH = "/metrics"

Show = Callable[[Board, str | None], None]
"""Shows a board, and where it can be scraped."""


async def monitor(
    gpus: GpuSource,
    url: str | None,
    *,
    interval_s: float,
    listener: socket.socket | None,
    show: Show,
    headers: Mapping[str, str] | None = None,
) -> bool:
    """Show what is going on, once in each interval, until SIGINT or SIGTERM.

    Args:
        gpus: Stays the caller's to close.
        url: Base URL of the server to watch; None for none.
        interval_s: > 0.
        listener: Where to serve the page of metrics; None for nowhere.
        show: May raise BrokenPipeError to end it: nobody looks any more.
        headers: Sent to the server with every question, such as ``Authorization``.

    Returns:
        Whether Ctrl-C ended it.
    """
    stop = StopSignal()
    watching = Watching(gpus, url, interval_s=interval_s, headers=headers)
    async with AsyncExitStack() as opened, asyncio.TaskGroup() as group:
        page = None
        if listener is not None:
            pages = {_PATH: Exposition(watching.board).page}
            page = await opened.enter_async_context(serving(listener, pages)) + _PATH
        watcher, stopping = group.create_task(watching.run()), group.create_task(stop.wait())
        with suppress(BrokenPipeError):
            while not stopping.done():
                await asyncio.wait([stopping], timeout=interval_s)
                show(watching.board(), page)
        is_interrupt = stopping.done() and stopping.result()
        watcher.cancel()
        stopping.cancel()
    return is_interrupt


def serve_address(text: str) -> socket.socket:
    """Return the socket that ``--serve`` names: "9500" on loopback, "0.0.0.0:9500" elsewhere.

    Raises:
        SettingsError: Not an address, or nobody can listen there.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"--serve {text!r} is no port; write for example 9500, or 0.0.0.0:9500")
    try:
        return bound_socket(host, int(port))
    except SettingsError as error:
        reason = getattr(error.__cause__, "strerror", None) or str(error.__cause__)
        raise SettingsError(
            f"--serve {text}: cannot listen on {host}:{port} ({reason}); end what listens there or give "
            "another port"
        ) from error
