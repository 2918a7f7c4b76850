"""The tables that the source documents published, filled with what a run measured.

Each reads saved files only; what a run has not measured says so, with the notebook that would. S1 is the
performance guide, S2 the staged report of cLLM, S4 the throughput table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import fmean

from ollamalab.claims import CLAIMS
from ollamalab.compare import Comparison, Metric, Visit, compare_arms, visit_values
from ollamalab.errors import RunError
from ollamalab.metrics import output_tokens_per_s, response_s, run_s, success_share
from ollamalab.records import RequestRecord
from ollamalab.report.claims import Judged, judge_run
from ollamalab.report.folders import run_folders
from ollamalab.report.runs import Experiment, Run, load_run
from ollamalab.report.tables import Cell, Column, Table

_STAGES = "07_parallel_slots"
_NOT_HERE = "not in this run"

#: S1's rows: what, before and after as published, its unit, and the claim that settles it.
_S1 = (
    ("Cold start", "190 → 30 s", "C04"),
    ("Warm request", "10 → 5 s", "C05"),
    ("Memory", "45 → 42 GB", ""),
    ("GPU utilisation", "60 → 85 %", "C06"),
)

#: S2's rows: stage, success, mean response [s], tokens/s, total time [s].
_S2 = (
    ("S2: before", 0.950, 6.57, 35.73, 212.72),
    ("S2: 8 → 32 sequences", 0.994, 4.37, 56.57, 140.53),
    ("S2: batches, clean-up", 0.994, 4.30, 57.50, 138.25),
)

#: S4's rows: configuration, model, P50 [ms], QPS, tokens/s.
_S4 = (
    ("S4: M2 MacBook 8 GB", "qwen2.5:7b q4", 800, 1.2, 15),
    ("S4: M2 MacBook 16 GB", "qwen2.5:7b q4", 500, 2.0, 25),
    ("S4: M2 Pro 32 GB", "qwen2.5:14b q4", 900, 1.5, 20),
    ("S4: RTX 3090 24 GB", "llama3.1:70b q4", 200, 5.0, 80),
    ("S4: RTX 4090 24 GB", "qwen2.5:32b q4", 350, 3.5, 55),
    ("S4: 2 × RTX 4090 48 GB", "qwen2.5:72b q4", 600, 2.0, 35),
)

_Statistic = Callable[[Sequence[RequestRecord]], float | None]


def _mean_response_s(records: Sequence[RequestRecord]) -> float | None:
    times = [seconds for record in records if (seconds := response_s(record)) is not None]
    return fmean(times) if times else None


def _success(records: Sequence[RequestRecord]) -> float | None:
    return success_share(records).ratio


_METRICS: tuple[tuple[Metric, _Statistic], ...] = (
    (Metric(name="success", better="higher", kind="difference"), _success),
    (Metric(name="mean response", unit="s", better="lower"), _mean_response_s),
    (Metric(name="throughput", unit="tokens/s", better="higher"), output_tokens_per_s),
    (Metric(name="total time", unit="s", better="lower"), run_s),
)


def before_after_table(run: Run) -> Table:
    """Return S1's table of before and after, with what this run measured and its verdict."""
    judged = {entry.claim.id: entry for entry in judge_run(run) if entry.claim}
    rows = [
        (what, published, *(_settled(claim, judged.get(claim)) if claim else _memory(run)))
        for what, published, claim in _S1
    ]
    names = (
        "Quantity",
        "Published",
        "Before",
        "After",
        "After / before",
        "n",
        "Verdict",
        "What was set against what",
    )
    return Table.of(
        "before_after",
        "Before and after tuning, as S1 published it and as it is here",
        [Column(name=name) for name in names],
        rows,
        caption="After / before with its 95 % interval; verdicts are corrected for all tests of the run. "
        "Published numbers are of a 72B model on GPUs: a ratio carries over better than seconds do.",
    )


def stages_table(run: Run) -> Table:
    """Return S2's table: each stage, and what it changes against the one before and the first."""
    rows: list[tuple[Cell, ...]] = [
        (stage, success, response, rate, total, None, None, None)
        for stage, success, response, rate, total in _S2
    ]
    experiment = run.experiments.get(_STAGES)
    stages, values = _stages(experiment) if experiment else ([], {})
    for place, stage in enumerate(stages):
        records = [record for record in experiment.requests if record.arm == stage] if experiment else []
        means = [_mean(values[metric], stage) for metric, _ in _METRICS[1:3]]
        total_s = sum(
            value for visit, value in values[_METRICS[3][0]].items() if visit.arm == stage and value
        )
        steps = [_change(values, stage, stages[against]) if place else None for against in (place - 1, 0)]
        success = success_share([record for record in records if not record.warmup])
        rows.append((stage, success.ratio, *means, total_s, *steps, success.of))
    note = "" if stages else f" {_STAGES} is {_NOT_HERE}."
    return Table.of(
        "stages_of_s2",
        "Stage by stage: success, response, throughput, total time",
        [
            Column(name="Stage"),
            Column(name="Success", format=".1%"),
            Column(name="Mean response", unit="s", format=".2f"),
            Column(name="Throughput", unit="tokens/s", format=".1f"),
            Column(name="Total time", unit="s", format=".1f"),
            Column(name="Response / stage before", format=".2f"),
            Column(name="Response / first stage", format=".2f"),
            Column(name="n"),
        ],
        rows,
        caption="Published rows first. Ratios of this run are Hodges–Lehmann estimates over pairs of one "
        "block, with exact 95 % intervals: to the stage before, and cumulative to the first. Every stage had "
        f"the same arrivals and prompts.{note}",
    )


def gaps_table(run: Run) -> Table:
    """Return S2's gap table: each stage against the reference target."""
    experiment = run.experiments.get(_STAGES)
    stages, values = _stages(experiment) if experiment else ([], {})
    reference = _reference(experiment) if experiment else None
    others = [stage for stage in stages if stage != reference]
    rows = []
    if reference in stages:
        for metric, _ in _METRICS[:3]:
            gaps = [_gap(values, metric, stage, reference) for stage in others]
            rows.append((metric.name, *gaps))
    caption = "Gap to the reference with its exact 95 % interval over pairs; of success in points. "
    if not rows:
        why = f"{_STAGES} is {_NOT_HERE}" if experiment is None else "it has no requests of a reference"
        caption += f"Nothing to show: {why}."
    return Table.of(
        "gaps_of_s2",
        f"Gap to the reference: {reference}" if rows else "Gap to the reference",
        [Column(name="Metric"), *(Column(name=stage, format="+.0%") for stage in (others if rows else []))],
        rows,
        caption=caption
        + "S2 published, for cLLM against Ollama before, after the first and after the second "
        "stage: success −5.0, −0.6, −0.6 points; response +264, +143, +139 %.",
    )


def throughput_table(runs: Iterable[Run]) -> Table:
    """Return S4's table with a row for every run that has one.

    Args:
        runs: In order.
    """
    rows: list[tuple[Cell, ...]] = [(*row, None, "published") for row in _S4]
    for run in runs:
        inventory = run.experiments.get("01_host_inventory")
        saved = inventory.tables.get("throughput") if inventory else None
        if saved is not None:
            clients = saved.columns[3].name.partition(", ")[2]
            rows += [(*row[:5], clients, run.folder.name) for row in saved.rows]
    note = "" if len(rows) > len(_S4) else " No run here has notebook 01."
    return Table.of(
        "throughput_of_s4",
        "Throughput by host",
        [
            Column(name="Configuration"),
            Column(name="Model"),
            Column(name="P50, 1 client", unit="ms", format=".0f"),
            Column(name="QPS", format=".2f"),
            Column(name="Throughput", unit="tokens/s", format=".1f"),
            Column(name="Clients"),
            Column(name="Run"),
        ],
        rows,
        caption="S4 does not say how many clients asked, nor how long the answers were: its rows are for "
        f"orientation only. Other models, other machines: no ratio is meant.{note}",
    )


def runs_beside(run: Run) -> list[Run]:
    """Return the runs in the same folder of results, references first, the given one last.

    One that cannot be read (damaged, or of a newer ollamalab) is left out.
    """
    results = run.folder.resolve().parent
    folders = [*sorted(results.glob("reference-*")), *run_folders(results)]
    found = []
    for folder in folders:
        if folder != run.folder.resolve():
            with suppress(RunError):
                found.append(load_run(folder))
    return [*found, run]


def _settled(claim: str, entry: Judged | None) -> tuple[Cell, ...]:
    """Return before, after, ratio, n, verdict and contrast of a claim's row."""
    if entry is None:
        return (None, None, None, None, f"{_NOT_HERE}: {CLAIMS[claim].experiment}", "")
    comparison = entry.contrast.comparison
    if comparison is None:
        return (None, None, None, entry.n, entry.word, entry.reason)
    return (
        _amount(comparison.baseline_value, comparison.metric),
        _amount(comparison.arm_value, comparison.metric),
        f"{entry.measured} ({entry.bounds})" if entry.bounds else entry.measured or None,
        entry.n,
        entry.word,
        entry.contrast.text,
    )


def _memory(run: Run) -> tuple[Cell, ...]:
    """Return the memory row: the leanest setting of notebook 12 against the defaults."""
    settings = run.experiments.get("12_server_settings")
    saved = settings.tables.get("memory") if settings else None
    sizes = [(str(row[0]), row[1]) for row in saved.rows if isinstance(row[1], int | float)] if saved else []
    if len(sizes) < 2:
        return (None, None, None, None, f"{_NOT_HERE}: 12_server_settings", "")
    (first, before), (least, after) = sizes[0], min(sizes[1:], key=lambda size: size[1])
    return (
        f"{before:,.0f} MB",
        f"{after:,.0f} MB",
        f"{after / before:.2f}×",
        1,
        "observed: less" if after < before else "observed: no setting takes less",
        f"{least} / {first}, memory of the loaded model; one load each, no interval",
    )


def _amount(value: float | None, metric: Metric) -> str | None:
    if value is None:
        return None
    if metric.name.endswith("_ratio"):
        return f"{100 * value:.0f} %"
    return f"{value:.3g} {metric.unit}".rstrip()


def _stages(experiment: Experiment) -> tuple[list[str], dict[Metric, dict[Visit, float | None]]]:
    """Return the stages that ran, in the notebook's order, and the values of their visits by metric."""
    records = experiment.requests
    values = {metric: visit_values(records, statistic) for metric, statistic in _METRICS}
    visited = {visit.arm for visit in values[_METRICS[0][0]]}
    return [arm.name for arm in experiment.file.arms if arm.name in visited], values


def _mean(values: dict[Visit, float | None], arm: str) -> float | None:
    found = [value for visit, value in values.items() if visit.arm == arm and value is not None]
    return fmean(found) if found else None


def _change(values: dict[Metric, dict[Visit, float | None]], stage: str, against: str) -> Cell:
    """Return the ratio of mean responses with its interval; None for a stage against itself."""
    metric = _METRICS[1][0]
    return _interval(compare_arms(values[metric], metric, arm=stage, baseline=against, is_primary=False))


def _gap(
    values: dict[Metric, dict[Visit, float | None]], metric: Metric, stage: str, reference: str | None
) -> Cell:
    if reference is None:
        return None
    found = compare_arms(values[metric], metric, arm=stage, baseline=reference, is_primary=False)
    same = 1.0 if metric.kind == "ratio" else 0.0
    return _interval(found, same)


def _interval(comparison: Comparison, same: float = 0.0) -> Cell:
    if comparison.estimate is None:
        return None
    low, high = (None if end is None else end - same for end in (comparison.low, comparison.high))
    return (comparison.estimate - same, low, high)


def _reference(experiment: Experiment) -> str | None:
    """Return the target that the notebook's own gap table is about."""
    saved = experiment.tables.get("gap")
    heads = [column.name for column in saved.columns] if saved else []
    return next((head.removeprefix("Reference: ") for head in heads if head.startswith("Reference: ")), None)
