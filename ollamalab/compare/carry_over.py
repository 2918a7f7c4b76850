"""Whether a visit depends on the visit before it.

In a block ABBA or BAAB the two middle visits are of one arm: the first of them comes after the other arm,
the second after its own. Two contrasts of these, one value per block, tell both kinds of carry-over:

- *own*: after its own arm / after the other. Something stays warm (or worn) for the next visit of
  the same arm. Drift between neighbouring visits shows here too.
- *previous*: after the arm / after the baseline, whichever arm is visited. One arm leaves something behind
  that speeds up or slows down whoever comes next; this biases the mean pair by a quarter of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ollamalab.compare.correction import holm
from ollamalab.compare.design import Visit
from ollamalab.compare.estimate import Estimate, hodges_lehmann
from ollamalab.compare.verdict import LEAST_PAIRS, LEVEL


@dataclass(frozen=True, kw_only=True, slots=True)
class CarryOver:
    """How visits depend on the one before; the estimates are natural logarithms of ratios.

    Attributes:
        own: After its own arm / after the other.
        previous: After the arm / after the baseline.
        is_shown: Whether either differs from 1 (Holm over the two), so that a washout visit is due;
            None with fewer than 8 blocks.
    """

    own: Estimate
    previous: Estimate
    is_shown: bool | None


def carry_over(values: Mapping[Visit, float | None], *, arm: str, baseline: str) -> CarryOver:
    """Return how the visits of a two-arm design depend on the one before.

    Args:
        values: One positive value per visit; blocks whose middle lacks one are left out. With more than
            two arms no visit follows its own arm, and there are no blocks to count.
        arm: Name of the arm.
        baseline: Name of the baseline.
    """
    blocks: dict[int, list[Visit]] = {}
    for visit in sorted(values, key=lambda visit: visit.index):
        blocks.setdefault(visit.block, []).append(visit)
    own: list[float] = []
    previous: list[float] = []
    for block in blocks.values():
        names = [visit.arm for visit in block]
        if names not in ([arm, baseline, baseline, arm], [baseline, arm, arm, baseline]):
            continue
        after_other, after_own = values[block[1]], values[block[2]]
        if after_other is None or after_own is None or after_other <= 0 or after_own <= 0:
            continue
        change = math.log(after_own) - math.log(after_other)
        own.append(change)
        previous.append(change if names[1] == arm else -change)
    estimates = hodges_lehmann(own), hodges_lehmann(previous)
    p_values = [estimate.p_value for estimate in estimates if estimate.p_value is not None]
    is_shown = min(holm(p_values)) <= LEVEL if len(own) >= LEAST_PAIRS else None
    return CarryOver(own=estimates[0], previous=estimates[1], is_shown=is_shown)
