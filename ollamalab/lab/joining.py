"""Putting an answer together from its pieces: a list that is joined at the end, against ``+=``.

CPython lengthens a text in place while nothing else refers to it, so ``+=`` on a variable is cheap there; on
an attribute the object refers to it too, and every ``+=`` copies what there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ollamalab.compare import Comparison, Metric, Visit, compare_arms
from ollamalab.report import Column, Table


def _join(pieces: Sequence[str]) -> str:
    kept: list[str] = []
    for piece in pieces:
        kept.append(piece)
    return "".join(kept)


def _add_to_local(pieces: Sequence[str]) -> str:
    text = ""
    for piece in pieces:
        text += piece
    return text


class _Holder:
    text = ""


def _add_to_attribute(pieces: Sequence[str]) -> str:
    holder = _Holder()
    for piece in pieces:
        holder.text += piece
    return holder.text


_JOINERS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "list and join": _join,
    "+= on a variable": _add_to_local,
    "+= on an attribute": _add_to_attribute,
}
_TRIES = 3
_PER_PIECE = Metric(name="ns_per_piece", unit="ns", better="lower")


def _spent_ns(join: Callable[[Sequence[str]], str], answer: Sequence[str]) -> int:
    begin_ns = time.perf_counter_ns()
    join(answer)
    return time.perf_counter_ns() - begin_ns


def compare_joining(pieces: int, *, rounds: int = 25) -> list[Comparison]:
    """Return what ``+=`` costs per piece of an answer, against a list that is joined at the end.

    Args:
        pieces: Of one answer, each of six characters, as tokens have.
        rounds: Each way in turn, once per round; what counts is its quickest of a few tries, as what
            disturbs it only ever adds.
    """
    answer = [f"{number:6d}" for number in range(pieces)]
    values: dict[Visit, float | None] = {}
    for block in range(rounds):
        for arm, join in _JOINERS.items():
            spent_ns = min(_spent_ns(join, answer) for _ in range(_TRIES))
            values[Visit(index=len(values), block=block, arm=arm)] = spent_ns / pieces
    baseline, *others = _JOINERS
    return [compare_arms(values, _PER_PIECE, arm=arm, baseline=baseline, is_primary=False) for arm in others]


def joining_table(sizes: Sequence[int]) -> Table:
    """Measure ``compare_joining`` for answers of several sizes, as a table."""
    rows = []
    for size in sizes:
        for item in compare_joining(size):
            rows.append((size, item.arm, item.arm_value, item.baseline_value, item.effect, item.pairs))
    return Table.of(
        "joining",
        "Putting the pieces of an answer together",
        [
            Column(name="Pieces"),
            Column(name="Way"),
            Column(name="Cost", unit="ns/piece", format=".0f"),
            Column(name="List and join", unit="ns/piece", format=".0f"),
            Column(name="Ratio", format=".2f"),
            Column(name="n"),
        ],
        rows,
        caption="Means of n rounds, the quickest of three tries in each; Hodges–Lehmann ratio with its "
        "exact 95 % interval.",
    )
