"""Energy from a counter that is renewed now and then: laws, and when there is none."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ollamalab.metrics.energy import (
    REFRESHES,
    CounterReading,
    counter_refresh_s,
    gpus_energy,
    idle_power_w,
    load_energy,
    most_in_flight,
    window_energy,
)
from ollamalab.records import Outcome, RequestRecord, Sample


def readings(
    *, power_w: float = 300.0, refresh_s: float = 0.05, every_s: float = 0.05, until_s: float = 60.0
) -> list[CounterReading]:
    """Return what is read of a counter at constant power; it stands still between refreshes."""
    count = math.ceil(until_s / every_s)
    moments = [n * every_s for n in range(count + 1)]
    return [(at_s, 5e6 + power_w * refresh_s * math.floor(at_s / refresh_s + 1e-9)) for at_s in moments]


def samples(counter: list[CounterReading], source: str = "gpu0") -> list[Sample]:
    return [Sample(at_s=at_s, source=source, values={"energy_j": joules}) for at_s, joules in counter]


def record(sent_s: float, end_s: float, *, tokens: int = 100, outcome: Outcome = Outcome.OK) -> RequestRecord:
    return RequestRecord(
        index=0,
        target="http://here",
        model="m",
        outcome=outcome,
        intended_s=sent_s,
        sent_s=sent_s,
        end_s=end_s,
        output_tokens=tokens,
    )


@given(
    power_w=st.floats(20, 1000),
    refresh_s=st.floats(0.02, 0.1),
    every_s=st.floats(0.02, 0.25),
    start_s=st.floats(0.5, 5),
    length=st.floats(1.0, 2.0),
)
def test_energy_of_a_constant_signal_is_power_times_time(
    power_w: float, refresh_s: float, every_s: float, start_s: float, length: float
) -> None:
    """Within 1 %, whatever the counter's refresh and the sampler's interval: hence the 200 refreshes."""
    needed_s = max(10.0, REFRESHES * 2 * (refresh_s + every_s))
    end_s = start_s + needed_s * length
    counter = readings(power_w=power_w, refresh_s=refresh_s, every_s=every_s, until_s=end_s + 1)
    found = window_energy(counter, start_s, end_s)
    assert found.reason is None
    assert found.energy_j == pytest.approx(power_w * (end_s - start_s), rel=0.01)
    assert found.mean_w == pytest.approx(power_w, rel=0.01)


@given(middle_s=st.floats(12, 48))
def test_energies_of_adjoining_windows_add_up(middle_s: float) -> None:
    counter = readings(refresh_s=0.02, every_s=0.02)
    whole, first, second = (
        window_energy(counter, *window) for window in ((1.0, 59.0), (1.0, middle_s), (middle_s, 59.0))
    )
    assume(first.energy_j is not None and second.energy_j is not None)
    assert first.energy_j + second.energy_j == pytest.approx(whole.energy_j)  # type: ignore[operator]


@given(shift_s=st.floats(-1e5, 1e5))
def test_neither_the_clocks_origin_nor_the_counters_matters(shift_s: float) -> None:
    counter = readings()
    moved = [(at_s + shift_s, joules + 7e5) for at_s, joules in counter]
    here, there = window_energy(counter, 2.0, 50.0), window_energy(moved, 2.0 + shift_s, 50.0 + shift_s)
    assert here.energy_j == pytest.approx(there.energy_j, rel=1e-6)


@given(
    refresh_s=st.floats(0.02, 0.1),
    every_s=st.floats(0.02, 0.1),
    window_s=st.floats(0.5, 40),
)
def test_a_window_that_the_counter_cannot_carry_has_no_energy(
    refresh_s: float, every_s: float, window_s: float
) -> None:
    found = window_energy(readings(refresh_s=refresh_s, every_s=every_s), 1.0, 1.0 + window_s)
    assert (found.energy_j is None) == (found.reason is not None)
    assert found.refresh_s is not None
    assert found.refresh_s >= 0.95 * max(every_s, refresh_s) / 2
    if window_s < max(10.0, REFRESHES * found.refresh_s):
        assert found.energy_j is None


def test_the_reason_names_what_is_needed() -> None:
    found = window_energy(readings(refresh_s=0.1, every_s=0.1), 1.0, 13.0)
    assert found.reason == "12.0 s are too short: an energy counter that moves every 100 ms needs 20 s"


@pytest.mark.parametrize(
    ("counter", "reason"),
    [
        ([], "the energy counter was not read over the whole window"),
        (readings(until_s=30), "the energy counter was not read over the whole window"),
        ([(0.0, 5.0), (60.0, 5.0)], "the energy counter hardly moved"),
        ([*readings(until_s=30), (31.0, 3.0), (60.0, 4.0)], "the energy counter fell"),
    ],
)
def test_a_counter_that_cannot_be_trusted_has_no_energy(counter: list[CounterReading], reason: str) -> None:
    found = window_energy(counter, 1.0, 50.0)
    assert found.energy_j is None
    assert found.mean_w is None
    assert found.reason is not None
    assert found.reason.startswith(reason)


def test_readings_that_are_far_apart_at_an_end_need_a_longer_window() -> None:
    """A scrape every 5 s knows nothing of what happened in between."""
    counter = [one for one in readings(until_s=100) if not 49 < one[0] < 54]
    assert "too short" in (window_energy(counter, 1.0, 50.0).reason or "")
    assert window_energy(counter, 1.0, 90.0).reason is None


def test_the_refresh_is_what_was_seen() -> None:
    assert counter_refresh_s(readings(refresh_s=0.1, every_s=0.02)) == pytest.approx(0.1)
    assert counter_refresh_s(readings(refresh_s=0.02, every_s=0.25)) == pytest.approx(0.25)
    assert counter_refresh_s([]) is None


def test_gpus_are_added_up_and_one_that_cannot_tell_spoils_it() -> None:
    both = samples(readings(power_w=300)) + samples(readings(power_w=100), "gpu1")
    assert gpus_energy(both, 5.0, 55.0).energy_j == pytest.approx(400 * 50, rel=0.01)
    short = samples(readings(power_w=300)) + samples(readings(until_s=20), "gpu1")
    found = gpus_energy(short, 5.0, 55.0)
    assert found.energy_j is None
    assert found.reason == "gpu1: the energy counter was not read over the whole window"
    none = [Sample(at_s=1.0, source="host", values={"energy_j": 3.0})]
    assert gpus_energy(none, 5.0, 55.0).reason == "no GPU with an energy counter was sampled"


def test_a_token_costs_the_whole_windows_energy_failures_included() -> None:
    counter = samples(readings(power_w=300))
    done = [record(5.0, 30.0), record(30.0, 54.0)]
    found = load_energy(counter, [*done, record(54.0, 55.0, tokens=7, outcome=Outcome.TRUNCATED)], idle_w=100)
    assert found.per_token_j == pytest.approx(300 * 50 / 200, rel=0.01)
    assert found.above_idle_per_token_j == pytest.approx(200 * 50 / 200, rel=0.01)
    assert found.per_request_j == pytest.approx(300 * 50 / 2, rel=0.01)
    assert (found.tokens, found.failed_tokens, found.reasons) == (200, 7, ())


def test_requests_in_a_batch_have_no_energy_of_their_own() -> None:
    found = load_energy(samples(readings()), [record(5.0, 40.0), record(6.0, 55.0)])
    assert found.per_request_j is None
    assert found.per_token_j is not None
    assert found.above_idle_per_token_j is None
    assert found.reasons == (
        "no energy of a request: 2 were in flight at once",
        "nothing above idle: what the GPUs draw when idle was not measured",
    )


def test_without_requests_or_samples_there_are_reasons() -> None:
    assert load_energy([], []).reasons[0] == "no request was sent"
    assert load_energy([], [record(5.0, 40.0)]).reasons[0] == "no GPU with an energy counter was sampled"


def test_idling_is_measured_over_half_a_minute() -> None:
    counter = samples(readings(power_w=80))
    assert idle_power_w(counter, 5.0, 40.0) == (pytest.approx(80, rel=0.01), None)
    watts, reason = idle_power_w(counter, 5.0, 25.0)
    assert watts is None
    assert reason is not None
    assert "too short" in reason


def test_requests_that_follow_each_other_are_one_at_a_time() -> None:
    assert most_in_flight([record(1.0, 2.0), record(2.0, 3.0)]) == 1
    assert most_in_flight([record(1.0, 3.0), record(2.0, 4.0), record(2.5, 2.6)]) == 3
    assert most_in_flight([]) == 0
