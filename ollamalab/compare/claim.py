"""A published claim against what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from ollamalab.compare.verdict import Comparison


class ClaimWord(StrEnum):
    """What became of a published claim."""

    CONFIRMED = "confirmed"  #: the interval lies inside the published range
    REFUTED = "refuted"  #: the interval lies wholly outside it
    DIRECTION_ONLY = "direction only"  #: differs in the claimed direction; the amount is open
    NOT_SETTLED = "not settled"  #: the measurement cannot tell
    NOT_TESTABLE = "not testable here"  #: it could not be measured; the reason says why


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimVerdict:
    """The word and, in one line, what it rests on."""

    word: ClaimWord
    reason: str


def settle(comparison: Comparison, *, low: float, high: float, at_least: bool = False) -> ClaimVerdict:
    """Return what a measured comparison makes of a published range.

    Args:
        comparison: The claim's primary contrast, corrected for the run's tests.
        low: Lower end of the published range of the estimate: a ratio after/before, or a difference.
        high: Upper end.
        at_least: Going further than the range in the claimed direction confirms the claim too.
    """
    if comparison.verdict is None or comparison.low is None or comparison.high is None:
        return ClaimVerdict(word=ClaimWord.NOT_SETTLED, reason=comparison.reason)
    same = 1.0 if comparison.metric.kind == "ratio" else 0.0
    claimed = "lower" if high <= same else "higher" if low >= same else None
    floor = -float("inf") if at_least and claimed == "lower" else low
    ceiling = float("inf") if at_least and claimed == "higher" else high
    is_shown = claimed is None or comparison.verdict.direction == claimed
    if comparison.low > ceiling or comparison.high < floor:
        word = ClaimWord.REFUTED
        relation = "has the claimed direction but " if claimed is not None and is_shown else ""
        relation += "lies wholly outside"
    elif is_shown and floor <= comparison.low and comparison.high <= ceiling:
        word, relation = ClaimWord.CONFIRMED, "lies inside or beyond" if at_least else "lies inside"
    elif claimed is not None and is_shown:
        word, relation = ClaimWord.DIRECTION_ONLY, "has the claimed direction but overlaps the edge of"
    else:
        word, relation = ClaimWord.NOT_SETTLED, "does not settle"
    published = f"{low:.3g}" if low == high else f"{low:.3g}–{high:.3g}"
    return ClaimVerdict(word=word, reason=f"{_measured(comparison)} {relation} the published {published}")


def settle_direction(comparison: Comparison, claimed: Literal["lower", "higher"]) -> ClaimVerdict:
    """Return what a measured comparison makes of a claim that names a direction and no number."""
    if comparison.verdict is None:
        return ClaimVerdict(word=ClaimWord.NOT_SETTLED, reason=comparison.reason)
    shown, measured = comparison.verdict.direction, _measured(comparison)
    if shown is None:
        return ClaimVerdict(word=ClaimWord.NOT_SETTLED, reason=f"{measured} is not shown to be {claimed}")
    if shown == claimed:
        return ClaimVerdict(word=ClaimWord.CONFIRMED, reason=f"{measured} is {claimed}, as published")
    return ClaimVerdict(word=ClaimWord.REFUTED, reason=f"{measured} is {shown}, not {claimed} as published")


def settle_fact(*, holds: bool, evidence: str) -> ClaimVerdict:
    """Return what an observation makes of a factual claim; ``evidence`` says what was seen."""
    return ClaimVerdict(word=ClaimWord.CONFIRMED if holds else ClaimWord.REFUTED, reason=evidence)


def _measured(comparison: Comparison) -> str:
    return f"{comparison.estimate:.3g} ({comparison.low:.3g}–{comparison.high:.3g})"


def not_testable(reason: str) -> ClaimVerdict:
    """Return the verdict of a claim that could not be measured on this host."""
    return ClaimVerdict(word=ClaimWord.NOT_TESTABLE, reason=reason)
