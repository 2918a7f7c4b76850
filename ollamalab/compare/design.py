"""Which arm is visited when, and which visits are set against each other.

A *visit* is one request or one short load under one arm. Visits come in *blocks*; those of one block see
the same prompts (with different nonces), the same arrivals and the same output length. The first arm is
the *baseline*. A *pair* is one visit of an arm and one of the baseline in the same block.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ollamalab.errors import SettingsError
from ollamalab.records import RequestRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One visit of the design.

    Attributes:
        index: Position in the whole design, from 0.
        block: Its block, from 0.
        arm: Name of the arm.
    """

    index: int
    block: int
    arm: str


def design(arms: Sequence[str], blocks: int, rng: random.Random) -> tuple[Visit, ...]:
    """Return the visits of a comparison, in order.

    Two arms: blocks of four, ABBA or BAAB drawn for each block; a fixed order would beat with periodic
    noise. More arms: each once per block, in an order drawn for each block. Two arms give two pairs a
    block, more arms one pair per arm.

    Args:
        arms: Names; the first is the baseline.
        blocks: How many, fixed beforehand; at least 1.
        rng: Draws the orders.

    Raises:
        SettingsError: Fewer than two arms, a name twice, or no block.
    """
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise SettingsError(f"a comparison needs two or more different arms, got {', '.join(arms) or 'none'}")
    if blocks < 1:
        raise SettingsError(f"blocks must be 1 or more, got {blocks!r}")
    order: list[tuple[int, str]] = []
    for block in range(blocks):
        drawn = rng.sample(arms, len(arms))
        order += [(block, arm) for arm in (drawn if len(arms) > 2 else [*drawn, *reversed(drawn)])]
    return tuple(Visit(index=index, block=block, arm=arm) for index, (block, arm) in enumerate(order))


def blocks_for_pairs(pairs: int, arms: int) -> int:
    """Return how many blocks give every arm at least so many pairs."""
    return -(-pairs // 2) if arms == 2 else pairs


def visit_values(
    records: Iterable[RequestRecord], statistic: Callable[[Sequence[RequestRecord]], float | None]
) -> dict[Visit, float | None]:
    """Return one value per visit of a design, in order.

    Args:
        records: Of all arms; warm-up and records outside a design are left out.
        statistic: The value of one visit's records, such as a mean over requests or tokens per second;
            None where the visit has none, for example because nothing completed.
    """
    groups: defaultdict[tuple[int, int, str], list[RequestRecord]] = defaultdict(list)
    for record in records:
        if record.visit is not None and record.block is not None and not record.warmup:
            groups[record.visit, record.block, record.arm].append(record)
    return {
        Visit(index=index, block=block, arm=arm): statistic(group)
        for (index, block, arm), group in sorted(groups.items(), key=lambda item: item[0])
    }


def pairs(
    values: Mapping[Visit, float | None], *, arm: str, baseline: str
) -> list[tuple[float | None, float | None]]:
    """Return the value of an arm and that of the baseline for every pair, in order.

    Within a block the first visit of the arm meets the first of the baseline, the second the second:
    in ABBA and BAAB these are neighbours. A visit without its counterpart (a run that was cut off)
    makes no pair.
    """
    blocks: defaultdict[int, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for visit in sorted(values, key=lambda visit: visit.index):
        blocks[visit.block][visit.arm].append(values[visit])
    return [
        pair for _, block in sorted(blocks.items()) for pair in zip(block[arm], block[baseline], strict=False)
    ]
