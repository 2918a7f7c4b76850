"""Visits and their contrasts: every record is labelled, every lost pair is told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from lab_samples import E2E, SUCCESS, done, failed, trials

from ollamalab.compare import Visit, design
from ollamalab.lab import best_arm, mean_of
from ollamalab.lab.trials import Visitor, run_visits
from ollamalab.metrics import e2e_final_line_s, success_share, tpot_s
from ollamalab.records import RequestRecord

MEAN_E2E = mean_of(e2e_final_line_s)


async def test_visits_are_made_in_the_order_of_the_design_and_records_say_which_they_belong_to() -> None:
    made: list[Visit] = []

    def visitor(requests: int) -> Visitor:
        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            made.append(visit)
            return [done() for _ in range(requests)]

        return visit

    visits = design(("one", "two"), 3, random.Random(4))
    found = await run_visits({"one": visitor(1), "two": visitor(2)}, visits)
    assert made == list(visits)
    assert found.arms == ("one", "two")
    assert len(found.of("one")) == 6
    assert len(found.of("two")) == 12
    labels = [(record.visit, record.block, record.arm) for record in found.records]
    wanted = [
        (visit.index, visit.block, visit.arm)
        for visit in visits
        for _ in range(2 if visit.arm == "two" else 1)
    ]
    assert labels == wanted


def test_a_mean_leaves_out_failures_warm_up_and_what_has_no_value() -> None:
    records = [
        done(end_s=1.0),
        done(end_s=3.0),
        replace(done(end_s=100.0), warmup=True),
        failed(),
    ]
    assert MEAN_E2E(records) == 2.0
    assert MEAN_E2E([failed()]) is None
    assert MEAN_E2E([]) is None
    assert mean_of(tpot_s)([done(tokens=1)]) is None


def test_a_contrast_sets_an_arm_against_the_first_one() -> None:
    """Eight pairs of 1 s against 2 s: half the time, and no doubt about it."""
    found = trials({"old": [2.0] * 8, "new": [1.0] * 8})
    contrast = found.contrast(E2E, MEAN_E2E, arm="new", is_primary=True)
    assert (contrast.baseline, contrast.arm) == ("old", "new")
    assert (contrast.arm_value, contrast.baseline_value) == (1.0, 2.0)
    assert contrast.estimate == pytest.approx(0.5)
    assert (contrast.low, contrast.high) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (contrast.pairs, contrast.lost_pairs) == (8, 0)
    assert contrast.verdict
    assert contrast.verdict.text == "faster"


def test_a_contrast_can_be_set_against_another_arm() -> None:
    found = trials({"old": [2.0] * 8, "new": [1.0] * 8, "best": [0.5] * 8})
    contrast = found.contrast(E2E, MEAN_E2E, arm="best", baseline="new")
    assert contrast.baseline == "new"
    assert contrast.estimate == pytest.approx(0.5)
    assert contrast.verdict is None
    assert contrast.reason == "secondary: interval only"


def test_a_visit_that_failed_loses_its_pair_and_the_success_tells_it() -> None:
    found = trials({"old": [2.0] * 8, "new": [1.0, None, *[1.0] * 6]})
    contrast = found.contrast(E2E, MEAN_E2E, arm="new", is_primary=True)
    assert (contrast.pairs, contrast.lost_pairs) == (7, 1)
    assert contrast.verdict is None
    assert contrast.reason == "n/a: 7 pairs, at least 8 needed"
    success = found.contrast(SUCCESS, lambda records: success_share(records).ratio, arm="new")
    assert (success.pairs, success.lost_pairs) == (8, 0)
    assert success.arm_value == 7 / 8


def test_nothing_completed_is_no_number() -> None:
    found = trials({"old": [None] * 8, "new": [None] * 8})
    contrast = found.contrast(E2E, MEAN_E2E, arm="new", is_primary=True)
    assert (contrast.arm_value, contrast.estimate, contrast.low, contrast.verdict) == (None, None, None, None)
    assert contrast.lost_pairs == 8


def test_values_per_visit_are_in_order_and_absent_ones_are_left_out() -> None:
    found = trials({"old": [2.0, None, 4.0], "new": [1.0, 1.0, 1.0]})
    assert found.per_visit("old", MEAN_E2E) == [2.0, 4.0]
    assert found.per_visit("nobody", MEAN_E2E) == []


def test_the_best_arm_has_the_lowest_mean_and_one_without_a_value_is_last() -> None:
    found = trials({"none": [None, None], "slow": [3.0, 5.0], "fast": [1.0, 2.0]})
    assert best_arm(found, MEAN_E2E, among=["slow", "fast", "none"]) == "fast"
    assert best_arm(found, MEAN_E2E, among=["none", "slow"]) == "slow"
    assert best_arm(found, MEAN_E2E, among=["none"]) == "none"
