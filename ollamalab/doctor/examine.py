"""From an inventory to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ollamalab.doctor.inventory import Finding, Inventory
from ollamalab.doctor.machine import check_compiled_code, check_persistence, check_stream
from ollamalab.doctor.residency import (
    check_context,
    check_keep_alive,
    check_placement,
    check_slots,
    check_thrash,
)
from ollamalab.doctor.variables import check_known, check_readable, check_units

Rule = Callable[[Inventory], Iterator[Finding]]

#: In the order of the report: what costs most comes first.
RULES: tuple[Rule, ...] = (
    check_placement,
    check_stream,
    check_thrash,
    check_keep_alive,
    check_slots,
    check_context,
    check_units,
    check_readable,
    check_known,
    check_compiled_code,
    check_persistence,
)


def examine(inventory: Inventory) -> tuple[Finding, ...]:
    """Return what ought to be otherwise; pure."""
    return tuple(finding for rule in RULES for finding in rule(inventory))
