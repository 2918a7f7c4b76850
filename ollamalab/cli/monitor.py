"""``ollamalab monitor``: a live view of the GPUs, and of a server."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ollamalab.cli.keys import authorization
from ollamalab.cli.root import EXIT_INTERRUPTED, app
from ollamalab.errors import SettingsError

if TYPE_CHECKING:
    from ollamalab.monitor.run import Show

_LEAST_INTERVAL_S = 0.1


@app.command()
def monitor(
    url: Annotated[
        str | None,
        typer.Argument(help="Address of a server to watch too: Ollama, a gateway, an embedded server."),
    ] = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="Between readings, at least 0.1.")] = 0.5,
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="PORT", help="Serve Prometheus text at /metrics, on loopback; ADDRESS:PORT elsewhere."
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="auto, indices such as 0,1, nvidia-smi, the URL of a DCGM exporter or of another monitor, "
            "the file of a recording, none.",
        ),
    ] = "auto",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line ends in the key to send to the server.")
    ] = None,
) -> None:
    """Show GPUs, memory, loaded models with their expiry, slots, queue and tokens/s, live.

    One line for each reading where the output is no terminal.
    """
    import asyncio

    from ollamalab import monitor as monitoring
    from ollamalab.connection import new_event_loop
    from ollamalab.gpu import open_gpus
    from ollamalab.protocol.urls import server_url

    if not _LEAST_INTERVAL_S <= interval < float("inf"):
        raise SettingsError(f"--interval must be at least {_LEAST_INTERVAL_S:g} s, got {interval:g}")
    target = None if url is None else server_url(url)
    headers = authorization(api_key_file)
    with ExitStack() as opened:
        listener = None if serve is None else opened.enter_context(monitoring.serve_address(serve))
        gpus = open_gpus(gpu)
        opened.callback(gpus.close)
        show = _show(opened)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            is_interrupt = runner.run(
                monitoring.monitor(
                    gpus, target, interval_s=interval, listener=listener, show=show, headers=headers
                )
            )
    if is_interrupt:
        raise typer.Exit(EXIT_INTERRUPTED)


def _show(opened: ExitStack) -> Show:
    """Return what draws a board: over the previous one on a terminal, else below it."""
    import os
    import sys

    from rich.console import Console
    from rich.live import Live

    from ollamalab.monitor import line, picture
    from ollamalab.monitor.board import Board

    console = Console(highlight=False)
    if console.is_terminal:
        live = opened.enter_context(Live(console=console, auto_refresh=False, vertical_overflow="crop"))
        return lambda board, page: live.update(picture(board, page=page, width=console.width), refresh=True)

    announced: list[str] = []

    def show(board: Board, page: str | None) -> None:
        try:
            if page and not announced:
                announced.append(page)
                sys.stdout.write(f"metrics at {page}\n")
            sys.stdout.write(f"{line(board)}\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Python would complain once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise

    return show
