"""One run against another: whether a metric moved by more than runs of the same conditions differ.

Two runs are not paired. What differs between them, and not within one, is the state of the machine: other
load, other clocks, other memory layout. A run's inner interval does not show it, so the margin comes from
*A/A runs*: repetitions under the same conditions, at least three. Their spread is estimated per metric, in
each experiment and over all of them, and the larger of the two counts. With fewer than three a margin is
*assumed*, and a change is named only if the inner intervals lie beyond it.

A *unit* is what a run's value is a mean of: a visit, or a request where there were none. Ratios are
compared as natural logarithms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev, variance

from ollamalab.compare.correction import holm
from ollamalab.compare.verdict import LEVEL, Metric

#: Fewer units give no value: one slow request would decide.
LEAST_UNITS = 8

#: Fewer repetitions of the same conditions cannot show how far runs differ.
LEAST_AA_RUNS = 3

#: Change that is assumed to be no more than the machine's mood, where A/A runs do not tell: on a machine
#: that others share, unpaired runs differ by that much and more.
ASSUMED_MARGIN = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is set against its counterpart in the other run."""

    experiment: str
    arm: str
    metric: Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class RunValue:
    """One metric of one arm in one run.

    Attributes:
        value: Mean of the units.
        error: Standard error of ``value`` from the units; relative to it for a ratio metric.
        units: How many.
    """

    value: float
    error: float
    units: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSpread:
    """How far runs of the same conditions differ, from A/A runs.

    Attributes:
        runs: A/A runs.
        own: Experiment and metric to the standard deviation between runs; logarithmic for ratio metrics.
        pooled: Metric to the same over all experiments.
        degrees: Metric to the degrees of freedom of ``pooled``: arms of one experiment move together,
            so that each experiment counts once.
    """

    runs: int
    own: Mapping[tuple[str, str], float]
    pooled: Mapping[str, float]
    degrees: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One metric of one arm, after against before.

    Attributes:
        cell: Which.
        before: In the first run.
        after: In the second.
        change: After / before, or after - before for a difference metric.
        margin: What ``change`` may be without meaning anything, among so many: 1.08 is 1/1.08 to 1.08, or a
            difference.
        p_value: Two-sided, of "the runs differ by no more than runs do".
        adjusted_p_value: After Holm over all changes that were compared.
        is_better: Whether it moved for the better; None if it did not move beyond the margin.
    """

    cell: Cell
    before: RunValue
    after: RunValue
    change: float
    margin: float
    p_value: float
    adjusted_p_value: float
    is_better: bool | None

    @property
    def word(self) -> str:
        """The verdict: "regression", "improvement" or "within the margin"."""
        return {True: "improvement", False: "regression", None: "within the margin"}[self.is_better]


def run_value(units: Sequence[float], metric: Metric) -> RunValue | None:
    """Return a run's value of a metric; None with too few units, or for a ratio without a positive mean.

    Args:
        units: One number per visit or request; 0 or 1 each for a share.
        metric: What they are.
    """
    n = len(units)
    if n < LEAST_UNITS:
        return None
    mean = fmean(units)
    if metric.kind == "difference":
        # Agresti and Coull: eight successes of eight do not show that nothing ever fails.
        share = (sum(units) + 2) / (n + 4)
        return RunValue(value=mean, error=math.sqrt(share * (1 - share) / (n + 4)), units=n)
    if mean <= 0:
        return None
    return RunValue(value=mean, error=stdev(units) / mean / math.sqrt(n), units=n)


def run_spread(runs: Sequence[Mapping[Cell, RunValue]]) -> RunSpread | None:
    """Return how far runs of the same conditions differ; None with fewer than three.

    Args:
        runs: The values of each; cells that not every run has are left out.
    """
    if len(runs) < LEAST_AA_RUNS:
        return None
    arms: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in runs[0]:
        if all(cell in run for run in runs):
            values = [_scaled(run[cell].value, cell.metric) for run in runs]
            arms[cell.experiment, cell.metric.name].append(variance(values))
    variances = {key: fmean(found) for key, found in arms.items()}
    by_metric: defaultdict[str, list[float]] = defaultdict(list)
    for (_, metric), found in variances.items():
        by_metric[metric].append(found)
    return RunSpread(
        runs=len(runs),
        own={key: math.sqrt(found) for key, found in variances.items()},
        pooled={metric: math.sqrt(fmean(found)) for metric, found in by_metric.items()},
        degrees={metric: (len(runs) - 1) * len(found) for metric, found in by_metric.items()},
    )


def compare_runs(
    before: Mapping[Cell, RunValue], after: Mapping[Cell, RunValue], spread: RunSpread | None
) -> tuple[Change, ...]:
    """Return every cell that both runs have, with its verdict; Holm over all of them.

    Args:
        before: Values of the first run.
        after: Values of the second.
        spread: Of A/A runs; None assumes ``ASSUMED_MARGIN``.
    """
    cells = [
        cell for cell in before if cell in after and (spread is None or cell.metric.name in spread.pooled)
    ]
    changes = [_change(cell, before[cell], after[cell], spread, len(cells)) for cell in cells]
    adjusted = holm([change.p_value for change in changes])
    return tuple(
        replace(change, adjusted_p_value=p_value, is_better=_is_better(change) if p_value <= LEVEL else None)
        for change, p_value in zip(changes, adjusted, strict=True)
    )


def _change(cell: Cell, before: RunValue, after: RunValue, spread: RunSpread | None, tests: int) -> Change:
    from scipy.stats import t

    metric = cell.metric
    moved = _scaled(after.value, metric) - _scaled(before.value, metric)
    inner = math.hypot(before.error, after.error)
    if spread is None:
        margin = math.log1p(ASSUMED_MARGIN) if metric.kind == "ratio" else metric.margin
        # Student's t with the smaller run's degrees: conservative, as the runs' variances differ.
        degrees, error, free = min(before.units, after.units) - 1, inner, margin
    else:
        between = max(
            spread.pooled[metric.name], spread.own.get((cell.experiment, metric.name), 0.0)
        ) * math.sqrt(2)
        # A/A runs that happened to agree do not make a run more exact than its own units.
        degrees, error, free = spread.degrees[metric.name], max(between, inner), 0.0
        margin = error * float(t.isf(LEVEL / tests / 2, degrees))
    beyond = max(0.0, abs(moved) - free)
    p_value = 1.0 if beyond == 0 else 0.0 if error == 0 else float(2 * t.sf(beyond / error, degrees))
    return Change(
        cell=cell,
        before=before,
        after=after,
        change=math.exp(moved) if metric.kind == "ratio" else moved,
        margin=math.exp(margin) if metric.kind == "ratio" else margin,
        p_value=p_value,
        adjusted_p_value=p_value,
        is_better=None,
    )


def _is_better(change: Change) -> bool:
    rose = change.after.value > change.before.value
    return rose == (change.cell.metric.better == "higher")


def _scaled(value: float, metric: Metric) -> float:
    return math.log(value) if metric.kind == "ratio" else value
