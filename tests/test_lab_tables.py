"""Tables of the lab: numbers by hand, "n/a" for what is absent, and what was lost in plain sight."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lab_samples import E2E, SUCCESS, compared, done, failed, trials

from ollamalab import lab
from ollamalab.lab import ColdStart
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import ServerTimings
from ollamalab.report import Table


def cells(table: Table, column: str) -> list:
    """Return one column of a table."""
    names = [each.name for each in table.columns]
    return [row[names.index(column)] for row in table.rows]


# Comparisons


def test_a_comparison_is_a_row_with_both_values_the_ratio_and_the_verdict() -> None:
    table = lab.comparison_table("c", "Title", [compared(E2E, [(1.0, 2.0)] * 8)])
    assert [column.name for column in table.columns][3] == "old"
    (row,) = table.rows
    assert row[:4] == ("e2e_s", "new", 1.0, 2.0)
    assert row[4] == pytest.approx((0.5, 0.5, 0.5))
    assert row[5:] == (8, 1.0, "faster")


def test_lost_pairs_stand_beside_those_that_count() -> None:
    lost = compared(E2E, [(1.0, 2.0)] * 6 + [(None, 2.0)] * 2)
    assert cells(lab.comparison_table("c", "Title", [lost]), "Pairs") == ["6 of 8"]
    assert cells(lab.gap_table("g", "Title", [lost]), "Pairs") == ["6 of 8"]


def test_a_comparison_of_nothing_is_not_available() -> None:
    """No number is shown for what was not measured, least of all 0."""
    table = lab.comparison_table("c", "Title", [compared(E2E, [(None, None)] * 8)])
    assert table.rows == (
        ("e2e_s", "new", None, None, None, "0 of 8", None, "n/a: 0 pairs, at least 8 needed"),
    )
    assert repr(table).count("n/a") == 5


def test_few_pairs_have_an_estimate_without_an_interval() -> None:
    few = compared(E2E, [(1.0, 2.0)] * 3)
    assert cells(lab.comparison_table("c", "Title", [few]), "Ratio") == [(pytest.approx(0.5), None, None)]
    assert cells(lab.gap_table("g", "Title", [few]), "Gap") == [(pytest.approx(-0.5), None, None)]


def test_a_gap_is_a_change_for_ratios_and_points_for_shares() -> None:
    slower = compared(E2E, [(3.0, 2.0)] * 8)
    better = compared(SUCCESS, [(1.0, 0.75)] * 8)
    table = lab.gap_table("g", "Title", [slower, better])
    assert [column.name for column in table.columns] == ["Metric", "Reference: old", "new", "Gap", "Pairs"]
    assert cells(table, "Gap")[0] == pytest.approx((0.5, 0.5, 0.5))
    assert cells(table, "Gap")[1] == pytest.approx((0.25, 0.25, 0.25))
    assert "+50\u202f%" in repr(table)


def test_tables_without_comparisons_are_empty() -> None:
    assert lab.comparison_table("c", "Title", []).rows == ()
    assert lab.gap_table("g", "Title", []).rows == ()


# Latencies


def test_latencies_are_of_completed_requests_as_far_as_n_carries_them() -> None:
    """Eleven requests carry a median and no further percentile; ten carry none."""
    eleven = [done(end_s=3.0) for _ in range(10)] + [done(end_s=14.0), failed()]
    table = lab.latency_table("l", "Title", {"eleven": eleven, "ten": eleven[1:]})
    assert cells(table, "Arm") == ["eleven"] * 3 + ["ten"] * 3
    assert cells(table, "Metric") == ["TTFT", "TPOT", "E2E"] * 2
    assert cells(table, "Success") == pytest.approx([11 / 12] * 3 + [10 / 11] * 3)
    assert cells(table, "n") == [11] * 3 + [10] * 3
    assert cells(table, "mean")[2] == pytest.approx(4000.0)
    assert cells(table, "p50")[2] == pytest.approx(3000.0)
    assert cells(table, "p50")[3:] == [None] * 3
    assert cells(table, "p90") == [None] * 6
    assert "p50 11, p90 64, p95 130, p99 662" in table.caption


def test_latencies_of_an_arm_in_which_nothing_completed_are_not_available() -> None:
    table = lab.latency_table("l", "Title", {"down": [failed()], "unasked": []})
    assert cells(table, "Success") == [0.0] * 3 + [None] * 3
    assert cells(table, "n") == [0] * 6
    assert cells(table, "mean") == [None] * 6


# Stages of load


def test_stages_add_up_visits_and_average_responses() -> None:
    """Visits of 2 s and 4 s with 10 tokens each: 5 and 2.5 tokens/s; one of two requests failed once."""
    found = trials({"1 slot": [2.0, 4.0], "4 slots": [1.0, None]})
    table = lab.staged_table("s", "Title", found)
    success, response, throughput, total, n = (
        cells(table, name) for name in ("Success", "Mean response", "Throughput", "Total time", "n")
    )
    assert cells(table, "Stage") == ["1 slot", "4 slots"]
    assert [share[0] for share in success] == [1.0, 0.5]
    assert response == [3.0, 1.0]
    assert throughput == [3.75, 10.0]
    assert total == [6.0, 1.0]
    assert n == [2, 2]


def test_a_stage_in_which_nothing_was_sent_shows_its_failure_and_no_numbers() -> None:
    table = lab.staged_table("s", "Title", trials({"down": [None, None]}))
    (row,) = table.rows
    assert row[0] == "down"
    assert row[1][0] == 0.0
    assert row[2:] == (None, None, None, None, 2)


# Stages of cold starts


def cold(scenario: str, *, spawn_s: float | None, load_s: float) -> ColdStart:
    """Return a start of 8 s: total 7 s of which load, 1 s prefill, 2 s decode; 1 s is the network's."""
    server = ServerTimings(total_s=7.0, load_s=load_s, prompt_eval_s=1.0, eval_s=2.0)
    return ColdStart(scenario=scenario, spawn_s=spawn_s, record=done(end_s=8.0, server=server))


def test_stages_of_a_cold_start_are_medians_and_other_is_what_is_left() -> None:
    starts = [
        cold("fresh", spawn_s=0.5, load_s=3.0),
        cold("fresh", spawn_s=1.5, load_s=4.0),
        cold("unloaded", spawn_s=None, load_s=4.0),
    ]
    medians = lab.stage_medians(starts)
    assert list(medians.index) == ["fresh", "unloaded"]
    assert list(medians.columns) == ["spawn", "load", "prefill", "decode", "other"]
    # Slot wait 7 - load - 3, network 8 - 7: 2 and 1 for "fresh".
    assert medians.loc["fresh"].tolist() == [1.0, 3.5, 1.0, 2.0, 1.5]
    assert medians.loc["unloaded"].isna().tolist() == [True, False, False, False, False]
    # A second to connect belongs to it too: 1 + slot wait 7 - 6 + network 8 - 1 - 7.
    fresh = cold("fresh", spawn_s=None, load_s=3.0)
    connecting = replace(fresh, record=replace(fresh.record, connected_s=1.0))
    assert lab.stage_medians([connecting]).loc["fresh", "other"] == 1.0 + 1.0 + 0.0
    table = lab.stages_table(starts)
    assert table.rows[0] == ("fresh", 2, 1.0, 3.5, 1.0, 2.0, 1.5, 9.0)
    assert table.rows[1] == ("unloaded", 1, None, 4.0, 1.0, 2.0, 1.0, 8.0)


def test_a_failed_start_counts_in_no_median_and_is_told() -> None:
    starts = [
        cold("fresh", spawn_s=0.5, load_s=3.0),
        ColdStart(scenario="fresh", spawn_s=100.0, record=failed()),
        ColdStart(scenario="broken", spawn_s=1.0, record=failed()),
    ]
    table = lab.stages_table(starts)
    assert table.rows[0] == ("fresh", "1 of 2", 0.5, 3.0, 1.0, 2.0, 2.0, 8.5)
    assert table.rows[1] == ("broken", "0 of 1", *[None] * 6)


def test_a_server_that_tells_no_durations_has_no_stages() -> None:
    starts = lab.as_starts([done()], "silent")
    assert lab.stage_medians(starts).loc["silent"].isna().all()
    assert lab.stages_table(starts).rows == (("silent", 1, *[None] * 6),)
    assert lab.stage_medians([]).empty
    assert lab.stages_table([]).rows == ()


# What was not run


def test_an_arm_that_was_not_run_is_a_row_with_the_reason() -> None:
    found = replace(trials({"as it is": [1.0, 2.0]}), not_run={"4 slots": "not ours"})
    table = lab.staged_table("s", "Title", found)
    assert cells(table, "Stage") == ["as it is", "4 slots"]
    assert cells(table, "Note") == ["", "not run: not ours"]
    assert table.rows[1][1:-1] == (None,) * 6


def test_a_contrast_with_an_arm_that_was_not_run_has_the_reason_and_no_number() -> None:
    """The baseline is named: its reason in the row of an arm that was run would pass for that arm's."""
    found = replace(trials({"as it is": [1.0] * 8}), not_run={"4 slots": "not ours"})
    for arm, baseline, said in (
        ("4 slots", "as it is", "not run: not ours"),
        ("as it is", "4 slots", "not run: 4 slots (not ours)"),
    ):
        contrast = found.contrast(E2E, lab.mean_of(e2e_final_line_s), arm=arm, baseline=baseline)
        assert contrast.estimate is None
        table = lab.comparison_table("c", "Title", [contrast])
        assert cells(table, "Verdict") == [said]


def test_scenarios_that_were_not_run_stand_below_the_others() -> None:
    starts = lab.as_starts([done()], lab.UNLOADED)
    table = lab.stages_table(starts, not_run={lab.FRESH: "not ours", "an arm of something else": "why"})
    assert cells(table, "Scenario") == [lab.UNLOADED, lab.FRESH]
    assert cells(table, "Note") == ["", "not run: not ours"]
