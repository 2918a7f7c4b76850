"""What each way of retrying does with a server that refuses by a plan, counted where attempts arrive."""

from __future__ import annotations

import pytest

from ollamalab.lab import retries
from ollamalab.lab.retries import CLUSTER, FOR_POST, NO_RETRY, PUBLISHED, Retried

REQUESTS = 12


@pytest.fixture(scope="module")
async def tried() -> dict[tuple[str, str], Retried]:
    """Every way, by trouble and name."""
    found = await retries.try_retries(requests=REQUESTS, busy_ratio=0.5, pause_s=0.001, seed=3)
    return {(one.trouble, one.way): one for one in found}


async def test_without_retries_each_request_is_one_attempt(tried: dict[tuple[str, str], Retried]) -> None:
    some, none = tried["50% busy", NO_RETRY], tried["all busy", NO_RETRY]
    assert (some.attempts, none.attempts) == (REQUESTS, REQUESTS)
    assert 0 < some.ok < REQUESTS
    assert (none.ok, none.mean_s) == (0, None)


async def test_the_published_adapter_never_sends_a_generation_again(
    tried: dict[tuple[str, str], Retried],
) -> None:
    """urllib3 repeats GET and the like, and a generation is a POST."""
    for trouble in ("50% busy", "all busy"):
        published, without = tried[trouble, PUBLISHED], tried[trouble, NO_RETRY]
        assert published.not_run is None
        assert (published.ok, published.attempts) == (without.ok, without.attempts)
    assert "24 attempts for 24 generations" in retries.retries_sentence(tried.values())


async def test_retries_of_posts_rescue_some_and_ask_a_dead_server_four_times(
    tried: dict[tuple[str, str], Retried],
) -> None:
    some, none = tried["50% busy", FOR_POST], tried["all busy", FOR_POST]
    assert some.ok > tried["50% busy", NO_RETRY].ok
    assert some.attempts > REQUESTS
    assert (none.ok, none.attempts) == (0, 4 * REQUESTS)


async def test_a_second_server_answers_what_the_first_refuses(tried: dict[tuple[str, str], Retried]) -> None:
    for trouble in ("50% busy", "all busy"):
        assert tried[trouble, CLUSTER].ok == REQUESTS
        assert tried[trouble, CLUSTER].attempts < 2 * REQUESTS


def test_what_was_not_run_says_so_in_table_and_sentence() -> None:
    missing = Retried(trouble="t", way=PUBLISHED, offered=3, not_run="no requests")
    row = retries.retries_table([missing], pause_s=0.1).rows[0]
    assert row[2:5] == (None,) * 3
    assert row[-1] == "not run: no requests"
    assert retries.retries_sentence([missing]) == "S4's retry adapter: not run: no requests."
