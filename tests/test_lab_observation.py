"""Facts are settled by what was seen, and only where it can tell."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from lab_samples import done

from ollamalab import lab
from ollamalab.lab import Trials


def server(slots: int | None) -> Any:
    """Return a subject of which only the number of slots is looked at."""
    return SimpleNamespace(slots=slots, target=SimpleNamespace(url="http://127.0.0.1:1"))


def two_requests(*, overlap: bool) -> Trials:
    """Return one visit of two requests that decode together, or one after the other."""
    first = done("a", visit=0, block=0)
    start_s = 0.5 if overlap else 1.5
    second = replace(first, first_token_s=1 + start_s, last_token_s=2 + start_s, end_s=2 + start_s)
    return Trials(arms=("a",), records=(first, second))


@pytest.mark.parametrize(
    ("overlap", "slots", "holds"),
    [(True, 4, False), (True, None, False), (False, 4, True), (False, 1, None), (False, None, None)],
)
def test_requests_are_serial_only_where_several_slots_never_decode_together(
    overlap: bool, slots: int | None, holds: bool | None
) -> None:
    """One slot decodes one sequence whatever the setting means."""
    seen = lab.observe_decoding(two_requests(overlap=overlap), {"a": server(slots)}, [])
    assert seen.holds is holds
    assert seen.n == 2
    assert f"a: {2 if overlap else 1}" in seen.evidence


async def test_what_cannot_be_tried_is_not_settled() -> None:
    seen = await lab.observe_pings(None, every_s=1.0, pings=2, not_run="not ours")
    assert (seen.holds, seen.evidence, seen.n) == (None, "not ours", 0)
