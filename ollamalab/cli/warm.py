"""``ollamalab warm``: load models before anybody asks for them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ollamalab.cli.root import EXIT_FINDING, app
from ollamalab.errors import SettingsError

if TYPE_CHECKING:
    from rich.console import Console

    from ollamalab.protocol.loaded import LoadedModel
    from ollamalab.protocol.upstream import Upstream
    from ollamalab.warmup import Preload

_DAY_S = 86400.0

#: Ollama's own command shows more than 20 years as for ever.
_FOREVER_S = 20 * 365 * _DAY_S


@app.command()
def warm(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://127.0.0.1:11434.")],
    model: Annotated[list[str], typer.Option(help="Model to load; several are loaded in this order.")],
    keep_alive: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long it stays after each use, until a request says otherwise: 30m, 3600, -1 for ever. "
            "[the server's own]",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Load option of the traffic, such as num_ctx=8192; requests with others load it again.",
        ),
    ] = None,
) -> None:
    """Load models, so that the first request need not wait for it.

    A ping every 6 hours keeps nothing warm: a server unloads a model when its keep-alive, 5 minutes by
    default, has passed since its last use. Set --keep-alive instead, or `warm_keep: auto` in the file of
    `ollamalab serve`.
    """
    import asyncio

    from rich.console import Console

    from ollamalab.connection import new_event_loop
    from ollamalab.protocol.urls import server_url
    from ollamalab.warmup import Preload

    target = server_url(url)
    options, stay = _load_options(option or []), _keep_alive(keep_alive)
    preloads = [Preload(model=name, options=options, keep_alive=stay) for name in model]
    console = Console(highlight=False)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        gone = runner.run(_warm(target, preloads, console))
    if gone:
        console.print(
            f"! {', '.join(gone)} had to make way for the next: the server holds too few models at once "
            "(OLLAMA_MAX_LOADED_MODELS, or its memory)",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(EXIT_FINDING)


def _load_options(texts: list[str]) -> dict[str, Any]:
    from ollamalab.cli.option_values import ollama_options
    from ollamalab.protocol.options import LOAD_OPTIONS, parse_options

    options = ollama_options(texts, example="num_ctx=8192")
    for name in options:
        if name not in LOAD_OPTIONS:
            known = ", ".join(LOAD_OPTIONS)
            raise SettingsError(f"--option {name} does not change how a model is loaded; these do: {known}")
    parse_options(options)
    return options


def _keep_alive(text: str | None) -> float | None:
    """Return it as a request has it: seconds, -1 for ever."""
    from ollamalab.protocol.durations import FOREVER_S, parse_keep_alive_s

    if text is None:
        return None
    value: float | str = text.strip()
    with suppress(ValueError):
        value = float(value)
    try:
        seconds = parse_keep_alive_s(value)
    except SettingsError as error:
        raise SettingsError(f"--keep-alive {text!r}: {error}; write for example 30m, 3600 or -1") from error
    if not seconds:
        raise SettingsError(f"--keep-alive {text!r} would unload the model; give a longer time, or -1")
    return -1 if seconds >= FOREVER_S else seconds


async def _warm(target: str, preloads: list[Preload], console: Console) -> list[str]:
    """Load one model after the other; return those that are gone again at the end."""
    import math
    import time

    from ollamalab.connection import ConnectionSettings, OllamaConnection
    from ollamalab.errors import BadReply, ModelNotFound, TargetError, UpstreamRejected
    from ollamalab.protocol.names import parse_name
    from ollamalab.warmup import list_loaded
    from ollamalab.warmup.warmth import LOADED_ANEW_S

    keys = {preload.model: parse_name(preload.model).key for preload in preloads}
    # No limit: to hang up would abort the load.
    async with OllamaConnection(target, ConnectionSettings(progress_timeout_s=math.inf)) as upstream:
        try:
            loaded = {model.key: model for model in (await list_loaded(upstream))[0]}
            for preload in preloads:
                was_loaded = keys[preload.model] in loaded
                start_s = time.perf_counter()
                await _load(upstream, preload)
                took_s = time.perf_counter() - start_s
                loaded = {model.key: model for model in (await list_loaded(upstream))[0]}
                # With other load options a model in memory is loaded again, which takes its time too.
                how = (
                    "was in memory already"
                    if was_loaded and took_s < LOADED_ANEW_S
                    else f"loaded in {took_s:.2f} s"
                )
                place = _place(loaded.get(keys[preload.model]))
                console.print(f"{preload.model} {how}{place}", markup=False, soft_wrap=True)
        except (ModelNotFound, UpstreamRejected, BadReply) as error:
            raise TargetError(f"{target}: {error}") from error
    return [name for name, key in keys.items() if key not in loaded]


async def _load(upstream: Upstream, preload: Preload) -> None:
    """Load a model; a terminal shows for how long already."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ollamalab.warmup import send_preload

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(f"loading {preload.model}", total=None)
        await send_preload(upstream, preload)


def _place(model: LoadedModel | None) -> str:
    """Return where a model is and until when, in words; nothing if it is gone."""
    if model is None:
        return ""
    parts = []
    if model.size_bytes:
        share = model.size_vram_bytes / model.size_bytes
        parts.append("on the CPU" if share == 0 else f"{share:.0%} on the GPU")
        parts.append(f"{model.size_bytes / 2**30:.2f} GiB")
    if model.context_tokens is not None:
        parts.append(f"{model.context_tokens} tokens of context")
    parts.append(_until(model.expires_unix_s))
    return " · " + " · ".join(parts)


def _until(expires_unix_s: float | None) -> str:
    import time
    from datetime import datetime

    if expires_unix_s is None:
        return "the server does not say until when"
    stays_s = expires_unix_s - time.time()
    if stays_s > _FOREVER_S:
        return "for ever"
    clock = "%H:%M:%S" if stays_s < _DAY_S else "%Y-%m-%d %H:%M"
    return f"until {datetime.fromtimestamp(expires_unix_s):{clock}}"
