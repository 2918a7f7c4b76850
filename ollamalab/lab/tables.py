"""The tables that several notebooks show, from records and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from ollamalab.compare import Comparison
from ollamalab.lab.trials import Trials
from ollamalab.metrics import (
    completed,
    e2e_final_line_s,
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


def comparison_table(name: str, title: str, comparisons: Sequence[Comparison]) -> Table:
    """Return one row per comparison: both values, the ratio with its interval, the verdict."""
    rows = [
        (
            item.metric.name,
            item.arm,
            item.arm_value,
            item.baseline_value,
            None if item.estimate is None else (item.estimate, item.low, item.high),
            item.pairs,
            item.detectable,
            item.verdict.text if item.verdict else item.reason,
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
            Column(name="Ratio", format=_RATIO),
            Column(name="Pairs"),
            Column(name="Detectable", format=_RATIO),
            Column(name="Verdict"),
        ],
        rows,
        caption="Means of the visits; Hodges–Lehmann ratio over pairs with its exact 95 % interval. "
        "Detectable: the ratio that so many pairs find in four of five cases.",
    )


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
    caption = (
        "Completed requests; n/a where n cannot carry a percentile (p50 needs 11, p90 64, p95 130, p99 662)."
    )
    return Table.of(name, title, columns, rows, caption=caption)


def staged_table(name: str, title: str, trials: Trials) -> Table:
    """Return S2's table: success, mean response, throughput and total time per stage, and the change.

    Response time counts from the planned send. Total time adds up the visits, so that arms with equally
    many visits compare. The change is that of the mean response against the first stage.
    """
    rows = []
    for arm in trials.arms:
        records = trials.of(arm)
        times = [value for value in map(response_s, completed(records)) if value is not None]
        visits: dict[int | None, list[RequestRecord]] = {}
        for record in records:
            visits.setdefault(record.visit, []).append(record)
        lasted = [seconds for seconds in map(run_s, visits.values()) if seconds is not None]
        rates = [rate for rate in map(output_tokens_per_s, visits.values()) if rate is not None]
        share = success_share(records)
        rows.append(
            (
                arm,
                (share.ratio, share.low, share.high),
                fmean(times) if times else None,
                fmean(rates) if rates else None,
                sum(lasted) if lasted else None,
                len(records),
            )
        )
    return Table.of(
        name,
        title,
        [
            Column(name="Stage"),
            Column(name="Success", format=".1%"),
            Column(name="Mean response", unit="s", format=".2f"),
            Column(name="Throughput", unit="tokens/s", format=".1f"),
            Column(name="Total time", unit="s", format=".1f"),
            Column(name="n"),
        ],
        rows,
        caption="Success with its 95 % Wilson interval; response from the planned send; the same arrivals "
        "and prompts for every stage.",
    )


def gap_table(name: str, title: str, comparisons: Sequence[Comparison]) -> Table:
    """Return S2's second table: how far a target is from a reference, per metric, with intervals."""
    rows = [
        (
            item.metric.name,
            item.baseline_value,
            item.arm_value,
            None
            if item.estimate is None or item.low is None or item.high is None
            else (item.estimate - 1, item.low - 1, item.high - 1)
            if item.metric.kind == "ratio"
            else (item.estimate, item.low, item.high),
            item.pairs,
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
        caption="Gap of the target to the reference with its exact 95 % interval.",
    )
