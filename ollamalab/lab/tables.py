"""The tables that several notebooks show, from records and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ollamalab.compare import Comparison
from ollamalab.lab.cold import SCENARIOS, STAGES, ColdStart, by_scenario, stage_medians
from ollamalab.lab.trials import Trials, mean_of, not_run_text
from ollamalab.loadgen import growth_s
from ollamalab.metrics import (
    PERCENTILES,
    e2e_final_line_s,
    least_samples,
    output_tokens_per_s,
    response_s,
    run_s,
    success_share,
    summarise_requests,
    tpot_s,
    ttft_s,
)
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table

_RATIO = ".2f"


def comparison_table(name: str, title: str, comparisons: Sequence[Comparison], *, note: str = "") -> Table:
    """Return one row per comparison: both values, the ratio or difference with its interval, the verdict."""
    rows = [
        (
            item.metric.name,
            item.arm,
            item.arm_value,
            item.baseline_value,
            item.effect,
            _pairs(item),
            item.detectable,
            item.outcome,
        )
        for item in comparisons
    ]
    baseline = comparisons[0].baseline if comparisons else "baseline"
    return Table.of(
        name,
        title,
        [
            Column(name="Metric"),
            Column(name="Arm"),
            Column(name="Value", format=".3g"),
            Column(name=baseline, format=".3g"),
            Column(name=_effect_head(comparisons), format=_RATIO),
            Column(name="Pairs"),
            Column(name="Detectable", format=_RATIO),
            Column(name="Verdict"),
        ],
        rows,
        caption="Means of the visits; Hodges–Lehmann ratio over pairs with its exact 95 % interval. "
        "A pair is lost where a visit gave no value. Detectable: the ratio that so many pairs find in four "
        "of five cases. Verdicts are of each row alone; the claims are corrected over the run." + note,
    )


def _effect_head(comparisons: Sequence[Comparison]) -> str:
    kinds = {item.metric.kind for item in comparisons}
    return " or ".join(sorted(kinds, reverse=True)).capitalize() or "Ratio"


def latency_table(name: str, title: str, arms: Mapping[str, Sequence[RequestRecord]]) -> Table:
    """Return three rows per arm: TTFT, TPOT and E2E (final line) in ms, as far as n carries them."""
    metrics: tuple[tuple[str, Callable[[RequestRecord], float | None]], ...] = (
        ("TTFT", ttft_s),
        ("TPOT", tpot_s),
        ("E2E", e2e_final_line_s),
    )
    percentiles = [
        Column(name=label, unit="ms", format=".1f") for label in ("mean", "p50", "p90", "p95", "p99")
    ]
    rows: list[list[object]] = []
    for arm, records in arms.items():
        share = success_share(records)
        for label, metric in metrics:
            summary = summarise_requests(records, metric)
            values = (summary.mean, summary.p50, summary.p90, summary.p95, summary.p99)
            in_ms = [None if value is None else value * 1e3 for value in values]
            rows.append([arm, label, share.ratio, summary.n, *in_ms])
    columns = [
        Column(name="Arm"),
        Column(name="Metric"),
        Column(name="Success", format=".1%"),
        Column(name="n"),
        *percentiles,
    ]
    needs = ", ".join(f"p{100 * share:g} {least_samples(share)}" for share in PERCENTILES)
    caption = f"Completed requests; n/a where n cannot carry a percentile (least n: {needs})."
    return Table.of(name, title, columns, rows, caption=caption)


def staged_table(name: str, title: str, trials: Trials) -> Table:
    """Return S2's table: success, mean response, throughput and total time per stage.

    Response time counts from the planned send. Total time adds up the visits, so that arms with equally
    many visits compare. *Growth* is by how much each response of a visit exceeds the one before: where it
    is above 0, arrivals come faster than the stage can serve, and a longer visit shows a larger mean.
    """
    rows = []
    for arm in trials.arms:
        share = success_share(trials.of(arm))
        rates = trials.per_visit(arm, output_tokens_per_s)
        lasted = trials.per_visit(arm, run_s)
        growths = trials.per_visit(arm, growth_s)
        rows.append(
            (
                arm,
                (share.ratio, share.low, share.high),
                mean_of(response_s)(trials.of(arm)),
                fmean(growths) * 1e3 if growths else None,
                fmean(rates) if rates else None,
                sum(lasted) if lasted else None,
                share.of,
            )
        )
    return with_not_run(
        trials.not_run,
        name,
        title,
        [
            Column(name="Stage"),
            Column(name="Success", format=".1%"),
            Column(name="Mean response", unit="s", format=".2f"),
            Column(name="Growth", unit="ms/request", format="+.0f"),
            Column(name="Throughput", unit="tokens/s", format=".1f"),
            Column(name="Total time", unit="s", format=".1f"),
            Column(name="n"),
        ],
        rows,
        caption="Success with its 95 % Wilson interval; response from the planned send; the same arrivals "
        "and prompts for every stage. Growth: by how much each response of a visit exceeds the one before; "
        "above 0 the stage is overloaded, and a longer visit would show a larger mean.",
    )


def gap_table(name: str, title: str, comparisons: Sequence[Comparison]) -> Table:
    """Return S2's second table: how far a target is from a reference, per metric, with intervals."""
    rows = [
        (
            item.metric.name,
            item.baseline_value,
            item.arm_value,
            _gap(item),
            _pairs(item),
        )
        for item in comparisons
    ]
    arm = comparisons[0].arm if comparisons else "target"
    baseline = comparisons[0].baseline if comparisons else "reference"
    return Table.of(
        name,
        title,
        [
            Column(name="Metric"),
            Column(name=f"Reference: {baseline}", format=".3g"),
            Column(name=arm, format=".3g"),
            Column(name="Gap", format="+.0%"),
            Column(name="Pairs"),
        ],
        rows,
        caption="Gap of the target to the reference with its exact 95 % interval; of a share in points. "
        "Where the target was chosen as the best of several, its gap flatters it.",
    )


def stages_table(starts: Sequence[ColdStart], *, not_run: Mapping[str, str] | None = None) -> Table:
    """Return the median stages of cold starts in seconds, with their sum.

    Args:
        starts: In order.
        not_run: Arms that could not be had, with the reason; the scenarios among them are shown.
    """
    missing = {name: reason for name, reason in (not_run or {}).items() if name in SCENARIOS}
    groups = by_scenario(starts)
    rows = []
    for scenario, stages in stage_medians(starts).iterrows():
        group = groups[str(scenario)]
        n = _of_all(sum(start.is_ok for start in group), len(group))
        rows.append((scenario, n, *stages, stages.sum(min_count=1)))
    seconds = [Column(name=name, unit="s", format=".3f") for name in (*STAGES, "sum")]
    return with_not_run(
        missing,
        "stages",
        "Stages of a cold start",
        [Column(name="Scenario"), Column(name="n"), *seconds],
        rows,
        caption="Medians of n completed requests. Load, prefill and decode as the server reports them; "
        "other: connecting, slot wait, templating, network and client. The sum is of the medians.",
    )


def with_not_run(
    not_run: Mapping[str, str],
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    caption: str,
) -> Table:
    """Return a table with a row for each arm that was not run, and a last column that says why."""
    if not_run:
        columns = [*columns, Column(name="Note")]
        empty = [None] * (len(columns) - 2)
        rows = [
            *([*row, ""] for row in rows),
            *([arm, *empty, not_run_text(reason)] for arm, reason in not_run.items()),
        ]
    return Table.of(name, title, columns, rows, caption=caption)


def _gap(item: Comparison) -> tuple[float, float | None, float | None] | None:
    """Return a comparison's estimate and interval as a change; None without an estimate."""
    if item.estimate is None:
        return None
    same = 1.0 if item.metric.kind == "ratio" else 0.0
    low, high = (None if end is None else end - same for end in (item.low, item.high))
    return item.estimate - same, low, high


def _pairs(item: Comparison) -> int | str:
    return _of_all(item.pairs, item.pairs + item.lost_pairs)


def _of_all(counted: int, every: int) -> int | str:
    """Return how many count; "7 of 8" where some were lost."""
    return counted if counted == every else f"{counted} of {every}"
