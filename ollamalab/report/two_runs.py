"""One run against another: the values of each, the margin from repetitions, the verdicts as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ollamalab import metrics
from ollamalab.compare import Metric
from ollamalab.compare.runs import (
    ASSUMED_MARGIN,
    LEAST_AA_RUNS,
    LEAST_UNITS,
    Cell,
    Change,
    RunSpread,
    RunValue,
    compare_runs,
    run_spread,
    run_value,
)
from ollamalab.errors import RunError
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report.conditions import (
    Difference,
    are_repetitions,
    differences,
    other_parameters,
    refuse,
    shared_experiments,
)
from ollamalab.report.folders import run_folders
from ollamalab.report.runs import Experiment, Run, load_run
from ollamalab.report.tables import Column, Table, number_text

#: Points that the share of successes may move where no A/A runs tell.
_SUCCESS_MARGIN = 0.05

#: What is compared; open loops are about the planned send, so times count from there.
_DURATIONS: tuple[tuple[Metric, Callable[[RequestRecord], float | None]], ...] = (
    (Metric(name="response_s", better="lower", unit="s"), metrics.response_s),
    (Metric(name="planned_ttft_s", better="lower", unit="s"), metrics.planned_ttft_s),
    (Metric(name="tpot_s", better="lower", unit="s"), metrics.tpot_s),
)
_SUCCESS = Metric(name="success_ratio", better="higher", kind="difference", margin=_SUCCESS_MARGIN)


@dataclass(frozen=True, kw_only=True)
class RunComparison:
    """What two runs say of each other.

    Attributes:
        before: Name of the first run.
        after: Name of the second.
        conditions: In which they differ, hard ones first.
        left_out: Experiment to the reason why it is not compared.
        changes: Every metric of every arm that both have, with its verdict.
        aa_runs: Names of the runs that the margin comes from; none if it is assumed.
        margin_note: Where the margin comes from, one sentence.
    """

    before: str
    after: str
    conditions: tuple[Difference, ...]
    left_out: Mapping[str, str]
    changes: tuple[Change, ...]
    aa_runs: tuple[str, ...]
    margin_note: str

    @property
    def regressions(self) -> list[Change]:
        """Changes for the worse beyond the margin."""
        return [change for change in self.changes if change.is_better is False]

    @property
    def improvements(self) -> list[Change]:
        """Changes for the better beyond the margin."""
        return [change for change in self.changes if change.is_better]


def compare_run_folders(
    before: Path, after: Path, *, repetitions: Sequence[Path] = (), is_forced: bool = False
) -> RunComparison:
    """Return what two saved runs say of each other.

    Args:
        before: Folder of the run that sets the standard.
        after: Folder of the run that is judged.
        repetitions: Folders of runs under the conditions of ``before``; with none, those found beside it.
        is_forced: Whether to compare across hard conditions and other parameters.

    Raises:
        RunError: The runs cannot be compared: nothing in common, another model or machine, a run against
            itself, or a damaged folder.
    """
    if before.resolve() == after.resolve():
        raise RunError(f"{before} is compared with itself; name two runs")
    first, second = load_run(before), load_run(after)
    shared = shared_experiments(first, second)
    conditions = differences(first, second)
    unlike = other_parameters(first, second)
    left_out: dict[str, str] = {}
    if is_forced:
        conditions += [difference for found in unlike.values() for difference in found]
    else:
        refuse(conditions, first, second)
        shared = [name for name in shared if name not in unlike]
        left_out = {name: f"other parameters ({_listed(found)})" for name, found in unlike.items()}
    repeated = _given(first, repetitions) if repetitions else _found(first, second)
    values = [run_values(run, shared) for run in (first, second, *repeated)]
    spread = run_spread([values[0], *values[2:]])
    changes = compare_runs(values[0], values[1], spread)
    if not changes:
        why = "; ".join(left_out.values())
        raise RunError(
            f"{before.name} and {after.name} share no arm with {LEAST_UNITS} visits or requests in each"
            + (f" ({why}); --force compares other parameters too" if why else "")
        )
    return RunComparison(
        before=before.name,
        after=after.name,
        conditions=tuple(conditions),
        left_out=left_out,
        changes=changes,
        aa_runs=tuple(run.folder.name for run in (first, *repeated)) if spread else (),
        margin_note=_margin_note(spread, 1 + len(repeated)),
    )


def run_values(run: Run, experiments: Collection[str]) -> dict[Cell, RunValue]:
    """Return every metric of every arm of these experiments that has enough units."""
    found = {}
    for name in experiments:
        for arm, records in _arms(run.experiments[name]).items():
            units = {metric: _means(records, value) for metric, value in _DURATIONS}
            units[_SUCCESS] = [float(record.outcome is Outcome.OK) for record in records]
            for metric, numbers in units.items():
                value = run_value(numbers, metric)
                if value is not None:
                    found[Cell(experiment=name, arm=arm, metric=metric)] = value
    return found


def changes_table(comparison: RunComparison, *, is_whole: bool = False) -> Table:
    """Return the verdicts, regressions first; what stayed within the margin only if asked for."""
    order = {False: 0, True: 1, None: 2}
    shown = [change for change in comparison.changes if is_whole or change.is_better is not None]
    rows = [
        (
            change.cell.experiment,
            change.cell.arm or "–",
            change.cell.metric.name,
            change.before.value,
            change.after.value,
            *_change_texts(change),
            f"{change.before.units}, {change.after.units}",
            change.word,
        )
        for change in sorted(shown, key=lambda change: order[change.is_better])
    ]
    names = ("Change", "Margin", "n", "Verdict")
    return Table.of(
        "changes",
        f"{comparison.after} against {comparison.before}",
        [
            *(Column(name=name) for name in ("Experiment", "Arm", "Metric")),
            Column(name=comparison.before, format=".3g"),
            Column(name=comparison.after, format=".3g"),
            *(Column(name=name) for name in names),
        ],
        rows,
        caption=f"{comparison.margin_note} n: visits (or requests) of each run. "
        f"{len(comparison.changes)} metrics were tested together (Holm).",
    )


def comparison_facts(comparison: RunComparison) -> dict[str, Any]:
    """Return a comparison as plain data, for programs."""
    return {
        "schema": 1,
        "before": comparison.before,
        "after": comparison.after,
        "conditions": [
            {"name": item.name, "before": item.before, "after": item.after, "hard": item.is_hard}
            for item in comparison.conditions
        ],
        "left_out": dict(comparison.left_out),
        "margin": {"aa_runs": list(comparison.aa_runs), "note": comparison.margin_note},
        "changes": [
            {
                "experiment": change.cell.experiment,
                "arm": change.cell.arm,
                "metric": change.cell.metric.name,
                "kind": change.cell.metric.kind,
                "before": change.before.value,
                "after": change.after.value,
                "n": [change.before.units, change.after.units],
                "change": change.change,
                "margin": change.margin,
                "p_value": change.p_value,
                "adjusted_p_value": change.adjusted_p_value,
                "verdict": change.word,
            }
            for change in comparison.changes
        ],
        "regressions": len(comparison.regressions),
        "improvements": len(comparison.improvements),
    }


def _given(first: Run, folders: Iterable[Path]) -> list[Run]:
    """Return the repetitions that were named; they have to be under the conditions of the first run."""
    runs = [load_run(folder) for folder in folders if folder.resolve() != first.folder.resolve()]
    for run in runs:
        refuse(differences(first, run), first, run)
    return runs


def _found(first: Run, second: Run) -> list[Run]:
    """Return the finished repetitions of a run that lie beside it, the one that is judged left out."""
    judged = second.folder.resolve()
    beside = [load_run(folder) for folder in run_folders(first.folder.resolve().parent)]
    return [
        run
        for run in beside
        if run.folder not in (first.folder.resolve(), judged)
        and run.manifest.finished_utc
        and are_repetitions(first, run)
    ]


def _arms(experiment: Experiment) -> dict[str, list[RequestRecord]]:
    arms: defaultdict[str, list[RequestRecord]] = defaultdict(list)
    for record in experiment.requests:
        if not record.warmup:
            arms[record.arm].append(record)
    return arms


def _means(records: Sequence[RequestRecord], value: Callable[[RequestRecord], float | None]) -> list[float]:
    """Return one mean per visit, as requests of a visit share its moment; else one value per request."""
    visits: defaultdict[int, list[float]] = defaultdict(list)
    for place, record in enumerate(records):
        number = value(record)
        if number is not None:
            visits[-place - 1 if record.visit is None else record.visit].append(number)
    return [sum(numbers) / len(numbers) for numbers in visits.values()]


def _change_texts(change: Change) -> tuple[str, str]:
    if change.cell.metric.kind == "difference":
        return f"{number_text(100 * change.change, '+.1f')} points", f"±{100 * change.margin:.1f} points"
    return f"{change.change:.2f}×", f"{1 / change.margin:.2f}–{change.margin:.2f}×"


def _listed(found: Iterable[Difference]) -> str:
    return ", ".join(map(str, found))


def _margin_note(spread: RunSpread | None, runs: int) -> str:
    if spread is not None:
        return f"The margin comes from {spread.runs} runs under the conditions of the first (A/A)."
    have = "only the first run has its conditions" if runs == 1 else f"only {runs} runs have its conditions"
    return (
        f"The margin is assumed, ±{100 * ASSUMED_MARGIN:g} % and ±{100 * _SUCCESS_MARGIN:g} points of "
        f"success beyond the inner 95 % interval: {have}, and it takes {LEAST_AA_RUNS} to see how far runs "
        "differ here."
    )
