"""Paired, interleaved arms; intervals; verdicts. ``METHOD.md`` has the reasons for every rule.

- ``design``: which arm is visited when, and which visits are pairs
- ``estimate``: Hodges-Lehmann estimate with its exact interval
- ``verdict``: one arm against the baseline, in numbers and words
- ``correction``: many tests in one run
- ``claim``: a published claim against what was measured
- ``runs``: one run against another, which are not paired
- ``carry_over``: whether a visit depends on the one before
"""

from ollamalab.compare.carry_over import CarryOver, carry_over
from ollamalab.compare.claim import (
    ClaimVerdict,
    ClaimWord,
    not_testable,
    settle,
    settle_direction,
    settle_fact,
)
from ollamalab.compare.correction import benjamini_hochberg, correct, correction_note, holm
from ollamalab.compare.design import Visit, blocks_for_pairs, design, pairs, visit_values
from ollamalab.compare.estimate import Estimate, hodges_lehmann, signed_rank_cdf
from ollamalab.compare.verdict import LEAST_PAIRS, LEVEL, Comparison, Metric, Verdict, compare_arms, judge

__all__ = [
    "LEAST_PAIRS",
    "LEVEL",
    "CarryOver",
    "ClaimVerdict",
    "ClaimWord",
    "Comparison",
    "Estimate",
    "Metric",
    "Verdict",
    "Visit",
    "benjamini_hochberg",
    "blocks_for_pairs",
    "carry_over",
    "compare_arms",
    "correct",
    "correction_note",
    "design",
    "hodges_lehmann",
    "holm",
    "judge",
    "not_testable",
    "pairs",
    "settle",
    "settle_direction",
    "settle_fact",
    "signed_rank_cdf",
    "visit_values",
]
