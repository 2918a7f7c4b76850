"""Blocks, pairs, exact intervals and the words they allow."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ollamalab import compare
from ollamalab.claims import CLAIMS
from ollamalab.compare import ClaimWord, Comparison, Metric, Visit
from ollamalab.errors import SettingsError
from ollamalab.records import Outcome, RequestRecord

TTFT = Metric(name="ttft_s", unit="s", better="lower")
THROUGHPUT = Metric(name="output_tokens_per_s", unit="tokens/s", better="higher")
SUCCESS = Metric(name="success_ratio", better="higher", kind="difference")

latencies_s = st.floats(1e-3, 1e3)
pairs_of_latencies = st.lists(st.tuples(latencies_s, latencies_s), min_size=8, max_size=30)
differences = st.lists(st.floats(-10, 10), min_size=6, max_size=30)
p_values = st.lists(st.floats(0, 1), max_size=30)


def compared(
    pairs: Sequence[tuple[float | None, float | None]], metric: Metric = TTFT, **options: Any
) -> Comparison:
    """Return the comparison of pairs (on, off), each pair in a block of its own."""
    values: dict[Visit, float | None] = {}
    for block, (on, off) in enumerate(pairs):
        values[Visit(index=2 * block, block=block, arm="on")] = on
        values[Visit(index=2 * block + 1, block=block, arm="off")] = off
    return compare.compare_arms(values, metric, arm="on", baseline="off", **options)


def around(ratio: float, *, spread: float, pairs: int = 24) -> Comparison:
    """Return a comparison whose pairs lie evenly around a ratio."""
    return compared([(ratio * math.exp(spread * (place / (pairs - 1) - 0.5)), 1.0) for place in range(pairs)])


class TestDesign:
    @given(st.integers(1, 40), st.integers(0, 100))
    def test_two_arms_come_as_abba_or_baab(self, blocks: int, seed: int) -> None:
        plan = compare.design(("off", "on"), blocks, random.Random(seed))
        assert [visit.index for visit in plan] == list(range(4 * blocks))
        for block in range(blocks):
            arms = [visit.arm for visit in plan if visit.block == block]
            assert arms in (["off", "on", "on", "off"], ["on", "off", "off", "on"])

    def test_both_orders_are_drawn_equally_often(self) -> None:
        plan = compare.design(("off", "on"), 2000, random.Random(3))
        firsts = Counter(visit.arm for visit in plan if visit.index % 4 == 0)
        assert firsts["off"] == pytest.approx(1000, abs=100)  # 4.5 standard deviations

    @given(st.integers(3, 6), st.integers(1, 20), st.integers(0, 100))
    def test_more_arms_come_once_per_block(self, arms: int, blocks: int, seed: int) -> None:
        names = [f"arm{place}" for place in range(arms)]
        plan = compare.design(names, blocks, random.Random(seed))
        for block in range(blocks):
            assert sorted(visit.arm for visit in plan if visit.block == block) == names

    def test_three_arms_come_in_every_order(self) -> None:
        plan = compare.design(("a", "b", "c"), 200, random.Random(0))
        orders = {tuple(visit.arm for visit in plan if visit.block == block) for block in range(200)}
        assert len(orders) == 6

    def test_equal_seeds_give_equal_designs(self) -> None:
        assert compare.design("ab", 9, random.Random(5)) == compare.design("ab", 9, random.Random(5))

    @pytest.mark.parametrize(("arms", "blocks"), [((), 4), (("a",), 4), (("a", "a"), 4), (("a", "b"), 0)])
    def test_what_is_no_comparison_is_refused(self, arms: tuple[str, ...], blocks: int) -> None:
        with pytest.raises(SettingsError):
            compare.design(arms, blocks, random.Random(0))

    @given(st.integers(1, 60), st.integers(2, 5))
    def test_blocks_give_the_pairs_asked_and_no_block_too_many(self, wanted: int, arms: int) -> None:
        names = [f"arm{place}" for place in range(arms)]
        blocks = compare.blocks_for_pairs(wanted, arms)
        plan = compare.design(names, blocks, random.Random(0))
        per_block = 2 if arms == 2 else 1
        for name in names[1:]:
            found = compare.pairs(dict.fromkeys(plan, 1.0), arm=name, baseline=names[0])
            assert wanted <= len(found) < wanted + per_block


class TestPairs:
    @given(st.integers(1, 20), st.integers(0, 100))
    def test_pairs_of_two_arms_are_neighbours(self, blocks: int, seed: int) -> None:
        plan = compare.design(("off", "on"), blocks, random.Random(seed))
        found = compare.pairs({visit: float(visit.index) for visit in plan}, arm="on", baseline="off")
        assert len(found) == 2 * blocks
        for on, off in found:
            assert on is not None
            assert off is not None
            assert abs(on - off) == 1
            assert on // 2 == off // 2

    def test_a_visit_without_value_leaves_the_other_pairs_as_they_are(self) -> None:
        """Pairing follows the design; were it by survivors, 3 would meet 2 and 0 nobody."""
        plan = [Visit(index=place, block=0, arm=arm) for place, arm in enumerate(["A", "B", "B", "A"])]
        values = {plan[0]: None, plan[1]: 1.0, plan[2]: 2.0, plan[3]: 3.0}
        assert compare.pairs(values, arm="A", baseline="B") == [(None, 1.0), (3.0, 2.0)]

    def test_a_run_that_was_cut_off_keeps_its_whole_pairs(self) -> None:
        plan = compare.design(("off", "on"), 3, random.Random(0))
        for done in range(len(plan) + 1):
            values = dict.fromkeys(plan[:done], 1.0)
            assert len(compare.pairs(values, arm="on", baseline="off")) == done // 2

    def test_order_of_the_values_does_not_matter(self) -> None:
        plan = compare.design(("off", "on"), 4, random.Random(0))
        values = {visit: float(visit.index) for visit in plan}
        backwards = dict(reversed(values.items()))
        assert compare.pairs(values, arm="on", baseline="off") == compare.pairs(
            backwards, arm="on", baseline="off"
        )


class TestVisitValues:
    @staticmethod
    def record(visit: int | None, end_s: float, *, warmup: bool = False) -> RequestRecord:
        return RequestRecord(
            index=0,
            target="",
            model="",
            outcome=Outcome.OK,
            intended_s=0.0,
            end_s=end_s,
            arm="on",
            block=None if visit is None else 0,
            visit=visit,
            warmup=warmup,
        )

    @staticmethod
    def mean_end_s(records: Sequence[RequestRecord]) -> float | None:
        return sum(record.end_s or 0.0 for record in records) / len(records)

    def test_one_value_per_visit_without_warm_up_and_strangers(self) -> None:
        records = [
            self.record(7, 3.0),
            self.record(2, 1.0),
            self.record(7, 5.0),
            self.record(2, 99.0, warmup=True),
            self.record(None, 99.0),
        ]
        values = compare.visit_values(records, self.mean_end_s)
        assert list(values.items()) == [
            (Visit(index=2, block=0, arm="on"), 1.0),
            (Visit(index=7, block=0, arm="on"), 4.0),
        ]

    def test_a_visit_in_which_nothing_completed_has_no_value(self) -> None:
        values = compare.visit_values([self.record(1, 1.0)], lambda _: None)
        assert list(values.values()) == [None]


def every_sign(differences_: Sequence[float]) -> float:
    """Return the two-sided signed-rank p-value by trying all 2^n signs: what "exact" means."""
    ranks = stats.rankdata(np.abs(differences_))
    observed = sum(rank for rank, value in zip(ranks, differences_, strict=True) if value > 0)
    centre = ranks.sum() / 2
    signs = list(itertools.product((0, 1), repeat=len(ranks)))
    extreme = sum(abs(np.dot(sign, ranks) - centre) >= abs(observed - centre) - 1e-9 for sign in signs)
    return float(extreme / len(signs))


class TestHodgesLehmann:
    def test_a_case_worked_by_hand(self) -> None:
        """Six differences 1, 2, 4, 8, 16, 32; 21 Walsh averages, from 1 to 32.

        Sorted: 1, 1.5, 2, 2.5, 3, 4, 4.5, 5, 6, 8, 8.5, 9, 10, 12, 16, 16.5, 17, 18, 20, 24, 32. The
        11th of 21 is the estimate: 8.5. P(T = 0) = 1/64 = 1.6 % <= 2.5 % but P(T <= 1) = 2/64 = 3.1 %,
        so only the outermost lie outside 95 %: 1 to 32. For 90 % P(T <= 1) = 3.1 % <= 5 % and
        P(T <= 2) = 3/64 = 4.7 % <= 5 % but P(T <= 3) = 5/64: the third from each end: 2 to 20.
        All six are positive: p = 2/64.
        """
        found = compare.hodges_lehmann([8, 1, 32, 4, 2, 16])
        assert found.centre == 8.5
        assert (found.low, found.high) == (1, 32)
        assert (found.low90, found.high90) == (2, 20)
        assert found.p_value == 2 / 64

    def test_few_differences_carry_less(self) -> None:
        assert compare.hodges_lehmann([]) == compare.Estimate(n=0)
        one = compare.hodges_lehmann([3.0])
        assert (one.centre, one.low, one.detectable) == (3.0, None, None)
        five = compare.hodges_lehmann([1.0, 2.0, 3.0, 4.0, 5.0])
        assert (five.low, five.low90, five.high90) == (None, 1.0, 5.0)

    @pytest.mark.parametrize("n", [1, 2, 5, 8, 12])
    def test_the_distribution_is_that_of_all_signs(self, n: int) -> None:
        sums = Counter(
            sum(rank for rank, sign in enumerate(signs, start=1) if sign)
            for signs in itertools.product((0, 1), repeat=n)
        )
        top = n * (n + 1) // 2
        exact = list(itertools.accumulate(sums[t] / 2**n for t in range(top + 1)))
        assert compare.signed_rank_cdf(n).tolist() == pytest.approx(exact)

    @pytest.mark.parametrize(
        ("n", "outside"), [(6, 1), (8, 4), (10, 9), (12, 14), (20, 53), (30, 138), (40, 265), (50, 435)]
    )
    def test_ranks_of_the_interval_are_those_of_printed_tables(self, n: int, outside: int) -> None:
        """Critical values of the signed-rank test, two-sided 5 %, are one less: 0, 3, 8, 13, 52, 137 ..."""
        assert int((compare.signed_rank_cdf(n) <= 0.025).sum()) == outside

    @given(st.dictionaries(st.integers(1, 10**6), st.sampled_from((-1, 1)), min_size=2, max_size=12))
    def test_the_p_value_is_exact_without_ties(self, signs: dict[int, int]) -> None:
        values = [size * sign for size, sign in signs.items()]
        assert compare.hodges_lehmann(values).p_value == pytest.approx(every_sign(values))

    @given(differences)
    def test_the_p_value_says_what_the_interval_says(self, values: list[float]) -> None:
        """Ties and zeros included: one of them never claims what the other denies."""
        found = compare.hodges_lehmann(values)
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        assert (found.p_value <= 0.05) == (found.low > 0 or found.high < 0)

    @given(differences)
    def test_intervals_nest_around_the_estimate(self, values: list[float]) -> None:
        found = compare.hodges_lehmann(values)
        ends = (found.low, found.low90, found.centre, found.high90, found.high)
        known = [end for end in ends if end is not None]
        assert len(known) == 5
        assert known == sorted(known)

    @given(differences, st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, values: list[float], rng: random.Random) -> None:
        shuffled = rng.sample(values, len(values))
        assert compare.hodges_lehmann(shuffled) == compare.hodges_lehmann(values)

    @given(st.lists(st.integers(-1000, 1000), min_size=6, max_size=30), st.integers(-1000, 1000))
    def test_a_shift_shifts(self, values: list[int], shift: int) -> None:
        plain = compare.hodges_lehmann(values)
        moved = compare.hodges_lehmann([value + shift for value in values])
        for name in ("centre", "low", "high", "low90", "high90"):
            assert getattr(moved, name) == getattr(plain, name) + shift

    def test_a_thousand_pairs_are_no_trouble(self) -> None:
        found = compare.hodges_lehmann(np.random.default_rng(0).normal(0.5, 1, 1000).tolist())
        assert found.low is not None
        assert found.high is not None
        assert found.low < 0.5 < found.high

    def test_agrees_with_scipy(self) -> None:
        values = np.random.default_rng(4).normal(0.2, 1, 33).tolist()
        expected = stats.wilcoxon(values, method="exact").pvalue
        assert compare.hodges_lehmann(values).p_value == pytest.approx(expected)


class TestLaws:
    @given(pairs_of_latencies)
    def test_swapping_the_arms_inverts(self, pairs: list[tuple[float, float]]) -> None:
        there = compared(pairs)
        back = compared([(off, on) for on, off in pairs])
        assert there.estimate == pytest.approx(1 / (back.estimate or math.nan))
        assert there.low == pytest.approx(1 / (back.high or math.nan))
        assert there.high == pytest.approx(1 / (back.low or math.nan))
        assert there.p_value == back.p_value
        assert there.verdict is not None
        assert back.verdict is not None
        opposite = {"lower": "higher", "higher": "lower", None: None}
        assert there.verdict.direction == opposite[back.verdict.direction]

    @given(pairs_of_latencies, st.sampled_from([0.001, 0.5, 4.0, 1000.0]))
    def test_units_do_not_matter(self, pairs: list[tuple[float, float]], factor: float) -> None:
        plain = compared(pairs)
        scaled = compared([(factor * on, factor * off) for on, off in pairs])
        for name in ("estimate", "low", "high", "low90", "high90", "detectable"):
            assert getattr(scaled, name) == pytest.approx(getattr(plain, name), rel=1e-6)

    @given(pairs_of_latencies, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
    def test_an_arm_c_times_slower_is_estimated_c_times_slower(
        self, pairs: list[tuple[float, float]], factor: float
    ) -> None:
        plain = compared(pairs)
        slowed = compared([(factor * on, off) for on, off in pairs])
        for name in ("estimate", "low", "high"):
            assert getattr(slowed, name) == pytest.approx(factor * getattr(plain, name))

    @given(pairs_of_latencies, st.randoms(use_true_random=False))
    def test_order_of_the_pairs_does_not_matter(
        self, pairs: list[tuple[float, float]], rng: random.Random
    ) -> None:
        plain, shuffled = compared(pairs), compared(rng.sample(pairs, len(pairs)))
        assert shuffled.verdict == plain.verdict
        assert (shuffled.low, shuffled.estimate, shuffled.high) == (plain.low, plain.estimate, plain.high)

    @given(pairs_of_latencies)
    def test_the_verdict_follows_from_the_intervals(self, pairs: list[tuple[float, float]]) -> None:
        found = compared(pairs)
        assert found.verdict is not None
        assert found.low is not None
        assert found.high is not None
        assert found.low90 is not None
        assert found.high90 is not None
        assert (found.verdict.direction is not None) == (found.low > 1 or found.high < 1)
        assert found.verdict.is_equivalent == (found.low90 >= 1 / 1.1 and found.high90 <= 1.1)


class TestVerdict:
    @pytest.mark.parametrize(
        ("ratio", "spread", "text"),
        [
            (0.5, 0.2, "faster"),
            (1.5, 0.2, "slower"),
            (0.96, 0.02, "faster, by less than 10 %"),
            (1.04, 0.02, "slower, by less than 10 %"),
            (1.0, 0.05, "equivalent within 10 %"),
        ],
    )
    def test_words_for_times(self, ratio: float, spread: float, text: str) -> None:
        verdict = around(ratio, spread=spread).verdict
        assert verdict is not None
        assert verdict.text == text

    def test_neither_shown_nor_equivalent_prints_the_interval(self) -> None:
        """±50 % of spread around 1: at 24 pairs the interval is several per cent wide."""
        found = around(1.0, spread=1.5)
        assert found.verdict is not None
        assert found.low is not None
        assert found.high is not None
        low, high = 100 * (found.low - 1), 100 * (found.high - 1)
        assert found.verdict.text == f"no difference shown (−{-low:.0f}…+{high:.0f} %)"

    def test_a_higher_rate_is_higher_and_better(self) -> None:
        found = compared([(2.0 + place / 100, 1.0) for place in range(12)], THROUGHPUT)
        assert found.verdict is not None
        assert (found.verdict.text, found.verdict.is_better) == ("higher", True)

    def test_slower_is_worse_and_a_higher_time_of_unknown_unit_is_not_called_slower(self) -> None:
        slower = around(1.5, spread=0.1).verdict
        assert slower is not None
        assert slower.is_better is False
        frames = Metric(name="frames", better="lower")
        found = compared([(2.0, 1.0)] * 8, frames)
        assert found.verdict is not None
        assert (found.verdict.text, found.verdict.is_better) == ("higher", False)

    def test_proportions_are_compared_by_difference(self) -> None:
        """0 and 1 have no ratio that means anything; 100 % against 60 % is +40 points."""
        found = compared([(1.0, 0.6), (0.9, 0.6), (1.0, 0.5), (0.9, 0.4)] * 3, SUCCESS)
        assert found.estimate == pytest.approx(0.4, abs=0.05)
        assert found.verdict is not None
        assert found.verdict.text == "higher"
        never = compared([(0.0, 0.0)] * 8, SUCCESS)
        assert never.verdict is not None
        assert never.verdict.text == "equivalent within 10 points"

    def test_identical_arms_are_equivalent(self) -> None:
        found = compared([(0.3, 0.3)] * 8)
        assert (found.estimate, found.low, found.high, found.p_value) == (1.0, 1.0, 1.0, 1.0)
        assert found.verdict is not None
        assert found.verdict.text == "equivalent within 10 %"
        assert found.detectable == 1.0

    @pytest.mark.parametrize("pairs", [0, 1, 5, 6, 7])
    def test_below_eight_pairs_there_is_no_verdict(self, pairs: int) -> None:
        found = compared([(0.1, 1.0)] * pairs)
        assert found.verdict is None
        assert found.reason == f"n/a: {pairs} pairs, at least 8 needed"
        assert (found.estimate is None) == (pairs == 0)
        assert (found.low is None) == (pairs < 6)

    def test_an_arm_that_did_not_run_has_no_pairs(self) -> None:
        found = compare.compare_arms({}, TTFT, arm="on", baseline="off")
        assert (found.pairs, found.arm_value, found.estimate, found.verdict) == (0, None, None, None)

    @pytest.mark.parametrize("lost", [None, 0.0, -1.0, math.nan, math.inf])
    def test_pairs_without_a_ratio_are_counted_as_lost(self, lost: float | None) -> None:
        found = compared([(0.5, 1.0)] * 8 + [(lost, 1.0), (0.5, lost)])
        assert (found.pairs, found.lost_pairs) == (8, 2)
        assert (found.arm_value, found.baseline_value) == (0.5, 1.0)

    def test_a_secondary_row_has_an_interval_and_no_word(self) -> None:
        found = compared([(0.5, 1.0)] * 8, is_primary=False)
        assert (found.low, found.high) == (0.5, 0.5)
        assert (found.verdict, found.reason) == (None, "secondary: interval only")

    def test_detectable_effect_by_hand(self) -> None:
        """Log ratios ±0.1, eight of them: sd 0.1069, 2.8 sd/sqrt(8) = 0.1058, as a ratio 1.1116."""
        found = compared([(math.exp(0.1), 1.0), (math.exp(-0.1), 1.0)] * 4)
        assert found.detectable == pytest.approx(1.1116, abs=1e-4)

    def test_blocks_that_drift_alike_hide_no_effect(self) -> None:
        """The machine slows down fivefold during the run; 20 % faster is still seen, and seen as 20 %."""
        plan = compare.design(("off", "on"), 12, random.Random(1))
        values = {visit: 1.05**visit.index * (0.8 if visit.arm == "on" else 1.0) for visit in plan}
        found = compare.compare_arms(values, TTFT, arm="on", baseline="off")
        assert found.estimate == pytest.approx(0.8)
        assert found.verdict is not None
        assert found.verdict.text == "faster"

    def test_of_three_arms_each_meets_the_baseline_of_its_block(self) -> None:
        plan = compare.design(("one", "two", "four"), 10, random.Random(1))
        speed = {"one": 1.0, "two": 0.6, "four": 0.4}
        values = {visit: speed[visit.arm] * (1 + visit.block) for visit in plan}
        for arm in ("two", "four"):
            found = compare.compare_arms(values, TTFT, arm=arm, baseline="one")
            assert found.pairs == 10
            assert found.estimate == pytest.approx(speed[arm])


class TestManyTests:
    def test_benjamini_hochberg_by_hand(self) -> None:
        """Of 0.01, 0.02, 0.03, 0.5: times 4/1, 4/2, 4/3, 4/4; none may exceed the next: 0.04 three times."""
        assert compare.benjamini_hochberg([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.04, 0.04])

    def test_holm_by_hand(self) -> None:
        """0.01 x 4, 0.02 x 3, 0.03 x 2 (not less than the one before: 0.06), 0.5 x 1."""
        assert compare.holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])

    def test_benjamini_hochberg_agrees_with_scipy(self) -> None:
        found = np.random.default_rng(1).uniform(size=50).tolist()
        assert compare.benjamini_hochberg(found) == pytest.approx(stats.false_discovery_control(found))

    @given(p_values)
    def test_corrections_keep_the_order_and_only_raise(self, found: list[float]) -> None:
        for adjust in (compare.benjamini_hochberg, compare.holm):
            adjusted = adjust(found)
            assert all(p <= q + 1e-12 and q <= 1 for p, q in zip(found, adjusted, strict=True))
            by_raw = [q for _, q in sorted(zip(found, adjusted, strict=True))]
            assert by_raw == sorted(by_raw)

    @given(p_values)
    def test_holm_is_the_stricter_one(self, found: list[float]) -> None:
        pairs = zip(compare.benjamini_hochberg(found), compare.holm(found), strict=True)
        assert all(rate <= family + 1e-12 for rate, family in pairs)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.data())
    def test_a_smaller_p_value_never_hurts_anyone(self, found: list[float], data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(found) - 1))
        smaller = [*found[:place], data.draw(st.floats(0, found[place])), *found[place + 1 :]]
        for adjust in (compare.benjamini_hochberg, compare.holm):
            before, after = adjust(found), adjust(smaller)
            assert all(q <= p + 1e-12 for p, q in zip(before, after, strict=True))

    def test_a_difference_that_does_not_survive_is_no_longer_named(self) -> None:
        """Alone, p = 0.039 names a difference; beside nineteen that show nothing it does not."""
        close = compared([(0.9 - place / 100, 1.0) for place in range(7)] + [(1.13, 1.0)])
        assert close.p_value == pytest.approx(10 / 256)
        assert close.verdict is not None
        assert close.verdict.text == "faster"
        nothing = compared([(1.0, 1.0)] * 8)
        first, *_ = compare.correct([close, *[nothing] * 19])
        assert first.adjusted_p_value == pytest.approx(20 * 10 / 256)
        assert first.verdict is not None
        assert first.verdict.direction is None
        assert first.verdict.text == "no difference shown (−15…−0.3 %)"

    def test_only_verdicts_are_tests(self) -> None:
        strong = compared([(0.5, 1.0)] * 8)
        secondary = compared([(0.5, 1.0)] * 8, is_primary=False)
        short = compared([(0.5, 1.0)] * 7)
        corrected = compare.correct([secondary, strong, short])
        assert [comparison.adjusted_p_value for comparison in corrected] == [None, strong.p_value, None]
        assert corrected[0] == secondary
        assert "1 primary contrasts" in compare.correction_note(corrected)
        assert "1 differences named" in compare.correction_note(corrected)

    def test_nothing_to_correct(self) -> None:
        assert compare.correct([]) == ()


def measured(low: float, high: float, *, kind: Any = "ratio") -> Comparison:
    """Return a comparison with this 95 % interval."""
    metric = replace(TTFT, kind=kind)
    same = 1.0 if kind == "ratio" else 0.0
    comparison = replace(
        compared([(1.0, 1.0)] * 8, metric),
        low=low,
        high=high,
        estimate=(low + high) / 2,
        low90=low,
        high90=high,
    )
    p_value = 1.0 if low <= same <= high else 0.001
    return replace(comparison, p_value=p_value, verdict=compare.judge(comparison, p_value))


class TestClaims:
    @pytest.mark.parametrize(
        ("interval", "at_least", "word"),
        [
            ((0.32, 0.48), False, "confirmed"),
            ((0.30, 0.50), False, "confirmed"),
            ((0.01, 0.02), False, "refuted"),  # much more than was claimed
            ((0.01, 0.02), True, "confirmed"),
            ((0.20, 0.45), True, "confirmed"),
            ((0.20, 0.45), False, "direction only"),
            ((0.45, 0.60), True, "direction only"),
            ((0.55, 0.70), True, "refuted"),
            ((0.40, 1.30), True, "not settled"),
            ((0.95, 1.30), True, "refuted"),
            ((1.20, 1.30), True, "refuted"),
        ],
    )
    def test_a_cut_to_between_03_and_05(
        self, interval: tuple[float, float], at_least: bool, word: str
    ) -> None:
        verdict = compare.settle(measured(*interval), low=0.3, high=0.5, at_least=at_least)
        assert verdict.word == word

    @pytest.mark.parametrize(
        ("interval", "word"),
        [
            ((0.05, 0.09), "confirmed"),
            ((0.02, 0.09), "direction only"),
            ((0.01, 0.02), "refuted"),
            ((-0.02, 0.06), "not settled"),
            ((-0.09, -0.02), "refuted"),
        ],
    )
    def test_a_success_rate_that_rises_by_44_points_in_a_thousand(
        self, interval: tuple[float, float], word: str
    ) -> None:
        found = measured(*interval, kind="difference")
        assert compare.settle(found, low=0.044, high=0.044, at_least=True).word == word

    @pytest.mark.parametrize(
        ("interval", "word"),
        [((0.7, 0.9), "confirmed"), ((0.9, 1.1), "not settled"), ((1.1, 1.2), "refuted")],
    )
    def test_a_claim_without_a_number_is_about_direction(
        self, interval: tuple[float, float], word: str
    ) -> None:
        verdict = compare.settle_direction(measured(*interval), "lower")
        assert verdict.word == word
        assert "0–1" not in verdict.reason
        opposite = {"confirmed": "refuted", "refuted": "confirmed"}.get(word, word)
        assert compare.settle_direction(measured(*interval), "higher").word == opposite

    def test_a_claim_of_no_change_is_confirmed_by_equivalence(self) -> None:
        assert compare.settle(measured(0.97, 1.02), low=0.95, high=1.05).word == "confirmed"
        assert compare.settle(measured(0.90, 1.02), low=0.95, high=1.05).word == "not settled"

    def test_the_right_direction_is_mentioned_when_the_amount_is_refuted(self) -> None:
        verdict = compare.settle(measured(0.7, 0.8), low=0.3, high=0.5)
        assert verdict.word is ClaimWord.REFUTED
        assert verdict.reason == (
            "0.75 (0.7–0.8) has the claimed direction but lies wholly outside the published 0.3–0.5"
        )

    def test_what_did_not_survive_the_correction_confirms_nothing(self) -> None:
        found = measured(0.32, 0.48)
        corrected = replace(found, verdict=compare.judge(found, 0.2))
        assert compare.settle(corrected, low=0.3, high=0.5).word == "not settled"

    def test_too_few_pairs_settle_nothing(self) -> None:
        verdict = compare.settle(compared([(0.4, 1.0)] * 7), low=0.3, high=0.5)
        assert verdict.word is ClaimWord.NOT_SETTLED
        assert "7 pairs" in verdict.reason

    def test_facts_are_settled_by_what_was_seen(self) -> None:
        verdict = compare.settle_fact(holds=False, evidence="unloaded after 300 s")
        assert (verdict.word, verdict.reason) == ("refuted", "unloaded after 300 s")
        assert compare.settle_fact(holds=True, evidence="").word is ClaimWord.CONFIRMED
        assert compare.not_testable("no GPU") == compare.ClaimVerdict(
            word=ClaimWord.NOT_TESTABLE, reason="no GPU"
        )

    def test_every_published_number_can_be_settled(self) -> None:
        for claim in CLAIMS.values():
            if claim.low is not None and claim.high is not None:
                middle = math.sqrt(claim.low * claim.high)
                found = measured(middle * 0.999, middle)
                word = compare.settle(found, low=claim.low, high=claim.high, at_least=claim.at_least).word
                assert word in (ClaimWord.CONFIRMED, ClaimWord.DIRECTION_ONLY)


class TestCarryOver:
    @staticmethod
    def values(effect: Any, blocks: int = 24) -> dict[Visit, float | None]:
        """Return values of a run in which ``effect(arm, arm before)`` multiplies each visit."""
        rng = random.Random(5)
        plan = compare.design(("off", "on"), blocks, rng)
        before = [None, *(visit.arm for visit in plan)]
        return {
            visit: rng.lognormvariate(0, 0.05) * effect(visit.arm, last)
            for visit, last in zip(plan, before, strict=False)
        }

    def test_independent_visits_show_none(self) -> None:
        found = compare.carry_over(self.values(lambda arm, last: 1.0), arm="on", baseline="off")
        assert found.is_shown is False
        assert found.own.n == 24

    def test_an_arm_that_warms_itself_is_found(self) -> None:
        found = compare.carry_over(
            self.values(lambda arm, last: 0.8 if arm == last else 1.0), arm="on", baseline="off"
        )
        assert found.is_shown
        assert math.exp(found.own.centre or 0) == pytest.approx(0.8, abs=0.05)

    def test_an_arm_that_slows_whoever_comes_next_is_found(self) -> None:
        """Pooled over the arms, after its own against after the other, this would cancel."""
        found = compare.carry_over(
            self.values(lambda arm, last: 1.25 if last == "on" else 1.0), arm="on", baseline="off"
        )
        assert found.is_shown
        assert math.exp(found.previous.centre or 0) == pytest.approx(1.25, abs=0.05)
        assert found.own.low is not None
        assert found.own.high is not None
        assert found.own.low < 0 < found.own.high

    def test_what_the_previous_arm_leaves_biases_the_comparison_by_a_quarter(self) -> None:
        """The reason to look: equal arms, one of which slows the next visit by 25 %, differ by 5 %."""
        values = self.values(lambda arm, last: 1.25 if last == "on" else 1.0, blocks=400)
        ratios = [
            math.log(on / off) for on, off in compare.pairs(values, arm="on", baseline="off") if on and off
        ]
        assert sum(ratios) / len(ratios) == pytest.approx(math.log(1.25) * -0.25, abs=0.01)

    def test_few_blocks_and_more_arms_cannot_tell(self) -> None:
        few = self.values(lambda arm, last: 0.5 if arm == last else 1.0, blocks=7)
        assert compare.carry_over(few, arm="on", baseline="off").is_shown is None
        three = dict.fromkeys(compare.design("abc", 20, random.Random(0)), 1.0)
        found = compare.carry_over(three, arm="b", baseline="a")
        assert (found.is_shown, found.own.n) == (None, 0)

    def test_blocks_whose_middle_failed_are_left_out(self) -> None:
        values = self.values(lambda arm, last: 1.0, blocks=10)
        values[list(values)[1]] = None
        assert compare.carry_over(values, arm="on", baseline="off").own.n == 9


def test_the_public_list_is_sorted_and_complete() -> None:
    assert compare.__all__ == sorted(compare.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(compare, name) for name in compare.__all__)
