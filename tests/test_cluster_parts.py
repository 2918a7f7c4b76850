"""The deciding parts of a cluster: breakers, budget, health, who may take what, one list of many."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ollamalab.cluster.breaker import Breaker, BreakerState
from ollamalab.cluster.budget import BURST, RETRY_RATIO, RetryBudget
from ollamalab.cluster.health import FAILED_PROBES, Health
from ollamalab.cluster.member import Member
from ollamalab.cluster.merging import LISTS, merge_lists
from ollamalab.cluster.prompts import prompt_of
from ollamalab.cluster.roster import Roster
from ollamalab.cluster.usual import Usual
from ollamalab.cluster.verdict import Verdict, retry_after_s, verdict_of_error, verdict_of_status
from ollamalab.errors import BadReply, UpstreamTimeout, UpstreamUnavailable
from ollamalab.protocol.calls import call_of
from ollamalab.protocol.listed import listed_digests
from ollamalab.protocol.upstream import Request
from ollamalab.queueing import Work

KEY = "registry.ollama.ai/library/m:latest"


class TestBreaker:
    def broken(self, now_s: float = 0.0) -> Breaker:
        breaker = Breaker(random.Random(1))
        assert [breaker.failed(now_s, is_trial=False) for _ in range(3)] == [False, False, True]
        return breaker

    def test_three_failures_in_a_row_open_it_and_a_success_between_does_not(self) -> None:
        assert self.broken().state(0.0) is BreakerState.OPEN
        breaker = Breaker(random.Random(1))
        for _ in range(3):
            assert not breaker.failed(0.0, is_trial=False)
            assert not breaker.failed(0.0, is_trial=False)
            breaker.succeeded(0.0)
        assert breaker.failed(0.0, is_trial=False)  # the tenth, of which seven failed

    def test_half_of_the_last_twenty_open_it(self) -> None:
        breaker = Breaker(random.Random(1))
        for _ in range(20):
            breaker.succeeded(0.0)
        outcomes = []
        while breaker.state(0.0) is BreakerState.CLOSED:
            breaker.succeeded(0.0)
            outcomes.append(breaker.failed(0.0, is_trial=False))
        assert len(outcomes) == 10

    def test_it_waits_longer_after_each_failed_trial_but_not_without_end(self) -> None:
        breaker, now_s, waits = self.broken(), 0.0, []
        for _ in range(8):
            waits.append(breaker.retry_s - now_s)
            now_s = breaker.retry_s
            assert breaker.sent(now_s)
            assert breaker.failed(now_s, is_trial=True)
        for wait_s, nominal_s in zip(waits, (2, 4, 8, 16, 32, 60, 60, 60), strict=True):
            assert 0.8 * nominal_s <= wait_s <= 1.2 * nominal_s

    def test_one_request_is_on_trial_and_its_end_decides(self) -> None:
        breaker = self.broken()
        now_s = breaker.retry_s
        assert breaker.state(now_s) is BreakerState.HALF_OPEN
        assert (breaker.sent(now_s), breaker.admits(now_s), breaker.sent(now_s)) == (True, False, False)
        breaker.undecided()
        assert breaker.admits(now_s)
        assert breaker.sent(now_s)
        assert breaker.succeeded(now_s)
        assert breaker.state(now_s) is BreakerState.CLOSED

    def test_answers_from_before_it_opened_do_not_close_it(self) -> None:
        breaker = self.broken(now_s=10.0)
        assert not breaker.succeeded(sent_s=9.0)
        assert breaker.state(10.0) is BreakerState.OPEN

    def test_a_knock_lets_the_trial_through_at_once(self) -> None:
        breaker = self.broken()
        assert not breaker.admits(0.0)
        assert breaker.knock()
        assert breaker.admits(0.0)


class BreakerMachine(RuleBasedStateMachine):
    """However requests come and end, at most one trial is under way, and a closed one lets all through."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(random.Random(0))
        self.now_s = 0.0
        self.under_way: list[tuple[float, bool]] = []

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def a_request_is_sent(self) -> None:
        self.now_s += 0.001
        admitted = self.breaker.admits(self.now_s)
        is_trial = self.breaker.sent(self.now_s)
        assert not is_trial or (admitted and not any(self.is_current(*other) for other in self.under_way))
        self.under_way.append((self.now_s, is_trial))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), fate=st.sampled_from(["answered", "failed", "left"]))
    def a_request_ends(self, data: st.DataObject, fate: str) -> None:
        sent_s, is_trial = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if fate == "answered":
            self.breaker.succeeded(sent_s)
        elif fate == "failed":
            self.breaker.failed(self.now_s, is_trial=self.is_current(sent_s, is_trial))
        elif self.is_current(sent_s, is_trial):
            self.breaker.undecided()

    def is_current(self, sent_s: float, is_trial: bool) -> bool:
        """Return whether a request is the trial of this opening; an older one says nothing of it."""
        return is_trial and sent_s >= self.breaker.opened_s > -math.inf

    @invariant()
    def states_agree(self) -> None:
        state = self.breaker.state(self.now_s)
        if state is BreakerState.CLOSED:
            assert self.breaker.admits(self.now_s)
            assert self.breaker.retry_s == -math.inf
        if state is BreakerState.OPEN:
            assert not self.breaker.admits(self.now_s)
        assert self.breaker.admits(self.now_s + 100.0) or any(is_trial for _, is_trial in self.under_way)


TestBreakerMachine = BreakerMachine.TestCase


@given(st.lists(st.booleans(), max_size=300))
def test_retries_stay_within_a_share_of_any_requests_and_a_burst(steps: list[bool]) -> None:
    """True is a request, False one that would be sent again; every stretch of them keeps the bound."""
    budget = RetryBudget()
    taken: list[int] = []
    requests: list[int] = []
    for is_request in steps:
        if is_request:
            budget.note_request()
        requests.append(is_request)
        taken.append(0 if is_request else budget.take())
    for start in range(0, len(steps), 7):
        for end in range(start, len(steps), 7):
            assert sum(taken[start:end]) <= BURST + RETRY_RATIO * sum(requests[start:end]) + 1e-6
    assert budget.denied == steps.count(False) - sum(taken)


class TestHealth:
    def test_it_takes_some_probes_to_go_down_and_one_to_come_back(self) -> None:
        health = Health()
        assert [health.unanswered() for _ in range(FAILED_PROBES + 1)] == [False, False, True, False]
        assert (health.answered(), health.is_up, health.answered()) == (True, True, False)

    def test_an_answer_between_makes_the_count_begin_anew(self) -> None:
        health = Health()
        for _ in range(3):
            health.unanswered()
            health.unanswered()
            assert health.is_suspect
            health.answered()
        assert health.is_up

    def test_nobody_listening_is_down_at_once(self) -> None:
        health = Health()
        assert (health.unreachable(), health.is_up, health.unreachable()) == (True, False, False)

    def test_busy_lasts_longer_each_time_or_as_long_as_asked(self) -> None:
        health, now_s, spans = Health(), 0.0, []
        for _ in range(5):
            health.refused(now_s, None)
            spans.append(health.busy_until_s - now_s)
            now_s = health.busy_until_s
        assert spans == [1.0, 2.0, 4.0, 5.0, 5.0]
        health.refused(now_s, 30.0)
        assert health.busy_until_s == now_s + 30.0
        health.refused(now_s, 1e6)
        assert health.busy_until_s == now_s + 60.0

    def test_many_refusals_at_once_are_one(self) -> None:
        health = Health()
        for _ in range(50):
            health.refused(0.0, None)
        assert health.busy_until_s <= 2.0

    def test_after_it_accepted_again_the_next_time_is_the_first(self) -> None:
        health = Health()
        for moment in (0.0, 10.0, 20.0):
            health.refused(moment, None)
        health.accepted(30.0)
        health.refused(30.0, None)
        assert health.busy_until_s == 31.0


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ANSWERED),
        (400, Verdict.ANSWERED),
        (404, Verdict.MISSING),
        (429, Verdict.BUSY),
        (500, Verdict.FAILED),
        (502, Verdict.FAILED),
        (503, Verdict.BUSY),
    ],
)
def test_each_status_has_its_verdict(status: int, verdict: Verdict) -> None:
    assert verdict_of_status(status) is verdict


def test_only_what_may_be_worked_on_twice_costs_budget() -> None:
    found = {verdict_of_error(kind("x")) for kind in (UpstreamUnavailable, BadReply)}
    assert found == {Verdict.UNREACHED, Verdict.LOST}
    assert not any(verdict.costs_budget for verdict in found)
    assert verdict_of_error(UpstreamTimeout("x")).costs_budget
    assert verdict_of_status(503).costs_budget


@pytest.mark.parametrize(
    ("text", "seconds"), [("7", 7.0), (" 12 ", 12.0), ("soon", None), ("-1", None), ("1e9", None)]
)
def test_retry_after_is_read_in_seconds(text: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": text}) == seconds
    assert retry_after_s({}) is None


class Nobody:
    """An upstream that is never asked."""

    async def send(self, request: Request) -> None:
        raise AssertionError(request)


def roster_of(*names: str, models: tuple[str, ...] = (KEY,)) -> tuple[Roster, list[Member]]:
    members = [Member(name, Nobody()) for name in names]  # type: ignore[arg-type]
    roster = Roster(places=None, rng=random.Random(0))
    roster.set_members(members)
    for member in members:
        roster.set_digests(member, dict.fromkeys(models, "d"))
    return roster, members


def names_in(roster: Roster, now_s: float = 0.0, key: str = KEY) -> list[str]:
    return [view.name for view in roster.pool(key, now_s).candidates.members]


class TestRoster:
    def test_the_pool_is_the_same_until_something_changes_and_turns_survive_a_change_back(self) -> None:
        roster, (a, _, _) = roster_of("a", "b", "c")
        first = roster.pool(KEY, 0.0)
        assert roster.pool(KEY, 1e9) is first
        a.health.unreachable()
        roster.changed()
        assert names_in(roster) == ["b", "c"]
        a.health.answered()
        roster.changed()
        assert roster.pool(KEY, 0.0).candidates.members is first.candidates.members

    def test_who_is_busy_returns_when_its_time_is_over(self) -> None:
        roster, (a, _) = roster_of("a", "b")
        a.health.refused(0.0, 5.0)
        roster.changed()
        assert names_in(roster, 4.9) == ["b"]
        assert names_in(roster, 5.0) == ["a", "b"]

    def test_a_breaker_concerns_one_model_only(self) -> None:
        roster, (a, _) = roster_of("a", "b", models=(KEY, "other"))
        for _ in range(3):
            roster.replica(a, KEY).breaker.failed(0.0, is_trial=False)
        roster.changed()
        assert names_in(roster) == ["b"]
        assert names_in(roster, key="other") == ["a", "b"]

    def test_if_none_is_ready_those_that_are_up_and_then_all(self) -> None:
        roster, (a, b) = roster_of("a", "b")
        a.health.unreachable()
        b.health.refused(0.0, 9.0)
        roster.changed()
        assert names_in(roster) == ["b"]
        b.health.unreachable()
        roster.changed()
        assert names_in(roster) == ["a", "b"]

    def test_if_none_is_ready_the_first_that_is_so_again_is_alone(self) -> None:
        """All stood in for nobody; time alone ends that, without a change that is told."""
        roster, (a, b) = roster_of("a", "b")
        a.health.refused(0.0, 2.0)
        b.health.refused(0.0, 5.0)
        roster.changed()
        assert names_in(roster, 1.9) == ["a", "b"]
        assert names_in(roster, 2.0) == ["a"]
        assert names_in(roster, 5.0) == ["a", "b"]

    def test_a_model_on_no_list_may_be_where_no_list_is_known(self) -> None:
        roster, (a, _) = roster_of("a", "b")
        a.digests = None
        roster.changed()
        assert names_in(roster, key="unheard of") == ["a"]
        roster.set_digests(a, {})
        assert names_in(roster, key="unheard of") == ["a", "b"]
        assert names_in(roster) == ["b"]

    def test_residency_is_kept_in_the_pool_without_a_new_one(self) -> None:
        roster, (a, b) = roster_of("a", "b")
        pool = roster.pool(KEY, 0.0)
        roster.set_resident(b, KEY, is_resident=True)
        assert pool.candidates.resident == [b.view]
        roster.set_loaded(a, frozenset([KEY]), before=frozenset())
        roster.set_loaded(b, frozenset(), before=roster.loaded(b))
        assert pool.candidates.resident == [a.view]
        assert roster.pool(KEY, 0.0) is pool

    def test_a_list_from_before_the_end_of_a_load_does_not_undo_it(self) -> None:
        """Else the next request would go elsewhere and load the model there as well."""
        roster, (a, _) = roster_of("a", "b")
        roster.set_resident(a, "old", is_resident=True)
        asked = roster.loaded(a)
        roster.set_resident(a, KEY, is_resident=True)
        roster.set_loaded(a, frozenset(["other"]), before=asked)
        assert roster.loaded(a) == {KEY, "other"}

    def test_places_are_those_of_all_that_may_be_asked(self) -> None:
        roster, (a, _, _) = roster_of("a", "b", "c")
        assert roster.limit(KEY, 0.0) == 6  # one each, and one on trial
        a.health.unreachable()
        roster.changed()
        assert roster.limit(KEY, 0.0) == 4
        roster.places = 3
        roster.changed()
        assert roster.limit("other", 0.0) == 6

    def test_more_room_is_told_of_when_time_alone_makes_it(self) -> None:
        roster, (a, _) = roster_of("a", "b")
        told: list[int] = []
        a.health.refused(0.0, 5.0)
        roster.changed()
        roster.pool(KEY, 0.0)
        roster.on_change = lambda: told.append(1)
        roster.expire(4.0)
        assert told == []
        roster.expire(5.0)
        assert told == [1]

    def test_names_that_clients_make_up_are_not_kept_for_ever(self) -> None:
        roster, (a,) = roster_of("a")
        for number in range(5000):
            roster.replica(a, f"made-up-{number}")
            roster.pool(f"made-up-{number}", 0.0)
        roster.replica(a, KEY)
        assert len(a.replicas) == len(a.view.models) < 300
        assert len(roster._pools) <= 1024

    def test_a_speed_is_forgotten_once_others_are_a_minute_newer(self) -> None:
        """Else a server that was slow once would never be asked again; a quiet hour forgets nothing."""
        roster, (a, b) = roster_of("a", "b")
        for member in (a, b):
            work = Work(output_tokens=10, busy_s=1.0)
            roster.note_answer(roster.replica(member, KEY), KEY, work, 0.0, None)
        for moment in (50.0, 3600.0):
            work = Work(output_tokens=20, busy_s=1.0)
            roster.note_answer(roster.replica(b, KEY), KEY, work, moment, None)
            for member in (a, b):
                roster.forget_stale(member)
            assert (a.view.models[KEY].tokens_per_s is None) == (moment > 60.0)
            assert b.view.models[KEY].tokens_per_s is not None


class TestMerging:
    def test_of_equal_names_the_newest_is_kept_and_the_newest_is_first(self) -> None:
        def tag(name: str, digest: str, modified_at: str) -> dict[str, str]:
            return {"name": name, "digest": digest, "modified_at": modified_at}

        first = [
            tag("m:1b", "old", "2026-01-01T12:00:00.123456789+01:00"),
            tag("a:1b", "x", "2026-01-05T00:00:00Z"),
        ]
        second = [tag("M:1b", "new", "2026-01-01T11:30:00Z")]
        bodies = [json.dumps({"models": models}).encode() for models in (first, second)]
        merged = json.loads(merge_lists("/api/tags", bodies))["models"]
        assert [(model["name"], model["digest"]) for model in merged] == [("a:1b", "x"), ("M:1b", "new")]

    @pytest.mark.parametrize("path", LISTS)
    @pytest.mark.parametrize(
        "body", [b"", b"[]", b"<html>", b'{"models": 3, "data": 3}', b'{"models": [1], "data": [1]}']
    )
    def test_what_is_no_list_is_a_bad_reply(self, path: str, body: bytes) -> None:
        with pytest.raises(BadReply, match=path):
            merge_lists(path, [body])

    @given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=5), min_size=1, max_size=4))
    def test_every_name_is_there_once(self, servers: list[list[str]]) -> None:
        bodies = [json.dumps({"data": [{"id": name} for name in names]}).encode() for names in servers]
        merged = [entry["id"].lower() for entry in json.loads(merge_lists("/v1/models", bodies))["data"]]
        assert sorted(merged) == sorted({name.lower() for names in servers for name in names})

    def test_a_list_of_nothing_is_an_empty_list(self) -> None:
        assert json.loads(merge_lists("/api/tags", [b'{"models": null}'])) == {"models": []}


def answered(prompt_tokens: int, output_tokens: int, *, speed: float) -> Work:
    """Return what an engine tells that reads eight times as fast as it writes."""
    prompt_s, output_s = prompt_tokens / (8 * speed), (output_tokens - 1) / speed
    return Work(
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        prompt_s=prompt_s,
        busy_s=prompt_s + output_s,
    )


class TestUsual:
    def test_a_server_is_as_fast_as_it_is_whatever_it_gets(self) -> None:
        """One got long prompts with short answers, the other the reverse: equal servers look equal."""
        roster, (a, b) = roster_of("a", "b")
        for _ in range(40):
            for member, work in (
                (a, answered(4000, 20, speed=50.0)),
                (b, answered(20, 400, speed=50.0)),
            ):
                roster.note_answer(roster.replica(member, KEY), KEY, work, 0.0, None)
        assert roster.usual[KEY].prompt_weight == pytest.approx(1 / 8, rel=1e-3)
        speeds = [member.view.models[KEY].tokens_per_s for member in (a, b)]
        assert speeds == pytest.approx([50.0, 50.0], rel=0.01)

    def test_what_a_request_takes_is_its_answer_and_its_prompt(self) -> None:
        usual = Usual()
        for _ in range(40):
            usual.note(answered(400, 101, speed=50.0), 0.0)
        call = call_of(Request(method="POST", path="/api/generate", body=b'{"prompt": "%b"}' % (b"x" * 3200)))
        assert usual.expected_tokens(call) == pytest.approx(101 + 800 / 8, rel=1e-3)

    @pytest.mark.parametrize(
        "work",
        [
            Work(output_tokens=7),
            Work(output_tokens=7, prompt_tokens=9),
            Work(output_tokens=1, prompt_tokens=9, prompt_s=0.5, busy_s=0.5),
            Work(output_tokens=7, prompt_tokens=0, prompt_s=0.0, busy_s=0.5),
        ],
    )
    def test_an_answer_that_does_not_tell_both_speeds_teaches_no_ratio(self, work: Work) -> None:
        usual = Usual()
        before = usual.prompt_weight
        usual.note(work, 3.0)
        assert (usual.prompt_weight, usual.output_tokens, usual.answered_s) == (
            before,
            work.output_tokens,
            3.0,
        )

    def test_a_prompt_whose_reading_is_not_in_the_time_does_not_count(self) -> None:
        assert Usual().tokens_of(Work(output_tokens=7, prompt_tokens=900)) == 7.0


def test_digests_are_read_by_key_and_foreign_names_left_out() -> None:
    entries = [{"name": "M:7B", "digest": "x"}, {"name": "a/b/c/d/e", "digest": "y"}]
    assert listed_digests(json.dumps({"models": entries}).encode()) == {
        "registry.ollama.ai/library/m:7b": "x"
    }
    with pytest.raises(BadReply):
        listed_digests(b"<html>")


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6), st.integers(0, 6))
def test_a_chat_that_goes_on_begins_as_it_began(texts: list[str], cut: int) -> None:
    def prompt(count: int) -> str:
        roles = ("system", "user", "assistant")
        messages = [{"role": roles[at % 3], "content": text} for at, text in enumerate(texts[:count])]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        return prompt_of(call_of(Request(method="POST", path="/api/chat", body=body)))

    assert prompt(len(texts)).startswith(prompt(min(cut, len(texts))))


def test_tools_and_parts_of_messages_count() -> None:
    fields = {
        "model": "m",
        "tools": [{"name": "t"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}],
    }
    body = json.dumps(fields).encode()
    call = call_of(Request(method="POST", path="/v1/chat/completions", body=body))
    assert prompt_of(call) == '[{"name":"t"}]\nuser\nlook'


@pytest.mark.parametrize(
    ("path", "fields", "prompt"),
    [
        ("/v1/responses", {"instructions": "Be brief.", "input": "Hi."}, "Be brief.\nHi."),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi."}]}]},
            "user\nHi.",
        ),
        (
            "/v1/messages",
            {"system": [{"text": "Be brief."}], "messages": [{"role": "user", "content": "Hi."}]},
            "Be brief.\nuser\nHi.",
        ),
    ],
)
def test_each_api_has_its_own_names_for_the_prompt(path: str, fields: dict[str, object], prompt: str) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    assert prompt_of(call_of(Request(method="POST", path=path, body=body))) == prompt
