"""``ollamalab bench``: offer load to one server and say what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ollamalab.cli.keys import authorization
from ollamalab.cli.root import EXIT_FINDING, EXIT_INTERRUPTED, app
from ollamalab.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import Console

    from ollamalab.loadgen import LoadGenerator, LoadResult, LoadSettings
    from ollamalab.protocol.upstream import Request
    from ollamalab.workload import Prompt

_DEFAULT_REQUESTS = 50
_DEFAULT_NUM_PREDICT = 128
_PROMPT_TOKENS = 96
_REDRAW_S = 0.5


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="Address of the server, such as http://127.0.0.1:11434.")],
    model: Annotated[str, typer.Option(help="Model to ask.")],
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: so many clients, each sending when its last ended. [1]")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Open loop: requests per second, come what may.")] = None,
    arrivals: Annotated[
        str | None, typer.Option(help="With --rate: poisson (the default) or constant.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help=f"Measured requests. [{_DEFAULT_REQUESTS}]")] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of sending, instead of --requests.")] = None,
    num_predict: Annotated[
        int | None, typer.Option(help=f"Tokens asked of each answer. [{_DEFAULT_NUM_PREDICT}]")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text to send, behind a nonce; default: stories about drawn words.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Lines {"prompt": …} or {"messages": […]}, taken in turn.'),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Ollama option, such as temperature=0.")
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="First requests, left out of every figure; 0 also skips loading the model beforehand. "
            "[--concurrency; none with --rate]"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line ends in the key to send.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the result; each request to FILE's .records.jsonl."
        ),
    ] = None,
) -> None:
    """Measure one server: latency, tokens per second, and where the time goes."""
    import asyncio

    from rich.console import Console

    from ollamalab.cli.bench_view import show
    from ollamalab.connection import new_event_loop
    from ollamalab.loadgen import load_summary
    from ollamalab.protocol.urls import server_url

    target = server_url(url)
    settings = load_settings(concurrency, rate, arrivals, requests, duration, warmup)
    asked = _prompts(prompt, prompts, num_predict, _options(option or []))
    headers = authorization(api_key_file)
    if json_file is not None:
        _check_place(json_file)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        measuring = _measure(target, model, settings, asked, headers, is_cold=warmup == 0)
        result, called = runner.run(measuring)
    records_file = None if json_file is None else json_file.with_name(f"{json_file.stem}.records.jsonl")
    records = None if records_file is None else str(records_file)
    summary = load_summary(result, target=target, model=model, records=records)
    show(Console(highlight=False), result, summary | {"model": called})
    if json_file is not None and records_file is not None:
        _write(json_file, records_file, summary, result)
    if not result.is_complete:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not summary["outcomes"]["ok"]:
        raise typer.Exit(EXIT_FINDING)


def load_settings(
    concurrency: int | None,
    rate_rps: float | None,
    arrivals: str | None,
    requests: int | None,
    duration_s: float | None,
    warmup: int | None,
) -> LoadSettings:
    """Return the load that the command line asks for; None is an option that was not given."""
    from ollamalab.arrivals import ArrivalPattern, Arrivals
    from ollamalab.loadgen import LoadSettings

    if concurrency is not None and rate_rps is not None:
        raise SettingsError("give --concurrency (closed loop) or --rate (open loop), not both")
    if requests is not None and duration_s is not None:
        raise SettingsError("give --requests or --duration, not both")
    if arrivals is not None and rate_rps is None:
        raise SettingsError("--arrivals needs --rate: a closed loop sends when a client is free")
    rates = {str(pattern): pattern for pattern in (ArrivalPattern.POISSON, ArrivalPattern.CONSTANT)}
    pattern = ArrivalPattern.CLOSED if rate_rps is None else rates.get(arrivals or "poisson")
    if pattern is None:
        raise SettingsError(f"--arrivals must be {' or '.join(rates)}, got {arrivals!r}")
    clients = 1 if concurrency is None else concurrency
    return LoadSettings(
        arrivals=Arrivals(pattern=pattern, rate_rps=rate_rps),
        clients=clients,
        requests=_DEFAULT_REQUESTS if requests is None and duration_s is None else requests,
        duration_s=duration_s,
        # A closed loop begins with a burst of all its clients, which is no sample of what follows.
        warmup=warmup if warmup is not None else clients if rate_rps is None else 0,
    )


def _options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of ``--option``; how long answers are has an option of its own."""
    from ollamalab.cli.option_values import ollama_options

    options = ollama_options(texts, example="temperature=0")
    if "num_predict" in options:
        raise SettingsError("write --num-predict N instead of --option num_predict=N")
    return options


def _prompts(
    text: str | None, file: Path | None, num_predict: int | None, options: Mapping[str, Any]
) -> Callable[[int], Prompt]:
    """Return what request number k says, without its nonce; what the command line says wins."""
    import random
    from dataclasses import replace

    from ollamalab.workload import draw_prompt, parse_prompts, text_prompt

    if text is not None and file is not None:
        raise SettingsError("give --prompt or --prompts, not both")
    tokens = _DEFAULT_NUM_PREDICT if num_predict is None else num_predict
    if tokens < 1:
        raise SettingsError(f"--num-predict must be 1 or more, got {tokens!r}")
    given: list[Prompt] = []
    if text is not None:
        given = [text_prompt(text)]
    elif file is not None:
        try:
            given = parse_prompts(file.read_bytes().splitlines(), source=str(file))
        except OSError as error:
            raise SettingsError(f"cannot read --prompts {file}: {error.strerror}") from error

    def prompt_of(index: int) -> Prompt:
        if given:
            one = given[index % len(given)]
            one = replace(one, num_predict=num_predict or one.num_predict or tokens)
        else:
            one = draw_prompt(random.Random(index), prompt_tokens=_PROMPT_TOKENS, num_predict=tokens)
        return replace(one, options={**one.options, **options})

    return prompt_of


def _check_place(file: Path) -> None:
    """Refuse a place for the result that cannot work, before minutes of load."""
    import tempfile

    if file.is_dir():
        raise SettingsError(f"--json {file} is a folder; write --json {file / 'result.json'}")
    if not file.absolute().parent.is_dir():
        raise SettingsError(f"--json {file}: {file.parent} is not a folder; make it or choose another")
    try:
        with tempfile.TemporaryFile(dir=file.absolute().parent):
            pass
    except OSError as error:
        raise SettingsError(
            f"--json {file}: nothing can be written there ({error.strerror}); choose another folder"
        ) from error


async def _measure(
    target: str,
    model: str,
    settings: LoadSettings,
    prompt_of: Callable[[int], Prompt],
    headers: Mapping[str, str],
    *,
    is_cold: bool,
) -> tuple[LoadResult, str]:
    """Check the server and the model, load it unless cold, offer the load; Ctrl-C ends it early.

    Returns:
        What came of it, and the model's name with the mark if it has random weights.
    """
    import asyncio
    import random
    import signal
    from contextlib import suppress

    from rich.console import Console

    from ollamalab.client import OllamaClient
    from ollamalab.connection import ConnectionSettings, OllamaConnection
    from ollamalab.errors import UpstreamRejected
    from ollamalab.loadgen import LoadGenerator
    from ollamalab.protocol.synthetic import is_synthetic, mark_synthetic
    from ollamalab.workload import chat_body, inference_request, with_nonce

    console = Console(stderr=True, highlight=False)
    nonces = random.Random()
    called = model

    def request_of(index: int) -> Request:
        prompt = with_nonce(prompt_of(index), nonces)
        return inference_request("/api/chat", chat_body(prompt, model))

    async with OllamaClient(target, headers=headers) as client:
        # A server may lack these calls and still chat; then the requests themselves will tell.
        with suppress(UpstreamRejected), console.status(f"loading {model}"):
            if not is_cold:
                await client.preload(model, options=prompt_of(0).options)
            if is_synthetic(await client.show(model)):
                called = mark_synthetic(model)
    limits = ConnectionSettings(max_connections=settings.max_in_flight)
    async with OllamaConnection(target, limits, headers=headers) as upstream:
        generator = LoadGenerator(upstream, target=target)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, generator.stop)
        progress = asyncio.create_task(_show_progress(console, generator))
        try:
            return await generator.run(settings, request_of), called
        finally:
            loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C is the usual one
            progress.cancel()
            await asyncio.gather(progress, return_exceptions=True)


async def _show_progress(console: Console, generator: LoadGenerator) -> None:
    """Keep one line up to date on the terminal; nothing where stderr is none."""
    import asyncio

    from rich.live import Live

    from ollamalab.cli.bench_view import progress_line

    if not console.is_terminal:
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            if generator.progress is not None:
                live.update(progress_line(generator.progress), refresh=True)
            await asyncio.sleep(_REDRAW_S)


def _write(json_file: Path, records_file: Path, summary: Mapping[str, Any], result: LoadResult) -> None:
    """Write both files whole or not at all, the requests first."""
    import msgspec

    from ollamalab.files import write_together

    lines = b"".join(msgspec.json.encode(record) + b"\n" for record in result.records)
    document = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    write_together({records_file: lines, json_file: document})
