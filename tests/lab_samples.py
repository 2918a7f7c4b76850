"""Requests by hand for the tests of ``ollamalab.lab``: few moments, round numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ollamalab.compare import Comparison, Metric, Visit, compare_arms
from ollamalab.lab import Lab, Trials
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.report import root
from ollamalab.report.notebooks import read_notebook
from ollamalab.runner.parameters import parameters_of

URL = "http://127.0.0.1:11434"
E2E = Metric(name="e2e_s", unit="s", better="lower")
RATE = Metric(name="output_tokens_per_s", unit="tokens/s", better="higher")
SUCCESS = Metric(name="success_ratio", kind="difference", better="higher")


def done(
    arm: str = "",
    *,
    visit: int | None = None,
    block: int | None = None,
    sent_s: float = 0.0,
    first_s: float = 1.0,
    last_s: float = 2.0,
    end_s: float = 2.0,
    tokens: int = 10,
    server: ServerTimings | None = None,
) -> RequestRecord:
    """Return a request that completed."""
    return RequestRecord(
        index=0,
        target=URL,
        model="m",
        outcome=Outcome.OK,
        arm=arm,
        visit=visit,
        block=block,
        intended_s=sent_s,
        sent_s=sent_s,
        first_token_s=first_s,
        last_token_s=last_s,
        end_s=end_s,
        token_times_s=(first_s, last_s),
        output_tokens=tokens,
        server=server,
    )


def failed(arm: str = "", *, visit: int | None = None, block: int | None = None) -> RequestRecord:
    """Return a request that was never sent, because nothing listened."""
    return RequestRecord(
        index=0,
        target=URL,
        model="m",
        outcome=Outcome.REFUSED,
        arm=arm,
        visit=visit,
        block=block,
        intended_s=0.0,
        error="cannot connect",
    )


def trials(arms: Mapping[str, Sequence[float | None]]) -> Trials:
    """Return trials in which visit n of each arm is one request of so many seconds; None is one that failed.

    Each visit is in the block of its place, so that the arms' n-th visits make a pair.
    """
    records = [
        failed(arm, visit=visit, block=block)
        if seconds is None
        else done(arm, visit=visit, block=block, last_s=seconds, end_s=seconds)
        for place, (arm, values) in enumerate(arms.items())
        for block, seconds in enumerate(values)
        for visit in [block * len(arms) + place]
    ]
    return Trials(arms=tuple(arms), records=tuple(records))


def compared(
    metric: Metric,
    pairs: Sequence[tuple[float | None, float | None]],
    *,
    arm: str = "new",
    baseline: str = "old",
    is_primary: bool = True,
) -> Comparison:
    """Return the comparison of pairs (arm, baseline)."""
    values = {
        Visit(index=2 * block + place, block=block, arm=name): value
        for block, pair in enumerate(pairs)
        for place, (name, value) in enumerate(zip((arm, baseline), pair, strict=True))
    }
    return compare_arms(values, metric, arm=arm, baseline=baseline, is_primary=is_primary)


def lab_of(experiment: str) -> Lab:
    """Return the lab of a notebook with its default parameters."""
    notebook = root() / "notebooks" / f"{experiment}.ipynb"
    parameters = parameters_of(read_notebook(notebook), notebook.name)
    return Lab(experiment, {name: parameter.default for name, parameter in parameters.items()})
