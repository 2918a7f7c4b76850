"""What a run recommends: the settings that its contrasts spoke about, each with its evidence.

A setting is recommended only where a primary comparison, corrected for the run's tests, shows that it
is better by more than noise. Whatever else was tried is listed with the reason why it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ollamalab.compare import Comparison
from ollamalab.report.claims import Judged, judge_run
from ollamalab.report.entries import Advice
from ollamalab.report.runs import Run
from ollamalab.report.tables import Column, Table

_ORDER = ("server", "gateway", "request", "client", "model")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One setting and what the run says of it.

    Attributes:
        advice: The setting and its value.
        pays: Whether it was shown to be better, whatever the size.
        word: The verdict of the comparison: "faster", "no difference shown (-2.1…+8.0 %)".
        evidence: The comparison in one line, with estimate, interval, n and target.
        experiment: Notebook that measured it.
        rivals: Other values of the setting that pay too, each measured by another experiment, so with
            another kind of work.
    """

    advice: Advice
    pays: bool
    word: str
    evidence: str
    experiment: str
    rivals: tuple[Recommendation, ...] = ()


def recommend(run: Run) -> list[Recommendation]:
    """Return every setting that the run measured, by part; of several values of one setting, the best.

    What pays with other work stands with it: no comparison tells which of the two is better.
    Values that were measured in contrasts without a verdict are left out: they were not declared to
    settle anything.
    """
    measured: dict[tuple[str, str], list[tuple[float, Recommendation]]] = {}
    for judged in judge_run(run):
        advice, comparison = judged.contrast.advice, judged.contrast.comparison
        if advice is None or comparison is None or comparison.verdict is None:
            continue
        found = Recommendation(
            advice=advice,
            pays=comparison.verdict.is_better is True,
            word=comparison.verdict.text,
            evidence=_evidence(judged),
            experiment=judged.experiment,
        )
        values = measured.setdefault((advice.part, advice.setting), [])
        values.append((_gain(comparison), found))
    return sorted(
        map(_chosen, measured.values()),
        key=lambda found: (not found.pays, _ORDER.index(found.advice.part), found.advice.setting),
    )


def recommendations_table(run: Run) -> Table:
    """Return what ``recommend`` finds, what pays first."""
    rows = [
        (
            found.advice.part,
            found.advice.setting,
            found.advice.value,
            "set it" if found is chosen and found.pays else "or this" if found.pays else "leave it",
            found.word,
            found.evidence,
            found.experiment,
        )
        for chosen in recommend(run)
        for found in (chosen, *chosen.rivals)
    ]
    names = ("Part", "Setting", "Value", "Advice", "Verdict", "Evidence", "Experiment")
    return Table.of(
        "recommendations",
        "Settings that this run measured",
        [Column(name=name) for name in names],
        rows,
        caption="'Set it' needs a difference beyond noise, corrected for all tests of the run; whether it is "
        "worth its cost in memory or in freshness is yours to judge. 'Or this' pays too, with work of its"
        " own experiment."
        + ("" if rows else " Nothing to show: no contrast of this run is about a setting."),
    )


def _chosen(values: Sequence[tuple[float, Recommendation]]) -> Recommendation:
    """Return the best value of a setting, with what pays in other experiments; the first of equals."""
    best, *others = (
        found for _, found in sorted(values, key=lambda value: (value[1].pays, value[0]), reverse=True)
    )
    rivals: dict[str, Recommendation] = {}
    for found in others:
        is_other = found.advice.value != best.advice.value and found.experiment != best.experiment
        if found.pays and is_other:
            rivals.setdefault(found.advice.value, found)
    return replace(best, rivals=tuple(rivals.values()))


def _evidence(judged: Judged) -> str:
    bounds = f" ({judged.bounds})" if judged.bounds else ""
    n = f", n {judged.n}" if judged.n is not None else ""
    target = f", on {judged.contrast.target}" if judged.contrast.target else ""
    return f"{judged.contrast.text}: {judged.measured or 'n/a'}{bounds}{n}{target}"


def _gain(comparison: Comparison) -> float:
    """Return how good the estimate is: more is better, comparable between values of one setting only."""
    if comparison.estimate is None:
        return float("-inf")
    return comparison.estimate if comparison.metric.better == "higher" else -comparison.estimate
