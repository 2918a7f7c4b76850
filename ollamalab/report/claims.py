"""Verdicts over a whole run: its contrasts corrected together, its claims settled.

Correcting needs every primary contrast of the run, so words are given here, when the run is shown,
not where one experiment is saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ollamalab.claims import CLAIMS, Claim
from ollamalab.compare import (
    ClaimVerdict,
    ClaimWord,
    Comparison,
    correct,
    correction_note,
    settle,
    settle_direction,
)
from ollamalab.report.entries import Contrast
from ollamalab.report.runs import Run
from ollamalab.report.tables import Column, Table, interval_text, number_text

_FACTOR = ".2f"
_SMALL = 0.095


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One contrast with its word.

    Attributes:
        contrast: Its comparison is corrected for the run's tests.
        experiment: Notebook that saved it.
        claim: The published claim that it settles; None for none.
        word: Of the claim, or of the comparison; "" for a secondary row, which gets none.
        reason: What the word rests on, one line.
    """

    contrast: Contrast
    experiment: str
    claim: Claim | None
    word: str
    reason: str

    @property
    def n(self) -> int | None:
        """Pairs of the comparison, or observations."""
        return self.contrast.comparison.pairs if self.contrast.comparison else self.contrast.n

    @property
    def measured(self) -> str:
        """The estimate, "0.22×" or "+4.4 points"; "" if nothing was measured in numbers."""
        comparison = self.contrast.comparison
        if comparison is None or comparison.estimate is None:
            return ""
        if comparison.metric.kind == "difference":
            return f"{number_text(100 * comparison.estimate, '+.1f')} points"
        return f"{comparison.estimate:{_factor(comparison.estimate)}}×"

    @property
    def bounds(self) -> str:
        """The 95 % interval, "0.19–0.26"; "" if there is none."""
        comparison = self.contrast.comparison
        if comparison is None or comparison.low is None or comparison.high is None:
            return ""
        if comparison.metric.kind == "difference":
            return interval_text(100 * comparison.low, 100 * comparison.high, "+.1f")
        return interval_text(comparison.low, comparison.high, _factor(comparison.low))


def _factor(least: float) -> str:
    """Return how ratios from here on are written: a cache's 0.003× would be 0.00× otherwise."""
    return _FACTOR if least >= _SMALL else ".2g"


def judge_run(run: Run) -> list[Judged]:
    """Return every contrast of a run with its word: claims first and in order, then the others."""
    found = [
        (contrast, experiment.name)
        for experiment in run.experiments.values()
        for contrast in experiment.verdicts
    ]
    comparisons = iter(correct([contrast.comparison for contrast, _ in found if contrast.comparison]))
    judged = [
        _judge(replace(contrast, comparison=next(comparisons)) if contrast.comparison else contrast, name)
        for contrast, name in found
    ]
    return sorted(judged, key=lambda entry: entry.claim.id if entry.claim else "~")


def correction(judged: Iterable[Judged]) -> str:
    """Return the footnote on how many tests were made; "" if none was."""
    comparisons = [entry.contrast.comparison for entry in judged if entry.contrast.comparison]
    tested = any(comparison.adjusted_p_value is not None for comparison in comparisons)
    return correction_note(comparisons) if tested else ""


def count_words(judged: Iterable[Judged]) -> dict[str, int]:
    """Return how many claims got each word that any got, in the order of ``ClaimWord``."""
    counts = Counter(entry.word for entry in judged if entry.claim)
    return {str(word): counts[word] for word in ClaimWord if counts[word]}


def published(claim: Claim) -> str:
    """Return the published ratio, "≤ 0.16×"; "" if no number was given."""
    low, high = claim.low, claim.high
    if low is None or high is None:
        return ""
    if claim.at_least:
        return f"≤ {high:{_FACTOR}}×" if high < 1 else f"≥ {low:{_FACTOR}}×"
    return f"{low:{_FACTOR}}×" if low == high else f"{low:{_FACTOR}}–{high:{_FACTOR}}×"


def claims_table(run: Run) -> Table:
    """Return every published claim as one table, those that the run did not measure included.

    A claim of two halves that were settled apart has two rows.
    """
    judged = judge_run(run)
    rows = []
    for claim in CLAIMS.values():
        entries: list[Judged | None] = [entry for entry in judged if entry.claim is claim]
        for entry in entries or [None]:
            measured = f"{entry.measured} ({entry.bounds})" if entry and entry.bounds else None
            rows.append(
                (
                    claim.id,
                    claim.text,
                    published(claim) or None,
                    measured,
                    entry.n if entry else None,
                    entry.contrast.target if entry else None,
                    entry.word if entry else "not in this run",
                    entry.reason if entry else "",
                )
            )
    names = ("Claim", "What was published", "Published", "Measured", "n", "Target", "Verdict", "Why")
    note = correction(judged)
    return Table.of(
        "claims",
        "Published claims and what was measured here",
        [Column(name=name) for name in names],
        rows,
        caption="Ratios are after / before, with 95 % intervals." + (f" {note}." if note else ""),
    )


def _judge(contrast: Contrast, experiment: str) -> Judged:
    claim = CLAIMS.get(contrast.claim)
    if contrast.observed:
        verdict = contrast.observed
    elif claim and contrast.comparison:
        verdict = _settle(contrast.comparison, claim, contrast)
    else:
        return Judged(contrast=contrast, experiment=experiment, claim=claim, **_own_word(contrast.comparison))
    return Judged(
        contrast=contrast, experiment=experiment, claim=claim, word=str(verdict.word), reason=verdict.reason
    )


def _settle(comparison: Comparison, claim: Claim, contrast: Contrast) -> ClaimVerdict:
    """Return what a comparison makes of a claim; one without a number claims a direction."""
    if claim.low is not None and claim.high is not None:
        return settle(comparison, low=claim.low, high=claim.high, at_least=claim.at_least)
    if contrast.claimed is None:
        raise ValueError(f"{claim.id} has no number, and the contrast does not say which direction it claims")
    return settle_direction(comparison, contrast.claimed)


def _own_word(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None or comparison.verdict is None:
        return {"word": "", "reason": comparison.reason if comparison else ""}
    return {"word": comparison.verdict.text, "reason": ""}
