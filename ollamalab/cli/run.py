"""``ollamalab run``, ``list`` and ``report``: batches of experiments and what they left."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ollamalab.cli.root import EXIT_FINDING, EXIT_INTERRUPTED, app

if TYPE_CHECKING:
    from rich.console import Console

    from ollamalab.runner.batch import BatchResult

_Results = Annotated[
    Path | None, typer.Option("--out", help="Folder of results; default: results/ of the lab.")
]


@app.command()
def run(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT]...", help='"02_cold_start", "cold_start" or "02"; default: all.'
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Folder of parameter files in params/; quick: the notebooks' defaults.")
    ] = "quick",
    out: _Results = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish the newest unfinished run with the same parameters.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.")] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="NAME=VALUE", help="A parameter, for every experiment that has it."),
    ] = None,
) -> None:
    """Run experiments as a batch and write their report."""
    from rich.console import Console

    from ollamalab import report
    from ollamalab.cli.plan_view import show_plan, show_traffic
    from ollamalab.runner import make_plan
    from ollamalab.runner.inventory import look_up
    from ollamalab.runner.needs import needs_of
    from ollamalab.runner.traffic import look_for_traffic

    console = Console(highlight=False)
    root = report.root()
    results = out or root / "results"
    plan = make_plan(root, names=experiments or (), profile=profile, options=parameter or ())
    needs = needs_of(plan.tasks)
    show_plan(plan, look_up(needs, os.environ), console)
    show_traffic(look_for_traffic((need.target for need in needs), os.environ), console)
    if dry_run:
        return
    from ollamalab.runner import batch

    # What goes wrong in a notebook stands in its own line below.
    logging.getLogger("papermill").addHandler(logging.NullHandler())
    folder = batch.find_unfinished(plan, results) if resume else batch.start(plan, results)
    console.print(f"{_shown(folder)}", soft_wrap=True)
    result = batch.run_batch(plan, folder, console)
    _summarise(result, console)
    if result.interrupted:
        console.print("Interrupted; `ollamalab run --resume` with the same options finishes it.")
        raise typer.Exit(EXIT_INTERRUPTED)
    if not batch.OVER.issuperset(result.states.values()):
        raise typer.Exit(EXIT_FINDING)


@app.command("list")
def list_experiments() -> None:
    """List the experiments: question, minutes, hardware."""
    from rich.console import Console
    from rich.table import Table

    from ollamalab import report
    from ollamalab.runner import discover

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Experiment", no_wrap=True)
    table.add_column("Question", ratio=1)
    table.add_column("Minutes", justify="right")
    table.add_column("Hardware")
    for notebook in discover(report.root()):
        header = notebook.header
        minutes = "n/a" if header.minutes is None else f"{header.minutes:g}"
        table.add_row(notebook.name, header.question or header.title, minutes, header.hardware)
    Console(highlight=False).print(table)


@app.command("report")
def report_run(
    run_name: Annotated[
        str, typer.Argument(metavar="[RUN]", help="Name or folder of a run; default: the latest.")
    ] = "",
    html: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run.")] = None,
    out: _Results = None,
) -> None:
    """Write the HTML report of a run from what it saved."""
    from ollamalab import report

    results = out or report.root() / "results"
    path = report.write_report(report.find_run(run_name, results), html)
    typer.echo(_shown(path))


def _summarise(result: BatchResult, console: Console) -> None:
    from ollamalab.runner.progress import MARKS

    states = list(result.states.values())
    words = [f"{states.count(state)} {state}" for state in MARKS if state in states]
    console.print(f"{', '.join(words)} · {_shown(result.report)}", soft_wrap=True)


def _shown(path: Path) -> str:
    """Return a path as it is shortest from here."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(resolved)
