"""``ollamalab embedded``: our own Ollama server on llama.cpp."""

from __future__ import annotations

from pathlib import Path

import typer

from ollamalab.cli.root import EXIT_INTERRUPTED, app


@app.command()
def embedded(
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(11434, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    num_parallel: int | None = typer.Option(
        None, min=0, help="Slots per model, decoded together.  [OLLAMA_NUM_PARALLEL, else 1]"
    ),
    max_loaded_models: int | None = typer.Option(
        None, min=0, help="Models in memory at once.  [OLLAMA_MAX_LOADED_MODELS, else 3 per GPU, at least 3]"
    ),
    keep_alive: str | None = typer.Option(
        None, help="How long an idle model stays: 5m, 90s, -1 for ever.  [OLLAMA_KEEP_ALIVE, else 5m]"
    ),
    max_queue: int | None = typer.Option(
        None, min=0, help="Requests that may wait for a load.  [OLLAMA_MAX_QUEUE, else 512]"
    ),
    threads: int | None = typer.Option(None, min=1, help="Threads of an engine.  [the engine's choice]"),
    model: list[Path] = typer.Option(  # noqa: B008 - typer reads its defaults so
        [], metavar="PATH", help="A GGUF file to serve beside the store's; may be repeated."
    ),
    llama_server: Path | None = typer.Option(  # noqa: B008
        None,
        metavar="PATH",
        envvar="OLLAMALAB_LLAMA_SERVER",
        help="A llama-server binary to use as engine, for GPUs.",
    ),
) -> None:
    """Serve models through Ollama's API; every OLLAMA_* setting that fits is honoured."""
    import asyncio
    import logging
    import os

    import uvloop

    from ollamalab.embedded.models import ModelStore
    from ollamalab.embedded.serve import serve
    from ollamalab.errors import SettingsError
    from ollamalab.protocol.durations import parse_lenient_duration_s
    from ollamalab.settings import server_settings_from_environment

    unreadable_s = -1.0
    keep_alive_s = None
    if keep_alive is not None:
        keep_alive_s = parse_lenient_duration_s(keep_alive, default_s=unreadable_s)
        if keep_alive_s == unreadable_s:
            raise SettingsError(f"--keep-alive must be a duration such as 5m or 90s, got {keep_alive!r}")
    if llama_server is not None and not os.access(llama_server, os.X_OK):
        raise SettingsError(f"--llama-server {llama_server} is not a program that can be run")
    settings = server_settings_from_environment(
        os.environ,
        num_parallel=num_parallel,
        max_loaded_models=max_loaded_models,
        keep_alive_s=keep_alive_s,
        max_queue=max_queue,
        num_threads=threads,
    )
    origins = tuple(filter(None, os.environ.get("OLLAMA_ORIGINS", "").split(",")))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        is_interrupt = runner.run(
            serve(
                settings,
                ModelStore(extra=model),
                host=host,
                port=port,
                announce=lambda url: typer.echo(f"listening on {url}"),
                origins=origins,
                llama_server=llama_server,
            )
        )
    if is_interrupt:
        raise typer.Exit(EXIT_INTERRUPTED)
