"""``python -m ollamalab.scripted``: the scripted server in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Annotated

import typer

from ollamalab.connection import new_event_loop
from ollamalab.errors import OllamaLabError
from ollamalab.scripted import Fault, Script, ScriptedServer


async def _serve(script: Script, host: str, port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with ScriptedServer(script, host=host, port=port) as server:
        typer.echo(server.url)
        await stop.wait()


def _pairs(texts: list[str], option: str) -> dict[int, str]:
    """Return what options such as ``--stall 9=5.0`` say: request number to text."""
    pairs = {}
    for text in texts:
        number, mark, value = text.partition("=")
        if not mark or not number.isdigit():
            raise typer.BadParameter(f"{option} {text!r}: write REQUEST=VALUE, for example 9=5.0")
        pairs[int(number)] = value
    return pairs


def main(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one; the address is printed.")] = 0,
    first_ms: Annotated[float, typer.Option(help="From the begin of service to the first token.")] = 100.0,
    gap_ms: Annotated[float, typer.Option(help="Between tokens.")] = 10.0,
    tokens: Annotated[int, typer.Option(help="Per reply, unless num_predict asks for fewer.")] = 32,
    slots: Annotated[int | None, typer.Option(help="Served at once; the rest waits.")] = None,
    stall: Annotated[list[str] | None, typer.Option(help="REQUEST=SECONDS before its first token.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help=f"REQUEST=KIND of {', '.join(Fault)}.")] = None,
    core: Annotated[int | None, typer.Option(help="Pin the process to this CPU core.")] = None,
) -> None:
    """Serve replies on a known schedule, to check a measuring client against."""
    try:
        script = Script(
            first_s=first_ms / 1000,
            gap_s=gap_ms / 1000,
            tokens=tokens,
            slots=slots,
            stalls={number: float(text) for number, text in _pairs(stall or [], "--stall").items()},
            faults={number: Fault(text) for number, text in _pairs(fault or [], "--fault").items()},
        )
        if core is not None:
            os.sched_setaffinity(0, {core})
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(script, host, port))
    except (OllamaLabError, ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
