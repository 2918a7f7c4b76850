"""What ``ollamalab bench`` shows: the progress line, the table, and what to beware of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ollamalab.loadgen import LoadProgress, LoadResult, growth_s, waiting_ratio
from ollamalab.loadgen.summary import OVERLOADED_RATIO
from ollamalab.metrics import MAX_SHARED_READ_RATIO, measured, shared_read_ratio
from ollamalab.records import Outcome

_SHOWN_ERRORS = 3


def progress_line(progress: LoadProgress) -> str:
    """Return how far a run is, in one line."""
    of = "" if progress.planned is None else f" of {progress.planned}"
    failed = f" · {progress.failed} failed" if progress.failed else ""
    in_flight = progress.offered - progress.ended
    return f"{progress.ended}{of} ended{failed} · {in_flight} in flight · {progress.elapsed_s:.0f} s"


def show(console: Console, result: LoadResult, summary: Mapping[str, Any]) -> None:
    """Print the result: what was offered, the table of figures, and what to beware of."""
    if result.settings.arrivals.is_open:
        offered = f"{summary['arrivals']} arrivals, {summary['offered_rps']:g} requests/s"
    else:
        offered = f"closed loop, {result.settings.clients} at once"
    outcomes = ", ".join(f"{count} {name}" for name, count in summary["outcomes"].items() if count)
    lines = [
        f"{summary['model']} at {summary['target']} · {offered}",
        f"{summary['requests']} requests in {_number(summary['duration_s'])} s "
        f"({_number(summary['achieved_rps'])}/s sent): {outcomes or 'none'}",
        f"{summary['output_tokens']} output tokens, {_number(summary['output_tokens_per_s'])} tokens/s",
    ]
    console.print(*lines, sep="\n", markup=False, soft_wrap=True)
    console.print(_table(summary, is_open=result.settings.arrivals.is_open))
    console.print(_instrument(result), style="dim", soft_wrap=True)
    for warning in _warnings(result):
        console.print(f"! {warning}", style="yellow", markup=False, soft_wrap=True)


def _table(summary: Mapping[str, Any], *, is_open: bool) -> Table:
    """Return the figures, each with what it is; a closed loop has no plan to be late for."""
    stage = summary["stages_s"]
    rows = [
        ("ttft", summary["ttft_s"], f"{'plan' if is_open else 'send'} to first token"),
        ("tpot", summary["tpot_s"], "per token after the first"),
        ("itl", summary["itl_s"], "gaps of chunks, pooled"),
        ("e2e", summary["e2e_s"], "send to final line"),
        ("· connect", stage["connect"], "new connections"),
        ("· load", stage["load"], "server: model ready"),
        ("· slot wait", stage["slot_wait"], "server: rest of its total"),
        ("· prompt eval", stage["prompt_eval"], "server: to first token"),
        ("· eval", stage["eval"], "server: later tokens"),
        ("· network", stage["network"], "e2e - connect - server"),
    ]
    if is_open:
        rows.insert(0, ("response", summary["response_s"], "plan to final line"))
        rows.insert(1, ("· send lag", summary["send_lag_s"], "plan to send: the client"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("ms")
    for name in ("mean", "p50", "p90", "p95", "p99", "n"):
        table.add_column(name, justify="right")
    table.add_column("what it is", style="dim")
    for name, values, note in rows:
        cells = [_milliseconds(values[column]) for column in ("mean", "p50", "p90", "p95", "p99")]
        table.add_row(name, *cells, f"{values['n']}", note)
    return table


def _instrument(result: LoadResult) -> str:
    """Return how the client fared, in one line."""
    health = result.health
    lag = "n/a" if health.loop_lag_s is None else f"{health.loop_lag_s.p99 * 1e3:.1f} ms"
    load = ", ".join(f"{average:.1f}" for average in health.load_average)
    return (
        f"n/a: too few independent values, or not told · client: {health.cpu_ratio:.0%} of a core, "
        f"event loop late by {lag} at p99, load average {load}"
    )


def _warnings(result: LoadResult) -> list[str]:
    """Return what the reader must know before trusting a figure."""
    warnings = [f"unfit, the client was the bottleneck: {reason}" for reason in result.health.reasons]
    waited, growth = waiting_ratio(result.records), growth_s(result.records)
    is_open = result.settings.arrivals.is_open
    if is_open and waited is not None and growth is not None and waited >= OVERLOADED_RATIO:
        warnings.append(
            f"overloaded: {waited:.0%} of the requests waited for a slot and each response took "
            f"{growth * 1e3:.0f} ms longer than the one before; percentiles would only tell the run's length"
        )
    if result.short_replies:
        warnings.append(f"{result.short_replies} answers ended before the length asked for (--num-predict)")
    shared = shared_read_ratio(result.records)
    if shared is not None and shared > MAX_SHARED_READ_RATIO:
        warnings.append(
            f"no itl: {shared:.0%} of the chunks came in one read with others, so gaps tell nothing of the "
            "server; tpot still does"
        )
    errors = Counter(
        record.error for record in measured(result.records) if record.outcome is not Outcome.CANCELLED
    )
    del errors[None]
    warnings += [f"{count} × {error}" for error, count in errors.most_common(_SHOWN_ERRORS)]
    if not result.is_complete:
        warnings.append("interrupted: these are the requests until then")
    return warnings


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "n/a"
    digits = 1 if seconds < 1 else 0
    return f"{round(seconds * 1e3, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero
