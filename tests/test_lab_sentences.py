"""Findings in words: they say what the numbers say, and no more where there are none."""

from __future__ import annotations

import pandas as pd
import pytest
from lab_samples import E2E, RATE, compared, done, trials

from ollamalab import lab
from ollamalab.compare import Comparison
from ollamalab.lab import Residency
from ollamalab.lab.sentences import result_text
from ollamalab.metrics import e2e_final_line_s

HALVED = [(1.0, 2.0)] * 8
SAME = [(1.0 + 0.1 * (-1) ** place, 1.0) for place in range(8)]


def slots(arm: str, ratio: float, pairs: int = 8) -> Comparison:
    return compared(RATE, [(ratio, 1.0)] * pairs, arm=arm, baseline="1 slot", is_primary=False)


def test_nouns_and_lists() -> None:
    assert lab.plural(1, "slot") == "1 slot"
    assert lab.plural(4, "slot") == "4 slots"
    assert lab.plural(0, "ping") == "0 pings"
    assert lab.listed({"1 slot": 1, "2 slots": None, "4 slots": 0}) == "1 slot: 1, 2 slots: n/a, 4 slots: 0"


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        (HALVED, "0.50× (95 % interval 0.50–0.50, 8 pairs), faster"),
        (
            [*HALVED, (None, 2.0)],
            "0.50× (95 % interval 0.50–0.50, 8 pairs, 1 lost), faster",
        ),
        (
            HALVED[:6],
            "0.50× (95 % interval 0.50–0.50, 6 pairs), no verdict (n/a: 6 pairs, at least 8 needed)",
        ),
        (HALVED[:1], "n/a (1 pair), no verdict (n/a: 1 pairs, at least 8 needed)"),
        ([], "n/a: 0 pairs, at least 8 needed"),
    ],
)
def test_a_result_tells_its_interval_its_pairs_and_its_verdict(pairs: list, text: str) -> None:
    assert result_text(compared(E2E, pairs)) == text


def test_findings_name_what_was_compared() -> None:
    found = compared(E2E, HALVED, arm="4 slots", baseline="1 slot")
    result = result_text(found)
    assert lab.slots_sentence(found) == f"Mean response, 4 slots against 1 slot: {result}."
    assert lab.preload_sentence(found) == f"First request, preloaded against cold: {result}."
    assert lab.tuning_sentence(found) == f"Warm request, the guide's settings against the defaults: {result}."


def test_a_title_claims_a_saving_only_where_it_is_shown() -> None:
    assert lab.preload_title(compared(E2E, HALVED)) == "A preload cuts the first request to 50% of a cold one"
    for pairs in (SAME, HALVED[:3], []):
        assert lab.preload_title(compared(E2E, pairs)) == "The first request, cold and preloaded"


def test_a_title_says_the_largest_gain_in_throughput_with_its_interval() -> None:
    """It ranks no arms: only the baseline was compared with each."""
    response = compared(E2E, HALVED, arm="8 slots")
    contrasts = [response, slots("2 slots", 1.5), slots("4 slots", 2.25), slots("8 slots", 2.0)]
    title = "4 slots give 2.25× the throughput of 1 slot (95 % interval 2.25–2.25)"
    assert lab.knee_title(contrasts) == title
    none = "No gain in throughput from more slots was shown here"
    assert lab.knee_title([response, slots("2 slots", 0.9)]) == none
    assert lab.knee_title([slots("2 slots", 3.0, pairs=3)]) == none
    assert lab.knee_title([]) == none


def test_a_title_says_which_stage_is_longest() -> None:
    stages = pd.DataFrame(
        {"spawn": [1.0, None], "load": [3.0, 2.0], "other": [None, 0.1]}, index=["fresh", "unloaded"]
    )
    assert lab.stages_title(stages) == "Load is 75% of a cold start (fresh)"
    assert lab.stages_title(stages.iloc[1:]) == "Load is 95% of a cold start (unloaded)"
    assert lab.stages_title(lab.stage_medians([])) == "Stages of a cold start"
    assert lab.stages_title(pd.DataFrame({"load": [None]}, index=["fresh"], dtype=float)) == (
        "Stages of a cold start"
    )


def test_a_title_says_how_many_decoded_at_once_wherever_it_was_most() -> None:
    """The reference of the gap table stands last and need not have the most slots."""
    shares = pd.DataFrame(
        {0: [0.2, 0.1, 0.3], 1: [0.8, 0.3, 0.7], 2: [0.0, 0.6, 0.0], 3: [0.0, 0.0, 0.0]},
        index=["1 slot", "2 slots", "1 slot on ollama"],
    )
    assert lab.decoding_title(shares) == "With 2 slots, up to 2 sequences decode at once"
    for none in (shares.iloc[:1], pd.DataFrame({0: [1.0]}, index=["1 slot"]), pd.DataFrame()):
        assert lab.decoding_title(none) == "No two sequences decoded at once"


def test_pings_are_told_with_their_counts() -> None:
    pinged = Residency(watched_s=4.0, loaded_s=0.08, pings=2, cold_pings=2)
    kept = Residency(watched_s=1.0, loaded_s=1.0, pings=2, cold_pings=1)
    assert lab.ping_sentence(pinged, kept, 299.9974) == (
        "a plain request keeps the model for 300 s; pinged at 72 times its keep-alive it was loaded 2% of "
        "the time and 2 of 2 pings found it cold; with keep_alive −1, 1 of 2 did (the first always does)"
    )
    assert lab.ping_sentence(pinged, kept, 9.2e9).startswith("a plain request keeps the model for ever; ")


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        (4, "too few blocks to tell (4 of the 8 blocks"),
        (8, "No carry-over from visit to visit was shown (8 blocks)"),
    ],
)
def test_carry_over_is_told_from_eight_blocks_on(blocks: int, text: str) -> None:
    orders = [("a", "b", "b", "a"), ("b", "a", "a", "b")]
    records = [
        done(arm, visit=4 * block + place, block=block, end_s=1 + (7 * block + 3 * place) % 5 / 100)
        for block in range(blocks)
        for place, arm in enumerate(orders[block % 2])
    ]
    found = lab.Trials(arms=("a", "b"), records=tuple(records))
    assert text in lab.carry_over_note(found, lab.mean_of(e2e_final_line_s), arm="b", baseline="a")


def test_carry_over_that_shows_asks_for_a_washout_visit() -> None:
    """Whoever comes after its own arm is twice as fast."""
    records = [
        done(arm, visit=4 * block + place, block=block, end_s=(1.0 if place == 2 else 2.0) + block / 100)
        for block in range(8)
        for place, arm in enumerate("abba")
    ]
    found = lab.Trials(arms=("a", "b"), records=tuple(records))
    note = lab.carry_over_note(found, lab.mean_of(e2e_final_line_s), arm="b", baseline="a")
    assert "washout visit is due" in note


@pytest.mark.parametrize(
    ("rate_rps", "text"),
    [
        (8.0, "Of 8 requests/s offered, a completed 0.5: overloaded, "),
        (0.2, "Of 0.2 requests/s offered, a completed 0.5: it kept up, "),
    ],
)
def test_an_offered_rate_is_set_against_what_was_completed(rate_rps: float, text: str) -> None:
    assert lab.offered_sentence(trials({"a": [2.0, 2.0]}), "a", rate_rps).startswith(text)


def test_an_arm_that_completed_nothing_says_so() -> None:
    assert lab.offered_sentence(trials({"a": [None]}), "a", 8.0).endswith("a completed none.")
