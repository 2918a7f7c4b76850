"""From records and samples to frames: numbers worked by hand; what is absent stays absent."""

from __future__ import annotations

import math

import pytest
from lab_samples import URL, done, failed, trials

from ollamalab import lab, plots
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import Subject, Trials, mean_of
from ollamalab.metrics import e2e_final_line_s, tpot_s
from ollamalab.records import Sample

MEAN_E2E = mean_of(e2e_final_line_s)


def test_values_are_of_completed_requests_and_may_be_absent() -> None:
    frame = lab.values([done("a", end_s=2.0), failed("a"), done("b", tokens=1)], tpot_s)
    assert list(frame["arm"]) == ["a", "b"]
    assert frame["value"][0] == pytest.approx(1 / 9)
    assert math.isnan(frame["value"][1])
    assert frame["value"].dtype == float


@pytest.mark.parametrize("records", [[], [failed("a")], [done("a", tokens=1)]])
def test_a_figure_can_be_drawn_of_values_that_are_not_there(records: list) -> None:
    plots.latency_strip(lab.values(records, tpot_s), title="Nothing", quantity="TPOT")


def test_a_timeline_keeps_a_request_that_never_began_as_absent_moments() -> None:
    frame = lab.timeline([done(sent_s=0.5), failed()])
    assert frame.iloc[0].tolist() == [0.5, 1.0, 2.0]
    assert frame.iloc[1].isna().tolist() == [False, True, True]
    plots.slot_timeline(frame, title="One of two")
    plots.slot_timeline(lab.timeline([]), title="Nothing")


def test_a_series_is_one_quantity_of_one_source_without_its_gaps() -> None:
    samples = [
        Sample(at_s=1.0, source="host", values={"cpu_ratio": None, "load_1m": 2.0}),
        Sample(at_s=2.0, source="host", values={"cpu_ratio": 0.5}),
        Sample(at_s=2.0, source="gpu0", values={"cpu_ratio": 0.9}),
        Sample(at_s=3.0, source="host", values={"cpu_ratio": 0.0}),
    ]
    assert lab.series(samples, "host", "cpu_ratio").to_numpy().tolist() == [[2.0, 0.5], [3.0, 0.0]]
    assert lab.series([], "host", "cpu_ratio").empty


def test_a_point_of_a_sweep_has_its_t_interval_over_visits() -> None:
    """1 and 3: mean 2, standard deviation √2, t(0.975, 1) = 12.7062; half width 12.7062 · √2 / √2."""
    found = trials({"1 slot": [1.0, 3.0], "2 slots": [4.0, 4.0], "4 slots": [5.0, None], "8 slots": [None]})
    points = lab.sweep_points(found, {"1 slot": 1, "2 slots": 2, "4 slots": 4, "8 slots": 8}, MEAN_E2E)
    assert points["x"].tolist() == [1, 2, 4]
    assert points["value"].tolist() == [2.0, 4.0, 5.0]
    assert points["low"][0] == pytest.approx(2 - 12.7062, abs=1e-3)
    assert points["high"][0] == pytest.approx(2 + 12.7062, abs=1e-3)
    # Equal visits have an interval of no width, not one that begins at 0.
    assert points.loc[1, ["low", "high"]].tolist() == [4.0, 4.0]
    assert points.loc[2, ["low", "high"]].isna().all()


def overlapping(arm: str, visit: int, *, offset_s: float = 0.0) -> list:
    """Return two requests of a run of 5 s: decoding from 1 to 3 and from 2 to 4."""
    return [
        done(
            arm, visit=visit, block=0, sent_s=offset_s, first_s=offset_s + 1, last_s=offset_s + 3, end_s=3.5
        ),
        done(
            arm,
            visit=visit,
            block=0,
            sent_s=offset_s,
            first_s=offset_s + 2,
            last_s=offset_s + 4,
            end_s=offset_s + 5,
        ),
    ]


def test_shares_of_decoding_at_once_are_averaged_over_visits() -> None:
    """0 at once for 2 of 5 s, 1 for 2, 2 for 1; the other visit decodes one at a time for half of 4 s."""
    records = [
        *overlapping("2 slots", 0),
        done("2 slots", visit=1, block=0, first_s=2.0, last_s=4.0, end_s=4.0),
        done("1 slot", visit=2, block=0, first_s=1.0, last_s=4.0, end_s=4.0),
        failed("broken", visit=3, block=0),
    ]
    shares = lab.concurrency(Trials(arms=("2 slots", "1 slot", "broken"), records=tuple(records)))
    assert list(shares.index) == ["2 slots", "1 slot"]
    assert list(shares.columns) == [0, 1, 2]
    assert shares.loc["2 slots"].tolist() == pytest.approx([0.45, 0.45, 0.1])
    assert shares.loc["1 slot"].tolist() == pytest.approx([0.25, 0.75, 0.0])


def test_pauses_between_visits_are_in_no_share() -> None:
    records = (*overlapping("a", 0), *overlapping("a", 1, offset_s=1000.0))
    shares = lab.concurrency(Trials(arms=("a",), records=records))
    assert shares.loc["a"].sum() == pytest.approx(1.0)
    assert shares.loc["a", 2] == pytest.approx(0.2)


def test_nothing_sent_has_no_shares_at_all() -> None:
    assert lab.concurrency(Trials(arms=("a",), records=(failed("a", visit=0, block=0),))).empty


def test_the_most_at_once_is_over_visits_and_never_below_0() -> None:
    one = done("a", visit=0, block=0)
    assert lab.most_at_once([one, *overlapping("a", 1)]) == 2
    assert lab.most_at_once([one]) == 1
    assert lab.most_at_once([failed("a", visit=0)]) == 0
    assert lab.most_at_once([]) == 0


def test_one_visit_is_the_last_of_the_arm() -> None:
    found = trials({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert [record.end_s for record in lab.one_visit(found, "a")] == [2.0]


def test_busy_slots_are_those_of_the_subjects_own_engines() -> None:
    samples = [
        Sample(at_s=1.0, source=f"slots:m {URL}", values={"slots": 4, "busy": 1}),
        Sample(at_s=2.0, source=f"slots:m {URL}", values={"slots": 4, "busy": 3}),
        Sample(at_s=2.0, source=f"slots:m {URL}5", values={"slots": 9, "busy": 9}),
        Sample(at_s=3.0, source=f"server {URL}", values={"cpu_ratio": 1.0}),
    ]
    subject = Subject(RemoteTarget(URL, "0"), "m", seed=0)
    assert lab.most_busy(samples, subject) == 3
    assert lab.most_busy(samples[-1:], subject) is None
    assert lab.most_busy([], subject) is None


def test_frames_of_empty_trials_have_their_columns() -> None:
    empty = Trials(arms=("a", "b"), records=())
    points = lab.sweep_points(empty, {"a": 1.0}, MEAN_E2E)
    assert points.empty
    assert list(points.columns) == ["x", "value", "low", "high"]
    assert lab.concurrency(empty).empty
