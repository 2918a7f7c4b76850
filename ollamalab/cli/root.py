"""The application that every command file registers with, and the exit statuses."""

from __future__ import annotations

import typer

from ollamalab import __version__

app = typer.Typer(
    name="ollamalab",
    help="Which Ollama optimisations pay on this host, by how much and how surely.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

EXIT_FINDING = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ollamalab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    """Which Ollama optimisations pay on this host, by how much and how surely."""
