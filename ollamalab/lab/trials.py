"""Running a comparison: who is visited when, and what its records say.

A *visitor* carries out one visit of an arm: one request, or one short load. ``run_visits`` calls the
visitors in the order of the design and labels what comes back.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from ollamalab.compare import CarryOver, Comparison, Metric, Visit, carry_over, compare_arms, visit_values
from ollamalab.metrics import completed
from ollamalab.records import RequestRecord

Visitor = Callable[[Visit], Awaitable[Iterable[RequestRecord]]]

#: One value of a visit's records; None where they have none.
Statistic = Callable[[Sequence[RequestRecord]], float | None]


def mean_of(metric: Callable[[RequestRecord], float | None]) -> Statistic:
    """Return the statistic "mean over the completed requests" of a metric of one request."""

    def mean(records: Sequence[RequestRecord]) -> float | None:
        values = [value for value in map(metric, completed(records)) if value is not None]
        return fmean(values) if values else None

    return mean


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What a comparison measured.

    Attributes:
        arms: Names; the first is the baseline.
        records: Of every visit, labelled with arm, block and visit.
        not_run: Arms that the target could not carry, with the reason.
    """

    arms: tuple[str, ...]
    records: tuple[RequestRecord, ...]
    not_run: Mapping[str, str] = field(default_factory=dict)

    def of(self, arm: str) -> list[RequestRecord]:
        """Return the records of one arm, in order."""
        return [record for record in self.records if record.arm == arm]

    def per_visit(self, arm: str, statistic: Statistic) -> list[float]:
        """Return a statistic of each visit of an arm that has it, in order."""
        values = visit_values(self.of(arm), statistic)
        return [value for value in values.values() if value is not None]

    def contrast(
        self,
        metric: Metric,
        statistic: Statistic,
        *,
        arm: str,
        baseline: str | None = None,
        is_primary: bool = False,
    ) -> Comparison:
        """Return one arm against another; without numbers, and with the reason, if one was not run.

        Args:
            metric: What is compared.
            statistic: Its value in one visit.
            arm: Name of the arm.
            baseline: What it is set against; None for the first arm of the design.
            is_primary: Whether it was declared beforehand to settle a question; only then it gets a
                verdict.
        """
        values = visit_values(self.records, statistic)
        baseline = baseline or self.arms[0]
        found = compare_arms(values, metric, arm=arm, baseline=baseline, is_primary=is_primary)
        missing = self.not_run.get(arm)
        if missing is None and baseline in self.not_run:
            # Named: the row is the other arm's, which was run.
            missing = f"{baseline} ({self.not_run[baseline]})"
        return replace(found, reason=not_run_text(missing)) if missing else found

    def carry_over(self, statistic: Statistic, *, arm: str, baseline: str) -> CarryOver:
        """Return how the visits of two arms depend on the visit before."""
        return carry_over(visit_values(self.records, statistic), arm=arm, baseline=baseline)


def not_run_text(reason: str) -> str:
    """Return what stands where an arm's numbers would."""
    return f"not run: {reason}"


def best_arm(trials: Trials, statistic: Statistic, *, among: Sequence[str]) -> str:
    """Return the arm whose visits have the lowest mean of a statistic, such as a response time.

    Args:
        trials: What was measured.
        statistic: Its value in one visit; an arm without any is last.
        among: Arms to choose from, at least one.
    """

    def mean(arm: str) -> float:
        known = trials.per_visit(arm, statistic)
        return fmean(known) if known else math.inf

    return min(among, key=mean)


async def run_visits(
    visitors: Mapping[str, Visitor], visits: Iterable[Visit], *, not_run: Mapping[str, str] | None = None
) -> Trials:
    """Carry out a design and return what was measured.

    Args:
        visitors: Arm to what its visit does; the first is the baseline.
        visits: In order, from ``compare.design``.
        not_run: Arms that the target cannot carry, with the reason.
    """
    records: list[RequestRecord] = []
    for visit in visits:
        seen = await visitors[visit.arm](visit)
        records += [replace(record, arm=visit.arm, block=visit.block, visit=visit.index) for record in seen]
    return Trials(arms=tuple(visitors), records=tuple(records), not_run=dict(not_run or {}))
