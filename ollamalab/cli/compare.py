"""``ollamalab compare``: whether a run is worse than another, beyond what runs differ by anyway."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ollamalab.cli.root import EXIT_FINDING, app

if TYPE_CHECKING:
    from rich.console import Console

    from ollamalab.report.two_runs import RunComparison


@app.command()
def compare(
    run_a: Annotated[str, typer.Argument(help="Run that sets the standard: name or folder.")],
    run_b: Annotated[str, typer.Argument(help="Run that is judged.")],
    baseline_run: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline-run",
            metavar="RUN",
            help="A repetition of RUN_A, for the margin; at least two. Default: those found beside it.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare across other models, GPUs, drivers and parameters too.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Show what stayed within the margin, too.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON as well; - for stdout.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of results.  [results/]")] = None,
) -> None:
    """Compare two runs; exit status 1 if the second is worse beyond the margin."""
    import json

    from rich.console import Console

    from ollamalab import report
    from ollamalab.files import write_whole
    from ollamalab.report import two_runs

    results = out or report.root() / "results"
    comparison = two_runs.compare_run_folders(
        report.find_run(run_a, results),
        report.find_run(run_b, results),
        repetitions=[report.find_run(name, results) for name in baseline_run or ()],
        is_forced=force,
    )
    facts = json.dumps(two_runs.comparison_facts(comparison), indent=2, ensure_ascii=False) + "\n"
    if json_file == Path("-"):
        typer.echo(facts, nl=False)
    else:
        if json_file is not None:
            write_whole(json_file, facts.encode())
        _show(comparison, Console(highlight=False, soft_wrap=True), is_whole=every)
    if comparison.regressions:
        raise typer.Exit(EXIT_FINDING)


def _show(comparison: RunComparison, console: Console, *, is_whole: bool) -> None:
    """Print what differs in the conditions, then what differs in the numbers."""
    from ollamalab.report.two_runs import changes_table

    lines = [f"  {difference}" for difference in comparison.conditions]
    lines += [f"  not compared: {name}: {why}" for name, why in comparison.left_out.items()]
    lines = ["Conditions that differ:", *lines] if lines else ["Conditions: the same"]
    named = len(comparison.regressions) + len(comparison.improvements)
    lines += [
        "",
        repr(changes_table(comparison, is_whole=is_whole)) if named or is_whole else comparison.margin_note,
        "",
        f"{len(comparison.regressions)} regressions, {len(comparison.improvements)} improvements, "
        f"{len(comparison.changes) - named} within the margin",
    ]
    console.print("\n".join(lines), markup=False)
