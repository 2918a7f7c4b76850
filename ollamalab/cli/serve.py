"""``ollamalab serve``: cache, queue and stream batcher in front of an Ollama server."""

from __future__ import annotations

from pathlib import Path

import typer

from ollamalab.cli.root import EXIT_INTERRUPTED, app


@app.command()
def serve(
    upstream: list[str] = typer.Option(  # noqa: B008 - typer reads its defaults so
        [], metavar="URL[,weight=W][,name=N]", help="A server to put this in front of."
    ),
    config: Path | None = typer.Option(  # noqa: B008
        None, metavar="FILE", help="YAML with any of these options as keys (max_queue: 50); options win."
    ),
    host: str | None = typer.Option(None, help="Address to listen on.  [127.0.0.1]"),
    port: str | None = typer.Option(None, help="Port to listen on; 0 takes a free one.  [11435]"),
    cache: str | None = typer.Option(
        None, metavar="WHERE", help="Keep answers: off, memory, disk:PATH or redis://...  [off]"
    ),
    cache_policy: str | None = typer.Option(
        None, help="all, or deterministic: only temperature 0 or a seed.  [all]"
    ),
    cache_ttl: str | None = typer.Option(None, help="An answer is fresh for so long: 300, 5m.  [300]"),
    cache_entries: str | None = typer.Option(None, help="Answers kept at once.  [100]"),
    cache_bytes: str | None = typer.Option(None, help="Size of all kept answers.  [256MiB]"),
    max_concurrent: str | None = typer.Option(
        None, help="Requests that a model works on at once, per upstream; auto learns it.  [auto]"
    ),
    max_queue: str | None = typer.Option(None, help="Requests that may wait; more are refused.  [100]"),
    queue_timeout: str | None = typer.Option(None, help="Longest wait in the queue.  [60]"),
    request_timeout: str | None = typer.Option(None, help="Longest silence of the upstream.  [120]"),
    load_timeout: str | None = typer.Option(None, help="The same while it loads a model.  [300]"),
    max_body: str | None = typer.Option(None, help="Largest request.  [64MiB]"),
    route: str | None = typer.Option(None, help="Which of several upstreams takes a request.  [round-robin]"),
    batch: str | None = typer.Option(
        None, help="Lines of a stream that leave together: off, 10 (lines), 20ms or adaptive.  [off]"
    ),
    warm: list[str] = typer.Option(  # noqa: B008
        [], metavar="MODEL", help="Load this model at the start, and again when a server comes back."
    ),
    warm_keep: str | None = typer.Option(
        None, help="auto keeps models in memory while their expected use is worth it.  [off]"
    ),
    api_key_file: Path | None = typer.Option(  # noqa: B008
        None, metavar="FILE", help="Who may ask: `name key` on each line.  [everybody]"
    ),
    admin: bool | None = typer.Option(
        None, "--admin/--no-admin", help="Let clients pull, create and delete models.  [no]"
    ),
    log_requests: bool | None = typer.Option(
        None, "--log-requests/--no-log-requests", help="A log line for each, without its text.  [no]"
    ),
) -> None:
    """Put a cache, a fair queue and a stream batcher in front of an Ollama server."""
    options: dict[str, object] = dict(locals())
    del options["config"]

    import asyncio
    import logging
    from functools import partial

    from ollamalab.connection import new_event_loop
    from ollamalab.gateway.run import serve as serve_gateway
    from ollamalab.settings.files import gateway_settings

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s", level=logging.INFO)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        read = partial(gateway_settings, config, options)
        is_interrupt = runner.run(serve_gateway(read, announce=lambda url: typer.echo(f"listening on {url}")))
    if is_interrupt:
        raise typer.Exit(EXIT_INTERRUPTED)
