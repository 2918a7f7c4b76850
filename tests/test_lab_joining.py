"""Ways of putting an answer together: all give the same text, and their costs are told in pairs."""

from __future__ import annotations

from ollamalab.lab import joining_table
from ollamalab.lab.joining import _JOINERS, compare_joining


def test_every_way_gives_the_same_text() -> None:
    pieces = ["The ", "sea", "", " is ", "深い", "."]
    assert {join(pieces) for join in _JOINERS.values()} == {"The sea is 深い."}


def test_adding_is_set_against_joining_in_every_round() -> None:
    found = compare_joining(32, rounds=6)
    assert {item.baseline for item in found} == {"list and join"}
    assert [item.pairs for item in found] == [6, 6]
    assert all(item.arm_value and item.baseline_value and item.estimate for item in found)


def test_the_table_has_a_row_per_size_and_way() -> None:
    rows = joining_table([8, 16]).rows
    assert [row[0] for row in rows] == [8, 8, 16, 16]
