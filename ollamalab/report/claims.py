"""The claims of a run: each published one beside what was measured here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ollamalab.claims import CLAIMS, Claim
from ollamalab.report.entries import Verdict
from ollamalab.report.runs import Run
from ollamalab.report.tables import Column, Table, interval_text

#: Shown for a claim whose experiment is not in the run, or failed before it came to a verdict.
NOT_MEASURED = "not in this run"

_FACTOR = ".2f"


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One claim and how it fared.

    Attributes:
        claim: As published.
        verdict: As measured; None if this run has none.
        experiment: Notebook that saved the verdict, else the one that would.
    """

    claim: Claim
    verdict: Verdict | None
    experiment: str

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return self.verdict.word if self.verdict else NOT_MEASURED

    @property
    def published(self) -> str:
        """The published ratio, "≤ 0.16×"; "" if no number was given."""
        low, high = self.claim.low, self.claim.high
        if low is None or high is None:
            return ""
        if self.claim.at_least:
            return f"≤ {high:{_FACTOR}}×" if high < 1 else f"≥ {low:{_FACTOR}}×"
        return f"{low:{_FACTOR}}×" if low == high else f"{low:{_FACTOR}}–{high:{_FACTOR}}×"


def claim_rows(run: Run) -> list[ClaimRow]:
    """Return every published claim, in order, with the verdict that this run came to."""
    found = {
        verdict.claim: (verdict, experiment.name)
        for experiment in run.experiments.values()
        for verdict in experiment.verdicts
        if verdict.claim
    }
    rows = []
    for claim in CLAIMS.values():
        verdict, experiment = found.get(claim.id, (None, claim.experiment))
        rows.append(ClaimRow(claim=claim, verdict=verdict, experiment=experiment))
    return rows


def count_words(rows: list[ClaimRow]) -> dict[str, int]:
    """Return how many claims got each verdict, the most telling words first."""
    order = ["confirmed", "direction only", "refuted", "not settled", "not testable here", NOT_MEASURED]
    counts = Counter(row.word for row in rows)
    return {word: counts[word] for word in [*order, *(set(counts) - set(order))] if counts[word]}


def measured_text(verdict: Verdict) -> str:
    """Return the estimate, "0.22×" or "+4.4 points"; "" if nothing was measured in numbers."""
    if verdict.estimate is None:
        return ""
    if verdict.kind == "difference":
        return f"{100 * verdict.estimate:+.1f} points".replace("-", "−")
    return f"{verdict.estimate:{_FACTOR}}×"


def bounds_text(verdict: Verdict) -> str:
    """Return the 95 % interval, "0.19–0.26"; "" if there is none."""
    if verdict.low is None or verdict.high is None:
        return ""
    if verdict.kind == "difference":
        return interval_text(100 * verdict.low, 100 * verdict.high, "+.1f")
    return interval_text(verdict.low, verdict.high, _FACTOR)


def claims_table(run: Run) -> Table:
    """Return the claims of a run as one table."""
    rows = []
    for row in claim_rows(run):
        verdict = row.verdict
        measured = " ".join(
            part for part in (measured_text(verdict), f"({bounds_text(verdict)})") if part.strip("()")
        ) if verdict else ""  # fmt: skip
        rows.append(
            (
                row.claim.id,
                row.claim.text,
                row.published or None,
                measured or None,
                verdict.n if verdict else None,
                verdict.target if verdict else "",
                row.word,
                verdict.reason if verdict else "",
            )
        )
    names = ("Claim", "", "Published", "Measured", "n", "Target", "Verdict", "Why")
    return Table.of(
        "claims",
        "Published claims and what was measured here",
        [Column(name=name) for name in names],
        rows,
        caption="Ratios are after / before, with 95 % intervals.",
    )
