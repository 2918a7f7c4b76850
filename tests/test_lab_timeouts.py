"""Timeouts follow from loads by arithmetic; what they were derived from is told with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab_samples import done, failed

from ollamalab.lab import Trials, timeouts
from ollamalab.lab.timeouts import FROM_LOADS, FROM_WARM, Sizing, Timeouts, derive_timeouts, rounded_up
from ollamalab.records import RequestRecord

LONG = done(sent_s=0.0, first_s=2.0, last_s=2.5, end_s=2.5)


def sizing(
    *,
    loads_s: tuple[float, ...] = (4.0, 5.0),
    disk: tuple[float, ...] = (),
    long: RequestRecord | None = LONG,
) -> Sizing:
    return Sizing(model="m:7b", size_bytes=4.7e9, loads_s=loads_s, disk_loads_s=disk, long=long)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0, 1.0), (1.0, 1.0), (1.01, 1.5), (2.0, 2.0), (4.2, 5.0), (7.5, 10.0), (31.0, 50.0), (101.0, 150.0)],
)
def test_a_timeout_is_a_round_number_that_is_not_less(seconds: float, expected: float) -> None:
    assert rounded_up(seconds) == expected


@given(st.floats(min_value=0.0, max_value=1e6))
def test_rounding_up_takes_nothing_away_and_never_doubles(seconds: float) -> None:
    wanted = max(seconds, 1.0)
    assert wanted * (1 - 1e-6) <= rounded_up(seconds) < 2 * wanted
    assert rounded_up(rounded_up(seconds)) == rounded_up(seconds)


def test_each_timeout_has_its_own_cause() -> None:
    """Connecting: two more SYNs. Between bytes: somebody else's long prompt. The first byte: a load, too."""
    found = derive_timeouts(connecting_s=0.001, load_s=10.0, first_token_s=1.5, token_s=0.1)
    assert found == Timeouts(connect_s=4.0, first_byte_s=50.0, progress_s=5.0)
    slow = derive_timeouts(connecting_s=3.0, load_s=10.0, first_token_s=1.5, token_s=0.1)
    assert slow == Timeouts(connect_s=10.0, first_byte_s=50.0, progress_s=5.0)


def test_a_load_from_disk_counts_where_it_took_longer() -> None:
    in_memory, from_disk = sizing().timeouts(0.001), sizing(disk=(40.0,)).timeouts(0.001)
    assert in_memory == Timeouts(connect_s=4.0, first_byte_s=30.0, progress_s=10.0)
    assert from_disk == Timeouts(connect_s=4.0, first_byte_s=150.0, progress_s=10.0)


def test_without_a_long_prompt_there_are_no_timeouts() -> None:
    assert sizing(long=None).timeouts(0.001) is None
    assert sizing(long=failed()).timeouts(0.001) is None
    assert timeouts.derived_for([sizing(long=None)], connecting_s=0.001) == {}
    (row,) = timeouts.timeouts_table([sizing(long=None)], connecting_s=0.001).rows
    assert row == ("m:7b", 4700.0, 4.5, None, None, None, None, None)


def test_the_settings_are_written_as_each_program_takes_them() -> None:
    text = timeouts.settings_sentence("m:7b", Timeouts(connect_s=4.0, first_byte_s=30.0, progress_s=7.0))
    assert "requests timeout=(4, 30)" in text
    assert "httpx Timeout(30, connect=4)" in text
    assert "load_timeout: 30, request_timeout: 7" in text


def test_the_naive_timeout_has_the_same_margin_over_warm_requests() -> None:
    derived = Timeouts(connect_s=4.0, first_byte_s=30.0, progress_s=7.0)
    warm = [done(end_s=0.1), done(end_s=0.2), done(end_s=9.0), failed()]
    assert timeouts.both_waits(warm, derived) == {FROM_WARM: pytest.approx(0.6), FROM_LOADS: 30.0}
    assert timeouts.both_waits(warm, None) == {}


def test_what_became_of_first_requests_is_counted_and_what_was_not_run_is_said() -> None:
    trials = Trials(
        arms=(FROM_WARM,),
        records=(failed(FROM_WARM), done(FROM_WARM)),
        not_run={FROM_LOADS: "no", "other": "x"},
    )
    table = timeouts.tried_table(trials, {FROM_WARM: 0.6})
    assert [row[0] for row in table.rows] == [FROM_WARM, FROM_LOADS]
    assert table.rows[0][1] == 0.6
    assert table.rows[0][3:] == (0, 2, "")  # refused is not given up
    assert table.rows[1][-1] == "not run: no"
