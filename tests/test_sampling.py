"""The beat of sampling, its bounds and its own cost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab import sampling
from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.sampling import Sampling, next_beat


class Counting:
    """Reads 0, 1, 2 ... and lets a test wait for a reading."""

    def __init__(self, source: str = "count", *, on_reading: Callable[[int], None] = lambda _: None) -> None:
        self.notes: list[str] = []
        self.source = source
        self.readings = 0
        self.on_reading = on_reading
        self._read = threading.Condition()

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        with self._read:
            value = self.readings
            self.readings += 1
            self._read.notify_all()
        self.on_reading(value)
        return {self.source: {"value": float(value)}}

    def wait_for(self, readings: int) -> None:
        with self._read:
            assert self._read.wait_for(lambda: self.readings >= readings, timeout=60)


def values(s: Sampling) -> list[float | None]:
    return [sample.values["value"] for sample in s.samples]


def test_the_beat_does_not_drift() -> None:
    """The next round is due one interval after the last *deadline*, however long the round took."""
    assert next_beat(10.0, 10.0625, 0.25) == (10.25, 0)
    assert next_beat(10.0, 10.24, 0.25) == (10.25, 0)


def test_beats_that_pass_during_a_round_are_missed_and_not_made_up_for() -> None:
    assert next_beat(10.0, 10.3, 0.25) == (10.5, 1)
    assert next_beat(10.0, 11.1, 0.25) == (11.25, 4)


@given(
    late_s=st.floats(0, 1e4),
    interval_s=st.floats(1e-3, 60),
)
def test_the_next_beat_is_ahead_by_at_most_one_interval(late_s: float, interval_s: float) -> None:
    due_s, missed = next_beat(100.0, 100.0 + late_s, interval_s)
    ahead_s = due_s - (100.0 + late_s)
    assert -1e-6 <= ahead_s <= interval_s + 1e-6
    assert due_s == pytest.approx(100.0 + (missed + 1) * interval_s)


def test_there_is_a_round_at_each_end_however_short_the_body() -> None:
    sampler = Counting()
    with Sampling([sampler], interval_s=3600) as s:
        assert values(s) == [0.0]
    assert values(s) == [0.0, 1.0]


def test_samples_are_stamped_on_the_clock_of_the_tokens() -> None:
    before_s = time.perf_counter()
    with Sampling([Counting()], interval_s=3600) as s:
        pass
    stamps = [sample.at_s for sample in s.samples]
    assert before_s < stamps[0] < stamps[1] < time.perf_counter()


def test_a_sample_is_stamped_in_the_middle_of_its_reading() -> None:
    moments = iter([0.0, 1.0, 2.0, 4.0] + [5.0] * 50)
    with Sampling([Counting()], interval_s=3600, clock=lambda: next(moments)) as s:
        pass
    assert s.samples[0].at_s == 3.0


def test_every_sampler_is_read_in_every_round() -> None:
    first, second = Counting("first"), Counting("second")
    with Sampling([first, second], interval_s=0.001) as s:
        second.wait_for(5)
    assert first.readings == second.readings == s.statistics().rounds
    assert [sample.source for sample in s.samples[:4]] == ["first", "second", "first", "second"]


def test_the_thread_has_ended_when_the_with_ends() -> None:
    before = threading.active_count()
    with Sampling([Counting()], interval_s=0.001):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_full_buffer_drops_the_oldest_and_counts_them() -> None:
    sampler = Counting()
    with Sampling([sampler], interval_s=0.001, capacity=3) as s:
        sampler.wait_for(10)
    statistics = s.statistics()
    assert statistics.held == 3
    assert statistics.held + statistics.dropped == sampler.readings
    assert values(s) == [float(n) for n in range(sampler.readings)][-3:]


def test_an_unavailable_sampler_is_left_out_and_its_reason_kept() -> None:
    def lost_at_2(value: int) -> None:
        if value == 2:
            raise SamplerUnavailable("no GPU: it fell off the bus")

    lost, other = Counting("lost", on_reading=lost_at_2), Counting("other")
    other.notes.append("fan speed is not told")
    with Sampling([lost, other], interval_s=0.001) as s:
        other.wait_for(6)
    assert lost.readings == 3
    assert [sample.values["value"] for sample in s.samples if sample.source == "lost"] == [0.0, 1.0]
    assert s.notes == ["fan speed is not told", "no GPU: it fell off the bus"]


def test_a_mistake_in_a_sampler_is_raised_at_the_end() -> None:
    def fail(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Sampling([Counting(on_reading=fail)]):
        pass


def test_the_bodys_own_error_goes_before_a_samplers() -> None:
    def fail(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(KeyError), Sampling([Counting(on_reading=fail)]):
        raise KeyError


def test_a_reading_that_never_returns_does_not_hold_up_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung driver costs the last round, not the notebook."""
    release = threading.Event()

    def hang_at_1(value: int) -> None:
        if value == 1:
            release.wait()

    monkeypatch.setattr(sampling, "_JOIN_S", 0.01)
    sampler = Counting(on_reading=hang_at_1)
    with Sampling([sampler], interval_s=0.001) as s:
        sampler.wait_for(2)
    try:
        assert values(s) == [0.0]
        assert s.notes == ["a reading did not come back within 0.01 s; the last round is missing"]
    finally:
        release.set()


def test_it_reports_its_own_cost() -> None:
    sampler = Counting(on_reading=lambda _: sum(range(20_000)) and None)
    with Sampling([sampler], interval_s=0.001) as s:
        sampler.wait_for(20)
    statistics = s.statistics()
    assert statistics.reading_s.keys() == {"Counting"}
    assert statistics.cpu_s > 0
    assert 0 < statistics.reading_s["Counting"] <= statistics.elapsed_s
    assert statistics.longest_s is not None
    assert statistics.longest_s <= statistics.elapsed_s
    assert statistics.cpu_ratio is not None
    assert statistics.cpu_ratio > 0
    assert 0 < statistics.reading_cpu_s["Counting"] <= statistics.cpu_s


def test_its_cost_can_be_kept_beside_the_samples() -> None:
    with Sampling([Counting()], interval_s=3600) as s:
        pass
    statistics = s.statistics()
    whole, reading = s.cost_samples()
    assert (whole.source, reading.source) == ("sampling", "sampling:Counting")
    assert whole.values["cpu_s"] == statistics.cpu_s
    assert (whole.values["rounds"], whole.values["missed"], whole.values["dropped"]) == (2, 0, 0)
    assert reading.values["elapsed_s"] == statistics.reading_s["Counting"]
    assert whole.at_s >= s.samples[-1].at_s


def test_the_time_of_a_samplers_own_thread_counts() -> None:
    """As far as it was spent while sampling: opening a driver is no sampling."""

    class Elsewhere(Counting):
        cpu_s = 7.0

        def read(self) -> Mapping[str, Mapping[str, float | None]]:
            self.cpu_s += 100.0
            return super().read()

    with Sampling([Elsewhere()], interval_s=3600) as s:
        pass
    statistics = s.statistics()
    assert statistics.reading_cpu_s["Elsewhere"] == pytest.approx(200.0, abs=1.0)
    assert statistics.cpu_s >= statistics.reading_cpu_s["Elsewhere"]


@pytest.mark.parametrize("arguments", [{"interval_s": 0.0}, {"interval_s": float("nan")}, {"capacity": 0}])
def test_an_interval_or_capacity_of_nothing_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="must be > 0"):
        Sampling([], **arguments)  # type: ignore[arg-type]
