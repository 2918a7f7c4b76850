"""Deciding what to keep warm: forecasts, worth against cost, room, and what is known of a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
from warm_world import call

from ollamalab.protocol.loaded import LoadedModel
from ollamalab.protocol.names import parse_name
from ollamalab.settings import WarmupSettings
from ollamalab.warmup import Keeper, Preload, preload_of
from ollamalab.warmup.controller import Decision
from ollamalab.warmup.gaps import Forecast, IdleGaps
from ollamalab.warmup.room import Room
from ollamalab.warmup.warmth import Step, Warmth

KEEP_S, LOAD_S = 300.0, 30.0


def key(name: str) -> str:
    return parse_name(name).key


def loaded(name: str, *, gib: float = 1.0, expires_s: float = 0.0) -> LoadedModel:
    size_bytes = round(gib * 2**30)
    return LoadedModel(
        name=name,
        key=key(name),
        expires_unix_s=expires_s,
        size_bytes=size_bytes,
        size_vram_bytes=size_bytes,
        context_tokens=4096,
    )


class Desk:
    """A keeper whose server is played by the test; its clock is set by hand."""

    def __init__(self, **settings: Any) -> None:
        self.keeper = Keeper(WarmupSettings(**{"keep": "auto", **settings}))
        self.now_s = 0.0

    def use(self, name: str, *, load_s: float = 0.001, takes_s: float = 1.0, **fields: Any) -> None:
        visit = self.keeper.begun(call(name, **fields), lambda: self.now_s)
        self.now_s += takes_s
        visit.answering()
        visit.ended(load_s)

    def fail(self, name: str) -> None:
        self.keeper.begun(call(name), lambda: self.now_s).ended()

    def show(self, **expires_s: float) -> None:
        listed = [loaded(name, expires_s=end_s) for name, end_s in expires_s.items()]
        self.keeper.listed(self.now_s, listed, {key(name): end_s for name, end_s in expires_s.items()})

    def rhythm(self, name: str, gap_s: float, count: int = 5) -> None:
        """Let a model be used again and again, loaded anew each time, and leave it loaded."""
        for _ in range(count):
            self.use(name, load_s=LOAD_S)
            self.now_s += gap_s
        self.use(name, load_s=LOAD_S)
        self.show(**{name: self.now_s + KEEP_S})

    def decide(self) -> Decision | None:
        return self.keeper.decide(self.now_s)

    def do(self, *, took_s: float | None = LOAD_S) -> Preload:
        decision = self.decide()
        assert decision is not None
        preload = self.keeper.step_begun(decision, self.now_s)
        self.keeper.step_ended(decision, self.now_s, took_s=took_s)
        return preload

    def warmth(self, name: str) -> Warmth:
        return self.keeper.models[key(name)]


RENEW_A, LOAD_A = Decision(step=Step.RENEW, key=key("a")), Decision(step=Step.LOAD, key=key("a"))


class TestGaps:
    def forecast(self, gaps: IdleGaps, idle_s: float, start_s: float, end_s: float, **at: float) -> Forecast:
        return gaps.forecast(idle_s=idle_s, start_s=start_s, end_s=end_s, now_s=at.get("now_s", 0.0))

    def test_nothing_known_is_nothing_expected(self):
        assert self.forecast(IdleGaps(), 0, 0, 100) == Forecast(use_ratio=0, held_s=100)

    def test_remembered_gaps_are_replayed_beside_one_that_never_ends(self):
        gaps = IdleGaps()
        for gap_s in (100, 200, 400):
            gaps.note(gap_s, 0.0)
        found = self.forecast(gaps, 50, 150, 300)
        assert found.use_ratio == 1 / 4  # only the one of 200 s ends within
        assert found.held_s == ((200 - 150) + (300 - 150) + (300 - 150)) / 4

    def test_gaps_shorter_than_the_present_one_count_no_more(self):
        gaps = IdleGaps()
        gaps.note(100, 0.0)
        assert self.forecast(gaps, 150, 150, 300).use_ratio == 0

    def test_what_happened_two_days_ago_counts_half(self):
        gaps = IdleGaps()
        gaps.note(200, 0.0)
        assert self.forecast(gaps, 0, 100, 300).use_ratio == 1 / 2
        assert self.forecast(gaps, 0, 100, 300, now_s=2 * 86400).use_ratio == pytest.approx(0.5 / 1.5)

    def test_a_busy_model_takes_little_memory(self):
        gaps = IdleGaps()
        for index in range(10_000):
            gaps.note(0.1 * index, float(index))
        assert len(gaps._buckets) < 100


class TestRenewal:
    def test_a_model_is_renewed_just_before_its_time_is_up_if_it_is_used_in_a_rhythm(self):
        desk = Desk()
        desk.rhythm("a", gap_s=400)
        desk.now_s += KEEP_S - 11
        assert desk.decide() is None
        desk.now_s += 1
        assert desk.decide() == RENEW_A

    def test_it_is_let_go_when_no_gap_was_ever_so_long(self):
        desk = Desk()
        desk.rhythm("a", gap_s=100)
        desk.now_s += KEEP_S - 5
        assert desk.decide() is None

    def test_it_is_let_go_when_the_wait_is_worth_less_than_the_memory(self):
        """By default 5 minutes cost as much as 3 s of waiting: worth a load of 30 s, not one of 2 s."""
        assert self.is_renewed(load_s=30, hold_cost=0.01)
        assert not self.is_renewed(load_s=2, hold_cost=0.01)
        assert self.is_renewed(load_s=2, hold_cost=0.001)
        assert not self.is_renewed(load_s=30, hold_cost=1)

    def is_renewed(self, *, load_s: float, hold_cost: float) -> bool:
        desk = Desk(hold_cost=hold_cost)
        desk.rhythm("a", gap_s=500)
        desk.warmth("a").load_s = load_s
        desk.now_s += KEEP_S - 5
        return desk.decide() == RENEW_A

    def test_it_goes_by_whatever_foretells_use(self):
        class Oracle:
            def note(self, gap_s: float, now_s: float) -> None: ...

            def forecast(self, *, idle_s: float, start_s: float, end_s: float, now_s: float) -> Forecast:
                return Forecast(use_ratio=0.5, held_s=end_s - start_s)

        desk = Desk()
        desk.use("a", load_s=LOAD_S)
        desk.show(a=desk.now_s + KEEP_S)
        desk.warmth("a").gaps = Oracle()
        desk.now_s += KEEP_S - 5
        assert desk.decide() == RENEW_A

    def test_one_that_stays_for_ever_or_is_in_use_needs_none(self):
        desk = Desk()
        desk.rhythm("a", gap_s=400)
        desk.show(a=math.inf)
        desk.now_s += KEEP_S - 5
        assert desk.decide() is None

    def test_it_keeps_the_load_options_and_leaves_the_keep_alive_alone(self):
        desk = Desk()
        desk.rhythm("a", gap_s=400)
        desk.use("a", options={"num_ctx": 8192, "temperature": 0}, keep_alive="5m", shift=False)
        desk.show(a=desk.now_s + KEEP_S)
        desk.now_s += KEEP_S - 5
        preload = desk.do(took_s=0.001)
        assert preload == Preload(model="a", options={"num_ctx": 8192}, shift=False)
        assert desk.warmth("a").expires_s == desk.now_s + KEEP_S

    def test_a_renewal_under_way_is_not_begun_twice(self):
        desk = Desk()
        desk.rhythm("a", gap_s=400)
        desk.now_s += KEEP_S - 5
        decision = desk.decide()
        assert decision is not None
        desk.keeper.step_begun(decision, desk.now_s)
        assert desk.decide() is None


class TestLoading:
    def test_what_a_restart_took_is_loaded_again_if_its_use_pays(self):
        desk = Desk()
        desk.rhythm("a", gap_s=200)
        desk.now_s += 100
        desk.show()
        assert desk.decide() == LOAD_A

    def test_what_nobody_is_expected_to_want_is_not(self):
        desk = Desk()
        desk.rhythm("a", gap_s=50)
        desk.now_s += 100
        desk.show()
        assert desk.decide() is None

    def test_it_is_loaded_as_its_last_request_would_have(self):
        desk = Desk()
        desk.rhythm("a", gap_s=200)
        desk.use("a", options={"num_ctx": 8192}, keep_alive=KEEP_S)
        desk.now_s += 100
        desk.show()
        assert desk.do() == Preload(model="a", options={"num_ctx": 8192}, keep_alive=KEEP_S)

    def test_a_load_that_was_lost_unused_is_not_repeated(self):
        """Two models that throw each other out would never come to rest."""
        desk = Desk()
        desk.rhythm("a", gap_s=200)
        desk.now_s += 50
        desk.show()
        desk.do()
        desk.show(a=desk.now_s + KEEP_S)
        desk.now_s += 10
        desk.show()
        assert desk.decide() is None
        desk.use("a", load_s=LOAD_S)
        desk.show()
        assert desk.decide() == LOAD_A

    def test_never_two_loads_at_once(self):
        desk = Desk(models=("a", "b"))
        desk.show()
        decision = desk.decide()
        assert decision is not None
        desk.keeper.step_begun(decision, desk.now_s)
        assert desk.decide() is None
        desk.keeper.step_ended(decision, desk.now_s, took_s=1.0)
        second = desk.decide()
        assert second is not None
        assert {decision.key, second.key} == {key("a"), key("b")}

    def test_nor_beside_the_load_of_a_request(self):
        desk = Desk(models=("a",))
        desk.show()
        visit = desk.keeper.begun(call("b"), lambda: desk.now_s)
        assert desk.decide() is None
        visit.answering()
        visit.ended(1.0)
        assert desk.decide() == LOAD_A

    def test_a_wanted_model_does_not_throw_one_in_use_out(self):
        desk = Desk(models=("a",))
        desk.show()
        visit = desk.keeper.begun(call("b"), lambda: desk.now_s)
        visit.answering()
        desk.show(b=desk.now_s + KEEP_S)
        assert desk.decide() is None

    def test_a_model_whose_requests_unload_it_at_once_is_left_alone(self):
        desk = Desk(hold_cost=0)
        for _ in range(5):
            desk.use("a", load_s=LOAD_S, keep_alive=0)
            desk.now_s += 100
        desk.show()
        assert not desk.warmth("a").is_resident
        assert desk.decide() is None

    def test_wanted_models_are_loaded_at_the_start_and_after_a_restart_even_if_nothing_is_kept(self):
        desk = Desk(models=("a",), keep="off")
        desk.show()
        desk.do()
        assert desk.decide() is None
        desk.show(a=desk.now_s + KEEP_S)
        desk.now_s += 10
        desk.show()
        assert desk.decide() == LOAD_A

    def test_a_model_that_its_server_shows_by_another_name_is_loaded_once(self):
        """Two names of one file share an engine, and only one of them is listed."""
        desk = Desk(models=("alias",), keep="off")
        desk.show()
        desk.do(took_s=0.001)
        for _ in range(3):
            desk.now_s += 10
            desk.show(a=desk.now_s + KEEP_S)
            assert desk.decide() is None

    def test_a_failed_load_is_not_repeated(self):
        desk = Desk(models=("a",))
        desk.show()
        desk.do(took_s=None)
        assert desk.decide() is None
        assert desk.warmth("a").totals(desk.now_s).failures == 1


class TestRoom:
    def test_an_empty_server_takes_a_model(self):
        assert Room().fits(key("a"), [])

    def test_what_was_held_together_once_is_held_again(self):
        room, a, b = Room(), loaded("a"), loaded("b")
        room.note([a], is_full=False)
        assert not room.fits(key("b"), [a])
        room.note([a, b], is_full=False)
        room.note([a], is_full=False)
        assert room.fits(key("b"), [a])

    def test_more_memory_than_was_ever_taken_is_not_tried_for(self):
        room, small, other, big = Room(), loaded("a"), loaded("b"), loaded("c", gib=5)
        room.note([small, other], is_full=False)
        room.note([big], is_full=False)
        room.note([small], is_full=False)
        assert not room.fits(key("c"), [small])
        assert room.fits(key("b"), [small])

    def test_a_model_that_had_to_go_shows_that_it_is_full(self):
        room, a, b = Room(), loaded("a"), loaded("b")
        room.note([a, b], is_full=False)
        room.note([b], is_full=True)
        assert not room.fits(key("a"), [b])

    def test_an_evicted_model_is_not_loaded_beside_the_one_it_made_way_for(self):
        desk = Desk()
        desk.rhythm("a", gap_s=200)
        desk.use("b", load_s=1.0)
        desk.show(b=desk.now_s + KEEP_S)
        assert not desk.warmth("a").is_resident
        assert desk.decide() is None
        desk.now_s += 5
        desk.show()
        assert desk.decide() is not None


class TestBooks:
    def totals(self, desk: Desk, name: str = "a") -> tuple[int, int, int, int]:
        totals = desk.warmth(name).totals(desk.now_s)
        return totals.avoided, totals.suffered, totals.wasted, totals.undecided

    def held(self, **settings: Any) -> Desk:
        """Return a desk whose model a is in memory only because of a renewal."""
        desk = Desk(**settings)
        desk.rhythm("a", gap_s=400)
        desk.now_s += KEEP_S - 10
        desk.do(took_s=0.001)
        desk.show(a=desk.now_s + KEEP_S)
        desk.now_s += 100
        return desk

    def test_a_request_that_found_it_only_because_of_us_was_spared_a_load(self):
        desk = self.held()
        before = self.totals(desk)
        desk.use("a")
        assert self.totals(desk) == (before[0] + 1, before[1], 0, 0)
        totals = desk.warmth("a").totals(desk.now_s)
        assert (totals.saved_s, totals.held_s, totals.wasted_s) == (LOAD_S, 90.0, 0.0)

    def test_one_before_the_natural_end_was_not(self):
        desk = Desk()
        desk.rhythm("a", gap_s=400)
        desk.now_s += KEEP_S - 10
        desk.do(took_s=0.001)
        desk.now_s += 5
        desk.use("a")
        assert self.totals(desk)[0] == 0
        assert desk.warmth("a").totals(desk.now_s).held_s == 0

    def test_nobody_came(self):
        desk = self.held()
        desk.now_s += 1000
        desk.show()
        totals = desk.warmth("a").totals(desk.now_s)
        assert (totals.wasted, totals.held_s, totals.wasted_s) == (1, 290.0, 290.0)

    def test_it_made_room_for_another_before_anybody_looked(self):
        """It went when the load of the other began, not when that was seen."""
        desk = self.held()
        desk.now_s += 3
        desk.use("b", load_s=LOAD_S, takes_s=LOAD_S + 1)
        desk.now_s += 6
        desk.show(b=desk.now_s + KEEP_S)
        totals = desk.warmth("a").totals(desk.now_s)
        assert (totals.wasted, totals.held_s, totals.wasted_s) == (1, 93.0, 93.0)

    def test_it_was_still_there_after_the_last_load_of_another_or_that_was_none(self):
        desk = self.held()
        desk.use("b", load_s=LOAD_S, takes_s=10.0)
        desk.show(a=desk.now_s + 190, b=desk.now_s + KEEP_S)
        desk.now_s += 5
        desk.fail("nope")
        desk.now_s += 5
        desk.show()
        assert desk.warmth("a").totals(desk.now_s).held_s == 110.0

    def test_time_that_runs_is_counted_until_the_expiry_even_between_two_looks(self):
        desk = self.held()
        assert desk.warmth("a").totals(desk.now_s).held_s == 90.0
        assert desk.warmth("a").totals(desk.now_s + 1000).held_s == 290.0

    def test_a_request_that_still_had_to_wait_had_lost_it_unseen(self):
        desk = self.held()
        suffered = self.totals(desk)[1]
        desk.use("a", load_s=20.0)
        assert self.totals(desk) == (0, suffered + 1, 1, 0)

    def test_a_request_that_fails_says_nothing(self):
        desk = self.held()
        suffered = self.totals(desk)[1]
        desk.fail("a")
        assert self.totals(desk) == (0, suffered, 0, 1)

    def test_somebody_else_prolonged_it(self):
        """A client that goes round the gateway, or another gateway, makes the time ours no longer."""
        desk = self.held()
        desk.show(a=desk.now_s + KEEP_S)
        desk.now_s += 200
        totals = desk.warmth("a").totals(desk.now_s)
        assert (totals.undecided, totals.held_s) == (1, 90.0)

    def test_an_answer_under_v1_is_judged_by_what_was_known(self):
        desk = self.held()
        visit = desk.keeper.begun(call("a"), lambda: desk.now_s)
        visit.answering()
        visit.ended()
        assert self.totals(desk)[0] == 1

    def test_models_that_nobody_has_are_forgotten(self):
        desk = Desk()
        for index in range(100):
            desk.fail(f"nope{index}")
        desk.use("a")
        desk.show()
        assert list(desk.keeper.models) == [key("a")]

    def test_an_end_counts_once(self):
        desk = self.held()
        visit = desk.keeper.begun(call("a"), lambda: desk.now_s)
        for _ in range(3):
            visit.ended()
        assert desk.warmth("a").in_flight == 0

    def test_an_answer_of_the_server_from_before_a_request_is_out_of_date(self):
        desk = Desk()
        desk.use("a", load_s=LOAD_S)
        asked_s = desk.now_s - 0.5
        desk.keeper.listed(asked_s, [], {})
        assert desk.warmth("a").is_resident

    def test_how_long_a_server_keeps_a_model_is_learnt(self):
        desk = Desk()
        desk.use("a")
        desk.show(a=desk.now_s + 1800)
        assert desk.warmth("a").keep_s == 1800
        desk.use("a", keep_alive="10m")
        assert desk.warmth("a").keep_s == 600
        desk.use("a")  # what a request says about it sticks
        assert desk.warmth("a").keep_s == 600


class TestPreload:
    def test_only_what_decides_the_load_is_taken_over(self):
        found = preload_of(call("a", options={"num_ctx": 1, "seed": 2}, keep_alive=-1, system="s"))
        assert found == Preload(model="a", options={"num_ctx": 1}, keep_alive=-1)
        assert found.request().path == "/api/generate"
        assert found.request().body == b'{"model":"a","options":{"num_ctx":1},"keep_alive":-1}\n'

    def test_a_model_of_vectors_is_loaded_by_their_endpoint(self):
        request = Preload(model="a", is_embedding=True, shift=False).request()
        assert (request.path, request.body) == ("/api/embed", b'{"model":"a","input":[]}\n')

    def test_nothing_asked_is_nothing_said(self):
        assert Preload(model="a").request().body == b'{"model":"a"}\n'
