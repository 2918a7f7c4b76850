"""Many tests in one run: how many of the differences named may be false.

*Benjamini-Hochberg* keeps the expected share of false ones among those named at 5 %; *Holm* keeps the
chance of even one at 5 %. Both are given as adjusted p-values, to be set against 5 % like a single one.
Sources: Benjamini and Hochberg (1995), Holm (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from ollamalab.compare.verdict import LEVEL, Comparison, judge


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the false discovery rate, in the order given."""
    m = len(p_values)
    order = sorted(range(m), key=lambda index: p_values[index], reverse=True)
    raised = (p_values[index] * m / (m - place) for place, index in enumerate(order))
    return _in_place(order, accumulate(raised, min, initial=1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the chance of any false difference, in the order given."""
    m = len(p_values)
    order = sorted(range(m), key=lambda index: p_values[index])
    raised = (min(1.0, p_values[index] * (m - place)) for place, index in enumerate(order))
    return _in_place(order, accumulate(raised, max, initial=0.0))


def _in_place(order: list[int], adjusted: accumulate[float]) -> list[float]:
    result = [0.0] * len(order)
    next(adjusted)  # the initial bound belongs to no test
    for index, value in zip(order, adjusted, strict=True):
        result[index] = value
    return result


def correct(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Return the comparisons of a run with verdicts that stand after Benjamini-Hochberg.

    The tests are the primary comparisons that have a verdict; the others come back as they are. The
    intervals stay those of the single comparison.

    Args:
        comparisons: All of one run, corrected together and once.
    """
    tested = {
        index: comparison.p_value
        for index, comparison in enumerate(comparisons)
        if comparison.verdict is not None and comparison.p_value is not None
    }
    adjusted = benjamini_hochberg(list(tested.values()))
    corrected = list(comparisons)
    for index, p_value in zip(tested, adjusted, strict=True):
        comparison = comparisons[index]
        corrected[index] = replace(comparison, adjusted_p_value=p_value, verdict=judge(comparison, p_value))
    return tuple(corrected)


def correction_note(comparisons: Sequence[Comparison]) -> str:
    """Return the footnote of a table of corrected comparisons."""
    tests = sum(comparison.adjusted_p_value is not None for comparison in comparisons)
    named = sum(
        comparison.verdict is not None and comparison.verdict.direction is not None
        for comparison in comparisons
    )
    return (
        f"{tests} primary contrasts tested together (Benjamini–Hochberg), {named} differences named; "
        f"at most {100 * LEVEL:g} % of those named are expected to be false"
    )
