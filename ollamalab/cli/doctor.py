"""``ollamalab doctor``: what a host and its server are, and what ought to be otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ollamalab.cli.root import EXIT_FINDING, app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from ollamalab.doctor import Finding, Inventory

_GIB = 2**30


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Argument(help="Address of the server; default: OLLAMA_HOST, else http://127.0.0.1:11434."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print inventory and findings as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Model to stream an answer from; it is loaded if it is not. [one that is loaded]"),
    ] = None,
    watch: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For how long loads and unloads are watched.")
    ] = 3.0,
) -> None:
    """Find common faults of a host and its Ollama, each with evidence, consequence and fix.

    Exit status 0: none found; 1: at least one. Nothing is changed. What cannot be read is named with the
    reason; variables and engines of a server under another user need root.
    """
    import asyncio
    import os

    from rich.console import Console

    from ollamalab.doctor import examine, gather
    from ollamalab.doctor.inventory import Unread
    from ollamalab.errors import TargetError
    from ollamalab.protocol.urls import server_url

    target = server_url(url or os.environ.get("OLLAMA_HOST") or "127.0.0.1")
    inventory = asyncio.run(gather(target, watch_s=watch, model=model))
    # Without an address this machine alone is a good question; an address that was named is not.
    if url and isinstance(inventory.version, Unread):
        raise TargetError(f"{inventory.version.reason} Without an address this machine alone is looked at")
    findings = examine(inventory)
    if as_json:
        _print_json(inventory, findings)
    else:
        _print(inventory, findings, Console(highlight=False, soft_wrap=True))
    if findings:
        raise typer.Exit(EXIT_FINDING)


def _print_json(inventory: Inventory, findings: tuple[Finding, ...]) -> None:
    import msgspec

    from ollamalab.doctor.inventory import document

    typer.echo(msgspec.json.format(msgspec.json.encode(document(inventory, findings)), indent=2))


def _print(inventory: Inventory, findings: tuple[Finding, ...], console: Console) -> None:
    for label, value in _lines(inventory):
        console.print(f"{label:<12}{value}", markup=False)
    for finding in findings:
        console.print(f"\n! {finding.evidence}", style="yellow", markup=False)
        console.print(f"  {finding.consequence}.\n  Fix: {finding.fix}.  [{finding.rule}]", markup=False)
    count = f"{len(findings)} finding" + ("s" if len(findings) > 1 else "")
    console.print(f"\n{count}." if findings else "\nNo findings.", markup=False)


def _lines(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Give label and text of each fact."""
    from ollamalab.doctor.inventory import Unread, concerns_ollama

    def shown(fact: Any, text: Any) -> str:
        return f"not readable: {fact.reason}" if isinstance(fact, Unread) else text(fact)

    machine, gpus = inventory.host, inventory.gpus
    yield (
        "host",
        f"{machine['cpu_model']}, {machine['cpus_usable']} CPUs, {_gib(machine['memory_bytes'])} memory",
    )
    if gpus["reason"]:
        yield "GPUs", str(gpus["reason"])
    for index, gpu in enumerate(gpus["gpus"]):
        memory = gpu.get("memory_bytes")
        yield f"GPU {index}", f"{gpu['name']}" + ("" if memory is None else f", {_gib(memory)}")
    if gpus["gpus"]:
        yield "driver", f"{gpus['driver']}, CUDA {gpus['cuda_version']}"
    yield "server", f"{inventory.url}: {shown(inventory.version, lambda version: f'Ollama {version}')}"
    if isinstance(inventory.version, Unread):
        return
    yield "process", shown(inventory.process, lambda process: f"{process.name}, pid {process.pid}")
    if not isinstance(inventory.process, Unread):
        chosen = sorted(
            f"{name}={value}"
            for name, value in inventory.process.environment.items()
            if concerns_ollama(name)
        )
        yield "variables", " ".join(chosen) or "none of Ollama's is set"
    yield "disk", shown(inventory.disk, lambda disk: f"{_gib(disk.read_bytes_per_s)}/s from {disk.folder}")
    if isinstance(inventory.models, Unread):
        yield "models", shown(inventory.models, str)
    else:
        for stored in inventory.models:
            size = "" if stored.size_bytes is None else f", {_gib(stored.size_bytes)}"
            digest = (stored.digest or "")[:12]
            yield "model", f"{stored.name}  {digest}  {stored.quantisation or 'quantisation not told'}{size}"
    if isinstance(inventory.loaded, Unread):
        yield "loaded", shown(inventory.loaded, str)
    else:
        for model in inventory.loaded:
            slots = "" if model.engine is None else f", {model.engine.slots} in parallel"
            share = model.size_vram_bytes / model.size_bytes if model.size_bytes else 0
            memory = f"{_gib(model.size_bytes)}, {share:.0%} on the GPU"
            yield "loaded", f"{model.name}  {memory}, {model.context_tokens} tokens of context{slots}"
    yield (
        "stream",
        shown(
            inventory.streamed,
            lambda one: f"{one.lines} lines in {one.arrivals_s:.2f} s, made in {one.eval_s:.2f} s",
        ),
    )


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.2f} GiB"
