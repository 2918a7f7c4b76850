"""``ollamalab deploy``: the files that put a run's findings into service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ollamalab.cli.root import app


@app.command()
def deploy(
    kind: Annotated[
        str, typer.Argument(metavar="nginx|compose|systemd|env|gateway|alerts", help="What to write.")
    ],
    from_run: Annotated[
        str, typer.Option("--from", metavar="RUN", help="Name or folder of a run; default: the latest.")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A gateway's YAML file, instead of a run.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write files there; default: to stdout.")
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(metavar="URL[,weight=W]", help="For nginx: a gateway behind it; may be repeated."),
    ] = None,
) -> None:
    """Write configuration files with the settings that a run showed to pay."""
    import shutil
    import sys

    from ollamalab.deploy import profile_of_config, profile_of_run, render
    from ollamalab.errors import SettingsError
    from ollamalab.files import write_together
    from ollamalab.settings.files import parse_upstream

    if config is not None and from_run:
        raise SettingsError("--from and --config exclude each other; name a run or a file")
    if config is not None:
        profile = profile_of_config(config)
    else:
        from ollamalab.report import find_run, load_run, root

        profile = profile_of_run(load_run(find_run(from_run, root() / "results")))
    program = Path(sys.executable).with_name("ollamalab")
    files = render(
        kind,
        profile,
        program=str(program)
        if program.is_file()
        else shutil.which("ollamalab") or "/usr/local/bin/ollamalab",
        gateways=[parse_upstream(text) for text in gateway or ()],
    )
    if out is None:
        typer.echo("\n".join(_shown(files)), nl=False)
        return
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
    write_together({out / name: text.encode() for name, text in files.items()})
    for name in files:
        typer.echo(out / name)


def _shown(files: dict[str, str]) -> list[str]:
    """Return the files' texts; where there are several, each under its name as a comment."""
    if len(files) == 1:
        return list(files.values())
    return [f"# --- {name}\n{text}" for name, text in files.items()]
