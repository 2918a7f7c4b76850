"""Formulas over records: worked by hand, and laws that hold for any record."""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab import metrics
from ollamalab.errors import SettingsError
from ollamalab.metrics import Slo
from ollamalab.records import Outcome, RequestRecord, ServerTimings

METHOD_LEAST_N = {0.5: 11, 0.75: 24, 0.9: 64, 0.95: 130, 0.99: 662, 0.999: 6636}

values_s = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)
shares = st.floats(0, 1)


def record(**fields: Any) -> RequestRecord:
    """Return a request planned at 10.0, sent at 10.5, with 5 chunks 0.1 s apart from 11.0 on, done at 11.5.

    The server tells of 0.9 s in all: 0.05 load, 0.3 prompt, 0.4 eval; so 0.15 s are left for the slot.
    """
    defaults: dict[str, Any] = {
        "index": 0,
        "target": "http://127.0.0.1:11434",
        "model": "smollm2:135m",
        "outcome": Outcome.OK,
        "intended_s": 10.0,
        "sent_s": 10.5,
        "connected_s": 10.51,
        "headers_s": 10.9,
        "first_token_s": 11.0,
        "last_token_s": 11.4,
        "end_s": 11.5,
        "token_times_s": (11.0, 11.1, 11.2, 11.3, 11.4),
        "output_tokens": 5,
        "prompt_tokens": 30,
        "requested_tokens": 5,
        "done_reason": "length",
        "server": ServerTimings(
            total_s=0.9, load_s=0.05, prompt_tokens=30, prompt_eval_s=0.3, eval_tokens=5, eval_s=0.4
        ),
    }
    return RequestRecord(**(defaults | fields))


def failed(outcome: Outcome = Outcome.HTTP_ERROR, **fields: Any) -> RequestRecord:
    """Return a request that ended at 11.5 without any reply to speak of."""
    nothing = {
        "first_token_s": None,
        "last_token_s": None,
        "token_times_s": (),
        "output_tokens": None,
        "done_reason": None,
        "server": None,
    }
    return record(outcome=outcome, **(nothing | fields))


class TestOneRequest:
    def test_durations_are_differences_of_its_moments(self) -> None:
        request = record()
        assert metrics.send_lag_s(request) == pytest.approx(0.5)
        assert metrics.ttft_s(request) == pytest.approx(0.5)
        assert metrics.planned_ttft_s(request) == pytest.approx(1.0)
        assert metrics.e2e_last_token_s(request) == pytest.approx(0.9)
        assert metrics.e2e_final_line_s(request) == pytest.approx(1.0)
        assert metrics.response_s(request) == pytest.approx(1.5)

    def test_ttft_and_tpot_add_up_to_the_last_token(self) -> None:
        request = record()
        tpot_s = metrics.tpot_s(request)
        assert tpot_s == pytest.approx(0.1)  # 0.4 s, 4 intervals
        assert metrics.ttft_s(request) + 4 * tpot_s == pytest.approx(metrics.e2e_last_token_s(request))

    def test_the_end_token_is_counted_by_the_server_but_never_streamed(self) -> None:
        """48 tokens counted, 47 sent, as llama.cpp does when the model ends by itself."""
        times = tuple(11 + 0.01 * place for place in range(47))
        request = record(token_times_s=times, last_token_s=times[-1], output_tokens=48, done_reason="stop")
        assert metrics.streamed_tokens(request) == 47
        assert metrics.output_tokens(request) == 48
        assert metrics.tpot_s(request) == pytest.approx(0.01)

    def test_tokens_count_rather_than_chunks(self) -> None:
        """Three chunks that carry nine tokens: 0.4 s over 8 intervals."""
        request = record(token_times_s=(11.0, 11.2, 11.4), output_tokens=9)
        assert metrics.tpot_s(request) == pytest.approx(0.05)

    def test_chunks_count_when_the_server_says_nothing(self) -> None:
        request = record(output_tokens=None, done_reason=None, server=None, outcome=Outcome.TRUNCATED)
        assert metrics.output_tokens(request) == 5
        assert metrics.tpot_s(request) == pytest.approx(0.1)

    @pytest.mark.parametrize(
        "request_",
        [
            record(output_tokens=1, token_times_s=(11.0,), last_token_s=11.0),
            record(output_tokens=2, done_reason="stop", token_times_s=(11.0,), last_token_s=11.0),
            record(token_times_s=(11.0,) * 5, last_token_s=11.0, shared_reads=4),
            failed(),
        ],
        ids=["one token", "one token and the end", "all in one read", "none"],
    )
    def test_there_is_no_tpot_without_an_interval(self, request_: RequestRecord) -> None:
        assert metrics.tpot_s(request_) is None

    def test_decode_rate_counts_intervals(self) -> None:
        """The engine's 48 tokens in 825.1 ms are 17.555 ms each: 47 intervals."""
        server = ServerTimings(eval_tokens=48, eval_s=0.8251)
        rate = metrics.decode_tokens_per_s(record(server=server))
        assert rate == pytest.approx(1 / 0.017555, rel=1e-4)

    def test_prefill_rate_is_prompt_tokens_over_their_time(self) -> None:
        assert metrics.prefill_tokens_per_s(record()) == pytest.approx(100.0)

    @pytest.mark.parametrize(
        "server", [None, ServerTimings(), ServerTimings(eval_tokens=1, eval_s=0.1, prompt_tokens=0)]
    )
    def test_rates_are_absent_where_fields_are(self, server: ServerTimings | None) -> None:
        assert metrics.decode_tokens_per_s(record(server=server)) is None
        assert metrics.prefill_tokens_per_s(record(server=server)) is None

    def test_what_never_happened_is_absent_not_zero(self) -> None:
        request = failed(Outcome.REFUSED, sent_s=None, connected_s=None, headers_s=None, end_s=10.6)
        for metric in (
            metrics.send_lag_s,
            metrics.ttft_s,
            metrics.planned_ttft_s,
            metrics.e2e_last_token_s,
            metrics.e2e_final_line_s,
            metrics.response_s,
        ):
            assert metric(request) is None

    def test_a_failure_is_no_response(self) -> None:
        """``end_s`` of a failed request is the moment of failure, not of a final line."""
        for outcome in set(Outcome) - metrics.FINISHED:
            assert metrics.response_s(failed(outcome)) is None
            assert metrics.e2e_final_line_s(failed(outcome)) is None


class TestStages:
    def test_stages_add_up_to_the_final_line(self) -> None:
        """1.0 s = 0.01 connect + 0.05 load + 0.15 slot + 0.3 prompt + 0.4 eval + 0.09 network."""
        found = metrics.stages(record())
        assert found.connect_s == pytest.approx(0.01)
        assert found.slot_wait_s == pytest.approx(0.15)
        assert found.network_s == pytest.approx(0.09)
        parts = (
            found.connect_s,
            found.load_s,
            found.slot_wait_s,
            found.prompt_eval_s,
            found.eval_s,
            found.network_s,
        )
        assert sum(part for part in parts if part is not None) == pytest.approx(1.0)

    def test_a_reused_connection_has_no_connect_and_loses_nothing(self) -> None:
        found = metrics.stages(record(connected_s=None))
        assert found.connect_s is None
        assert found.network_s == pytest.approx(0.1)

    def test_slot_wait_needs_every_field(self) -> None:
        found = metrics.stages(record(server=ServerTimings(total_s=0.9, load_s=0.05, eval_s=0.4)))
        assert found.slot_wait_s is None
        assert found.load_s == 0.05
        assert found.network_s == pytest.approx(0.09)

    def test_without_a_final_line_only_the_connection_is_known(self) -> None:
        found = metrics.stages(failed())
        assert found.connect_s == pytest.approx(0.01)
        assert (found.load_s, found.slot_wait_s, found.network_s) == (None, None, None)


class TestPercentiles:
    @pytest.mark.parametrize(("share", "least"), METHOD_LEAST_N.items())
    def test_least_n_is_the_methods(self, share: float, least: int) -> None:
        assert metrics.least_samples(share) == least

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
    def test_one_value_less_is_not_available(self, share: float) -> None:
        name = f"p{round(share * 100)}"
        least = METHOD_LEAST_N[share]
        assert getattr(metrics.summarise(range(least - 1)), name) is None
        assert getattr(metrics.summarise(range(least)), name) is not None

    def test_nothing_has_no_mean(self) -> None:
        nothing = metrics.summarise([None, None])
        assert (nothing.n, nothing.mean, nothing.p50) == (0, None, None)

    def test_absent_values_are_not_counted(self) -> None:
        assert metrics.summarise([1.0, None, 3.0]).n == 2
        assert metrics.summarise([1.0, None, 3.0]).mean == 2.0

    def test_inflation_divides_n(self) -> None:
        """At load 0.7 p99 needs 16 times as many: 10,592."""
        inflation = metrics.md1_inflation(0.7)
        assert metrics.summarise(range(10_591), inflation=inflation).p99 is None
        assert metrics.summarise(range(10_592), inflation=inflation).p99 is not None

    @given(values_s, shares)
    def test_percentile_agrees_with_numpy(self, values: list[float], share: float) -> None:
        assert metrics.percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)))

    @given(values_s, shares, shares)
    def test_percentiles_do_not_fall(self, values: list[float], one: float, other: float) -> None:
        low, high = sorted((one, other))
        assert metrics.percentile(values, low) <= metrics.percentile(values, high)

    @given(values_s, shares)
    def test_a_percentile_lies_among_the_values(self, values: list[float], share: float) -> None:
        assert min(values) <= metrics.percentile(values, share) <= max(values)

    @given(values_s, st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, values: list[float], rng: random.Random) -> None:
        shuffled = rng.sample(values, len(values))
        assert metrics.summarise(shuffled) == metrics.summarise(values)

    @given(
        st.lists(st.floats(0, 1e6), min_size=1, max_size=200),
        st.sampled_from([0.25, 0.5, 0.75, 0.9, 0.95]),
        st.floats(1, 20),
    )
    def test_an_interval_holds_its_estimate(
        self, values: list[float], share: float, inflation: float
    ) -> None:
        interval = metrics.percentile_interval(values, share, inflation=inflation)
        if interval is not None:
            assert interval[0] <= metrics.percentile(values, share) <= interval[1]

    def test_interval_of_the_median_of_ten(self) -> None:
        """By hand: P(B <= 1) = 11/1024 = 1.1 %, P(B <= 2) = 56/1024 = 5.5 %; so the 2nd and the 9th."""
        assert metrics.percentile_interval(range(1, 11), 0.5) == (2, 9)

    def test_five_values_have_no_interval(self) -> None:
        """P(all five on one side) = 1/32 = 3.1 % is more than 2.5 %."""
        assert metrics.percentile_interval(range(5), 0.5) is None
        assert metrics.percentile_interval(range(6), 0.5) == (0, 5)

    @pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
    def test_intervals_hold_the_truth_in_95_of_100_samples(self, share: float) -> None:
        rng = random.Random(7)
        truth = statistics.NormalDist().inv_cdf(share)
        hits = 0
        for _ in range(600):
            interval = metrics.percentile_interval([rng.gauss(0, 1) for _ in range(700)], share)
            assert interval is not None
            hits += interval[0] <= truth <= interval[1]
        # 95 % or a little more; with 600 samples chance moves it by 0.9 % (one sd).
        assert 0.92 <= hits / 600 <= 0.985

    def test_large_samples_are_no_trouble(self) -> None:
        interval = metrics.percentile_interval(range(1_000_000), 0.99)
        assert interval is not None
        assert interval[0] == pytest.approx(989_805, abs=5)
        assert interval[1] == pytest.approx(990_195, abs=5)


class TestShares:
    def test_wilson_by_hand(self) -> None:
        """8 of 10: centre (0.8 + 0.19207)/1.38415 = 0.71674, half 0.22658; so 0.4902 to 0.9433."""
        share = metrics.wilson_share(8, 10)
        assert share.ratio == 0.8
        assert share.low == pytest.approx(0.4902, abs=1e-4)
        assert share.high == pytest.approx(0.9433, abs=1e-4)

    def test_none_of_none_is_absent(self) -> None:
        share = metrics.wilson_share(0, 0)
        assert (share.ratio, share.low, share.high) == (None, None, None)

    @given(st.integers(1, 10_000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
    def test_the_interval_holds_the_ratio_within_0_and_1(self, counts: tuple[int, int]) -> None:
        share = metrics.wilson_share(*counts)
        assert share.ratio is not None
        assert share.low is not None
        assert share.high is not None
        assert 0 <= share.low <= share.ratio <= share.high <= 1

    @given(st.integers(1, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
    def test_failures_mirror_successes(self, counts: tuple[int, int]) -> None:
        count, of = counts
        good, bad = metrics.wilson_share(count, of), metrics.wilson_share(of - count, of)
        assert good.low == pytest.approx(1 - (bad.high or 0))


class TestDependence:
    def test_equal_groups_inflate_nothing(self) -> None:
        groups = [[1.0, 2.0, 3.0, 4.0]] * 10
        assert metrics.design_effect(groups, 0.5) == 1.0

    def test_groups_of_clones_count_once_each(self) -> None:
        """Twenty gaps that all have their request's own speed tell as much as one."""
        rng = random.Random(1)
        groups = [[rng.random()] * 20 for _ in range(200)]
        assert metrics.design_effect(groups, 0.5) == pytest.approx(20, rel=0.02)

    def test_independent_values_inflate_next_to_nothing(self) -> None:
        rng = random.Random(2)
        groups = [[rng.random() for _ in range(20)] for _ in range(500)]
        assert metrics.design_effect(groups, 0.9) < 1.25

    def test_one_group_tells_nothing_of_the_spread(self) -> None:
        assert metrics.design_effect([[1.0, 2.0], []], 0.5) == math.inf

    @given(
        st.lists(st.lists(st.floats(0, 10), max_size=8), min_size=2, max_size=10),
        st.sampled_from([0.5, 0.9]),
    )
    def test_it_is_never_less_than_one(self, groups: list[list[float]], share: float) -> None:
        assert metrics.design_effect(groups, share) >= 1


class TestLoad:
    def test_warm_up_is_in_no_figure(self) -> None:
        counted = [record(index=place) for place in range(4)]
        warm = record(warmup=True, intended_s=0.0, sent_s=0.0, end_s=99.0, output_tokens=1000)
        for figure in (
            metrics.outcome_counts,
            metrics.success_share,
            metrics.run_window_s,
            metrics.output_tokens_per_s,
            metrics.completed_rps,
            metrics.achieved_rps,
            metrics.shared_read_ratio,
            metrics.summarise_gaps,
            lambda records: metrics.summarise_requests(records, metrics.ttft_s),
            lambda records: metrics.goodput(records, Slo(response_s=60)),
        ):
            assert figure([warm, *counted]) == figure(counted)

    def test_latencies_are_of_completed_requests(self) -> None:
        records = [record(), failed(Outcome.TRUNCATED, first_token_s=60.0)]
        assert metrics.summarise_requests(records, metrics.ttft_s).n == 1

    def test_throughput_counts_completed_tokens_over_the_whole_run(self) -> None:
        """10 tokens from 10.5 to 14.5, though the last to end failed."""
        records = [record(), record(sent_s=11.0), failed(Outcome.TIMEOUT, end_s=14.5, output_tokens=7)]
        assert metrics.run_s(records) == pytest.approx(4.0)
        assert metrics.output_tokens_per_s(records) == pytest.approx(2.5)
        assert metrics.completed_rps(records) == pytest.approx(0.5)

    def test_nothing_completed_is_zero_tokens_per_second_and_nothing_run_is_absent(self) -> None:
        assert metrics.output_tokens_per_s([failed()]) == 0.0
        assert metrics.output_tokens_per_s([]) is None
        assert metrics.run_s([]) is None
        assert metrics.achieved_rps([record()]) is None

    def test_achieved_rate_counts_gaps(self) -> None:
        """Eleven requests sent 0.1 s apart are ten per second, not eleven."""
        records = [record(sent_s=10 + place / 10) for place in range(11)]
        assert metrics.achieved_rps(records) == pytest.approx(10.0)

    def test_success_is_a_share_of_the_planned(self) -> None:
        records = [record(), record(), failed()]
        assert metrics.success_share(records).ratio == pytest.approx(2 / 3)
        cut_off = metrics.success_share(records, planned=8)
        assert (cut_off.count, cut_off.of, cut_off.ratio) == (2, 8, 0.25)

    @given(st.lists(st.sampled_from(list(Outcome))))
    def test_each_request_ends_in_exactly_one_outcome(self, outcomes: list[Outcome]) -> None:
        counts = metrics.outcome_counts(failed(outcome) for outcome in outcomes)
        assert set(counts) == set(Outcome)
        assert sum(counts.values()) == len(outcomes)

    def test_gaps_are_pooled(self) -> None:
        records = [record(index=place) for place in range(10)]
        summary = metrics.summarise_gaps(records)
        assert summary.n == 40
        assert summary.mean == pytest.approx(0.1)
        assert summary.p50 == pytest.approx(0.1)

    def test_gaps_are_not_available_when_lines_share_reads(self) -> None:
        """One chunk in twenty may share a read; with more, gaps are the client's."""
        records = [record(), record(), record(), record(shared_reads=1)]
        assert metrics.shared_read_ratio(records) == 0.05
        assert metrics.summarise_gaps(records).n == 12 + 4
        records[0] = record(shared_reads=1)
        assert metrics.summarise_gaps(records) == metrics.summarise(())

    def test_gaps_of_one_request_are_described_by_their_mean_only(self) -> None:
        times = tuple(11 + place / 100 for place in range(500))
        summary = metrics.summarise_gaps([record(token_times_s=times)])
        assert (summary.n, summary.p50, summary.p90) == (499, None, None)


class TestGoodput:
    def test_times_count_from_the_planned_send(self) -> None:
        """Planned 10.0, sent 10.5, first token 11.0: within 1.0 s, not within 0.9 s."""
        assert Slo(ttft_s=1.0).is_met(record())
        assert not Slo(ttft_s=0.9).is_met(record())
        assert Slo(response_s=1.5, tpot_s=0.11).is_met(record())
        assert not Slo(response_s=1.4).is_met(record())
        assert not Slo(tpot_s=0.09).is_met(record())

    def test_a_missing_metric_is_not_good(self) -> None:
        single = record(output_tokens=1, token_times_s=(11.0,), last_token_s=11.0)
        assert not Slo(tpot_s=1.0).is_met(single)
        assert not Slo(ttft_s=60.0).is_met(failed(Outcome.TRUNCATED, first_token_s=10.6))

    def test_it_is_a_rate_and_a_share_of_the_planned(self) -> None:
        records = [record(), record(end_s=12.5), failed()]
        found = metrics.goodput(records, Slo(response_s=2.0), planned=4)
        assert found.rps == pytest.approx(1 / 2.0)  # one good one; the run is 10.5 to 12.5
        assert found.share.ratio == 0.25

    @pytest.mark.parametrize("limits", [{}, {"ttft_s": 0.0}, {"tpot_s": -1.0}, {"response_s": math.nan}])
    def test_limits_must_mean_something(self, limits: dict[str, float]) -> None:
        with pytest.raises(SettingsError):
            Slo(**limits)


class TestDecodingShares:
    @staticmethod
    def decoding(*spans: tuple[float, float]) -> list[RequestRecord]:
        """Return requests that decode over these spans of a run from 0 to 10."""
        whole = failed(sent_s=0.0, end_s=10.0)
        return [whole, *(record(sent_s=0.0, first_token_s=a, last_token_s=b, end_s=b) for a, b in spans)]

    def test_by_hand(self) -> None:
        """0-2 none, 2-4 one, 4-5 two, 5-6 one, 6-10 none."""
        shares_ = metrics.decoding_shares(self.decoding((2, 5), (4, 6)))
        assert shares_ == pytest.approx((0.6, 0.3, 0.1))

    def test_taking_turns_is_not_overlapping(self) -> None:
        assert metrics.decoding_shares(self.decoding((2, 4), (4, 6))) == pytest.approx((0.6, 0.4))

    def test_warm_up_that_reaches_into_the_run_occupies_the_server(self) -> None:
        warm = record(warmup=True, sent_s=-3.0, first_token_s=-2.0, last_token_s=3.0, end_s=3.0)
        shares_ = metrics.decoding_shares([*self.decoding((2, 4)), warm])
        assert shares_ == pytest.approx((0.6, 0.3, 0.1))  # 0-2 warm-up, 2-3 both, 3-4 one

    def test_no_run_has_no_shares(self) -> None:
        assert metrics.decoding_shares([]) == ()

    @given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)).map(sorted), max_size=12))
    def test_shares_add_up_to_one_and_their_mean_is_the_time_decoded(
        self, spans: list[Sequence[float]]
    ) -> None:
        shares_ = metrics.decoding_shares(self.decoding(*((a, b) for a, b in spans)))
        assert sum(shares_) == pytest.approx(1.0)
        assert all(share >= 0 for share in shares_)
        mean = sum(count * share for count, share in enumerate(shares_))
        assert mean == pytest.approx(sum(b - a for a, b in spans) / 10)


def queue_by_events(planned_s: Sequence[float], service_s: Sequence[float]) -> list[float]:
    """Return response times of one slot by following its clock, as a check of the recursion."""
    free_s, responses = -math.inf, []
    for arrival_s, own_s in zip(planned_s, service_s, strict=True):
        free_s = max(free_s, arrival_s) + own_s
        responses.append(free_s - arrival_s)
    return responses


class TestQueue:
    @pytest.mark.parametrize(("requests", "mean_s"), [(10, 1.805), (20, 3.355), (100, 15.755)])
    def test_ten_a_second_into_a_slot_of_410_ms(self, requests: int, mean_s: float) -> None:
        responses = metrics.lindley_response_s([place / 10 for place in range(requests)], [0.41] * requests)
        assert statistics.fmean(responses) == pytest.approx(mean_s)
        assert responses == pytest.approx([0.41 + 0.31 * place for place in range(requests)])

    def test_below_saturation_nobody_waits(self) -> None:
        responses = metrics.lindley_response_s([place / 2 for place in range(50)], [0.41] * 50)
        assert set(responses) == {0.41}

    def test_one_stall_hurts_those_behind_it(self) -> None:
        """30 requests at 1/s, 5 s more on the 10th: mean 1.202 s, most 5.41 s, service mean 0.577 s."""
        service_s = [0.41 + (5 if place == 9 else 0) for place in range(30)]
        responses = metrics.lindley_response_s(range(30), service_s)
        assert statistics.fmean(responses) == pytest.approx(1.202, abs=5e-4)
        assert max(responses) == pytest.approx(5.41)
        assert statistics.fmean(service_s) == pytest.approx(0.577, abs=5e-4)

    @given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), max_size=50))
    def test_the_recursion_agrees_with_following_the_clock(self, jobs: list[tuple[float, float]]) -> None:
        planned_s = sorted(arrival_s for arrival_s, _ in jobs)
        service_s = [own_s for _, own_s in jobs]
        expected = queue_by_events(planned_s, service_s)
        assert metrics.lindley_response_s(planned_s, service_s) == pytest.approx(expected, abs=1e-9)

    def test_plans_and_services_go_together(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            metrics.lindley_response_s([0.0, 1.0], [0.4])

    def test_past_saturation_responses_grow_with_every_request(self) -> None:
        assert metrics.offered_load_ratio(10, 0.41) == pytest.approx(4.1)
        assert metrics.growth_per_request_s(10, 0.41) == pytest.approx(0.31)
        assert metrics.growth_per_request_s(10, 0.41, slots=8) is None
        assert metrics.growth_per_request_s(10, 0.4, slots=4) == pytest.approx(0.0)

    @pytest.mark.parametrize(
        ("load_ratio", "median", "tail"),
        [(0.0, 1, 1), (0.5, 2, 6), (0.7, 6, 16), (0.8, 14, 42), (0.9, 57, 162), (0.75, 10, 29)],
    )
    def test_inflation_is_the_methods(self, load_ratio: float, median: float, tail: float) -> None:
        inflation = metrics.md1_inflation(load_ratio)
        assert inflation[0.5] == pytest.approx(median)
        assert inflation[0.99] == pytest.approx(tail)

    def test_past_the_table_no_percentile_is_shown(self) -> None:
        summary = metrics.summarise(range(100_000), inflation=metrics.md1_inflation(0.95))
        assert (summary.p50, summary.p99) == (None, None)
        assert summary.mean is not None

    @given(st.floats(0, 2), st.floats(0, 2))
    def test_inflation_grows_with_load(self, one: float, other: float) -> None:
        low, high = sorted((one, other))
        for share in metrics.PERCENTILES:
            assert metrics.md1_inflation(low)[share] <= metrics.md1_inflation(high)[share]


def test_the_public_list_is_sorted_and_complete() -> None:
    assert metrics.__all__ == sorted(metrics.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(metrics, name) for name in metrics.__all__)
