"""What a run of load comes to: the document that ``ollamalab bench --json`` writes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from ollamalab.arrivals import Arrivals
from ollamalab.loadgen.generator import LoadResult
from ollamalab.metrics import (
    achieved_rps,
    completed,
    e2e_final_line_s,
    md1_inflation,
    measured,
    outcome_counts,
    output_tokens,
    output_tokens_per_s,
    planned_ttft_s,
    response_s,
    run_s,
    send_lag_s,
    stages,
    summarise,
    summarise_gaps,
    summarise_requests,
    tpot_s,
    ttft_s,
)
from ollamalab.records import RequestRecord

#: Version of the document; a reader refuses a newer one.
SCHEMA = 1

#: From this share of requests that had to wait, a queue has no steady state (M/D/1 at load 0.9).
OVERLOADED_RATIO = 0.9

#: A slot wait counts as waiting when it is a visible part of the request's own service: templating and
#: tokenising are in it too, a few milliseconds.
_VISIBLE_WAIT_SHARE = 0.1

_STAGES = ("connect", "load", "slot_wait", "prompt_eval", "eval", "network")


def load_summary(result: LoadResult, *, target: str, model: str, records: str | None) -> dict[str, Any]:
    """Return the document; seconds throughout, absent is None.

    Latencies are of completed requests without the warm-up. In an open loop the time to first token
    counts from the planned send, in a closed loop from the send; ``e2e_s`` is final line - send and
    ``response_s`` final line - planned send. ``fit`` is false where the client was the bottleneck.

    Args:
        result: What the generator gave.
        target: URL of the server.
        model: Name of the model.
        records: Path of the file with the requests; None if there is none.
    """
    rows, arrivals, health = result.records, result.settings.arrivals, result.health
    inflation = _inflation(rows, arrivals)
    every_stage = [stages(record) for record in completed(rows)]
    return {
        "schema": SCHEMA,
        "target": target,
        "model": model,
        "arrivals": str(arrivals.pattern),
        "offered_rps": arrivals.rate_rps,
        "achieved_rps": achieved_rps(rows),
        "requests": len(measured(rows)),
        "outcomes": {str(outcome): count for outcome, count in outcome_counts(rows).items()},
        "duration_s": run_s(rows),
        "ttft_s": asdict(
            summarise_requests(rows, planned_ttft_s if arrivals.is_open else ttft_s, inflation=inflation)
        ),
        "tpot_s": asdict(summarise_requests(rows, tpot_s)),
        "itl_s": asdict(summarise_gaps(rows)),
        "e2e_s": asdict(summarise_requests(rows, e2e_final_line_s, inflation=inflation)),
        "response_s": asdict(summarise_requests(rows, response_s, inflation=inflation)),
        "output_tokens": sum(map(output_tokens, completed(rows))),
        "output_tokens_per_s": output_tokens_per_s(rows),
        "send_lag_s": asdict(summarise(map(send_lag_s, measured(rows)))),
        "client_cpu_ratio": health.cpu_ratio,
        "loop_lag_s": None if health.loop_lag_s is None else asdict(health.loop_lag_s),
        "load_average": list(health.load_average),
        "fit": health.fit,
        "unfit_reasons": list(health.reasons),
        "stages_s": {
            name: asdict(summarise(getattr(each, f"{name}_s") for each in every_stage)) for name in _STAGES
        },
        "records": records,
    }


def waiting_ratio(records: Iterable[RequestRecord]) -> float | None:
    """Return the share of completed requests that waited for a slot; None where the server tells nothing.

    With Poisson arrivals it estimates the offered load of a single slot (arrivals see time averages).
    """
    waited = [
        each.slot_wait_s > _VISIBLE_WAIT_SHARE * (each.prompt_eval_s + each.eval_s)
        for each in map(stages, completed(records))
        if each.slot_wait_s is not None and each.prompt_eval_s is not None and each.eval_s is not None
    ]
    return sum(waited) / len(waited) if waited else None


def growth_s(records: Iterable[RequestRecord]) -> float | None:
    """Return by how much each response exceeded the one before: the slope over the plan, in seconds."""
    points = [(record.index, response_s(record)) for record in completed(records)]
    known = [(index, seconds) for index, seconds in points if seconds is not None]
    return statistics.linear_regression(*zip(*known, strict=True)).slope if len(known) > 1 else None


def _inflation(records: Iterable[RequestRecord], arrivals: Arrivals) -> dict[float, float] | None:
    """Return by how much waiting makes the latencies of an open loop depend on each other."""
    waited = waiting_ratio(records) if arrivals.is_open else None
    return None if waited is None else md1_inflation(waited)
