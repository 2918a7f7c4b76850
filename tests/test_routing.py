"""Each policy sends a request where its sentence says, and no further than its bound allows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.errors import SettingsError
from ollamalab.routing import (
    POLICIES,
    Candidates,
    LeastInFlight,
    ModelAware,
    Predicted,
    PrefixAffinity,
    PrefixIndex,
    UpstreamView,
    Want,
    Weighted,
    make_policy,
)
from ollamalab.routing.policies import expected_s
from ollamalab.routing.prefixes import BLOCK_CHARACTERS
from ollamalab.routing.views import ModelView

M = "registry.ollama.ai/library/m:latest"
WANT = Want(model_key=M)


def upstream(name: str, *, weight: int = 1, in_flight: int = 0, **model: float | bool | None) -> UpstreamView:
    view = UpstreamView(name=name, weight=weight, in_flight=in_flight)
    if model:
        view.models[M] = ModelView(**model)  # type: ignore[arg-type]
    return view


def among(*members: UpstreamView) -> Candidates:
    return Candidates.among(members, M)


def book(member: UpstreamView) -> None:
    member.in_flight += 1
    member.model(M).in_flight += 1


@pytest.mark.parametrize("name", POLICIES)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=120), st.integers(0, 2**32))
def test_every_policy_chooses_one_of_the_candidates(name: str, loads: Sequence[int], seed: int):
    members = [upstream(f"u{place}", in_flight=load) for place, load in enumerate(loads)]
    candidates = among(*members)
    policy = make_policy(name, random.Random(seed))
    for prompt in ("", "hello", "long " * 400):
        assert policy.choose(Want(model_key=M, prompt=prompt), candidates) in members


def test_an_unknown_policy_is_refused_with_those_that_there_are():
    with pytest.raises(SettingsError, match=r"route must be one of round-robin, .*, got 'fastest'"):
        make_policy("fastest", random.Random(0))


def test_weights_3_to_2_give_exactly_3_and_2_of_every_5():
    candidates = among(upstream("a", weight=3), upstream("b", weight=2))
    policy = Weighted()
    names = [policy.choose(WANT, candidates).name for _ in range(105)]
    for start in range(100):
        assert Counter(names[start : start + 5]) == {"a": 3, "b": 2}


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_every_window_of_a_whole_turn_holds_exactly_the_weights(weights: list[int]):
    candidates = among(*(upstream(f"u{place}", weight=weight) for place, weight in enumerate(weights)))
    policy, turn = Weighted(), sum(weights)
    names = [policy.choose(WANT, candidates).name for _ in range(3 * turn)]
    for start in range(2 * turn):
        counts = Counter(names[start : start + turn])
        assert [counts[f"u{place}"] for place in range(len(weights))] == weights


def test_a_change_of_members_starts_a_new_turn_with_those_that_are_left():
    members = [upstream("a", weight=3), upstream("b", weight=2), upstream("c")]
    policy = Weighted()
    policy.choose(WANT, among(*members))
    rest = among(*members[1:])
    assert Counter(policy.choose(WANT, rest).name for _ in range(6)) == {"b": 4, "c": 2}


@pytest.mark.parametrize("name", ["round-robin", "weighted"])
def test_models_in_different_places_have_a_turn_each(name: str):
    """Requests that alternate between two models do not begin the turn anew each time."""
    a, b, c = upstream("a", weight=2), upstream("b"), upstream("c", weight=2)
    policy, here, there = make_policy(name, random.Random(1)), among(a, b), among(b, c)
    chosen = [(policy.choose(WANT, here).name, policy.choose(WANT, there).name) for _ in range(6)]
    wanted = (
        ({"a": 3, "b": 3}, {"b": 3, "c": 3})
        if name == "round-robin"
        else ({"a": 4, "b": 2}, {"b": 2, "c": 4})
    )
    assert (Counter(one for one, _ in chosen), Counter(other for _, other in chosen)) == wanted


def test_least_in_flight_counts_by_weight_and_spreads_equals():
    policy = LeastInFlight(random.Random(1))
    strong, weak = upstream("strong", weight=4, in_flight=3), upstream("weak", in_flight=1)
    assert policy.choose(WANT, among(strong, weak)) is strong
    equals = among(*(upstream(f"u{place}") for place in range(4)))
    assert {policy.choose(WANT, equals).name for _ in range(100)} == {"u0", "u1", "u2", "u3"}


def test_model_aware_goes_from_idle_to_busy_to_disk():
    """Residency is not idleness: the resident and busy one comes after the resident and idle one."""
    policy = ModelAware(random.Random(1))
    idle = upstream("idle", in_flight=9, is_resident=True)
    busy = upstream("busy", is_resident=True, in_flight=0)
    busy.models[M].in_flight = 2
    disk = upstream("disk")
    assert policy.choose(WANT, among(disk, busy, idle)) is idle
    assert policy.choose(WANT, among(disk, busy)) is busy
    assert policy.choose(WANT, among(disk)) is disk


def test_model_aware_joins_a_load_that_is_under_way():
    """The second request of a burst follows the first: it shares its load instead of starting another."""
    policy, members = ModelAware(random.Random(1)), [upstream("a"), upstream("b"), upstream("c")]
    first = policy.choose(WANT, among(*members))
    book(first)
    assert policy.choose(WANT, among(*members)) is first


def test_a_load_that_must_be_goes_where_it_evicts_nobody():
    policy = ModelAware(random.Random(1))
    full = upstream("full")
    full.model("other").is_resident = True
    empty = upstream("empty", in_flight=3)
    assert policy.choose(WANT, among(full, empty)) is empty


@pytest.mark.parametrize("name", ["model-aware", "predicted"])
def test_the_one_resident_among_a_thousand_is_found(name: str):
    members = [upstream(f"u{place}", tokens_per_s=50.0, load_s=5.0) for place in range(1000)]
    members[617].models[M].is_resident = True
    policy = make_policy(name, random.Random(1))
    assert all(policy.choose(WANT, among(*members)) is members[617] for _ in range(50))


def test_predicted_weighs_a_load_against_a_queue():
    """Three seconds of queue are shorter than a load of five, seven are longer."""
    policy = Predicted(random.Random(1))
    loaded = upstream("loaded", is_resident=True, in_flight=1, tokens_per_s=100.0)
    loaded.models[M].in_flight = 1
    cold = upstream("cold", tokens_per_s=100.0, load_s=5.0)
    loaded.models[M].booked_tokens = 300.0
    assert policy.choose(WANT, among(loaded, cold)) is loaded
    loaded.models[M].booked_tokens = 700.0
    assert policy.choose(WANT, among(loaded, cold)) is cold


def test_predicted_prefers_the_faster_of_two_idle_ones_by_more_for_long_answers():
    slow, fast = (
        ModelView(is_resident=True, tokens_per_s=20.0),
        ModelView(is_resident=True, tokens_per_s=80.0),
    )

    def seconds(model: ModelView, tokens: float) -> float:
        return expected_s(model, tokens, usual_speed=50.0, usual_load_s=1.0)

    assert seconds(slow, 80.0) == pytest.approx(4.0)
    assert seconds(fast, 80.0) == pytest.approx(1.0)
    policy = Predicted(random.Random(1))
    members = [UpstreamView(name="slow", models={M: slow}), UpstreamView(name="fast", models={M: fast})]
    assert policy.choose(WANT, among(*members)).name == "fast"


def test_predicted_without_a_measurement_is_least_in_flight():
    policy = Predicted(random.Random(1))
    assert policy.choose(WANT, among(upstream("a", in_flight=2), upstream("b", in_flight=1))).name == "b"


def test_what_was_never_measured_is_taken_as_usual():
    unknown = ModelView()
    assert expected_s(unknown, 100.0, usual_speed=50.0, usual_load_s=3.0) == pytest.approx(5.0)


@given(st.text(max_size=2000), st.text(max_size=2000))
def test_equal_blocks_mean_equal_beginnings(first: str, second: str):
    index = PrefixIndex()
    shared = 0
    for one, other in zip(index.blocks(M, first), index.blocks(M, second), strict=False):
        if one != other:
            break
        shared += 1
    if len(first) >= BLOCK_CHARACTERS <= len(second):
        common = next(
            (place for place, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
            min(len(first), len(second)),
        )
        assert shared == common // BLOCK_CHARACTERS


def test_the_same_words_for_another_model_are_another_beginning():
    index = PrefixIndex()
    assert not set(index.blocks(M, "a" * 600)) & set(index.blocks("other", "a" * 600))


def turns(count: int) -> list[str]:
    """Return the prompts of a chat that grows by a block each turn."""
    return ["".join(f"turn {turn}".ljust(BLOCK_CHARACTERS) for turn in range(end)) for end in range(1, count)]


def test_a_chat_stays_where_it_began():
    policy = PrefixAffinity(random.Random(1))
    candidates = among(*(upstream(f"u{place}") for place in range(5)))
    chosen = {policy.choose(Want(model_key=M, prompt=prompt), candidates).name for prompt in turns(8)}
    assert len(chosen) == 1


@given(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**32))
def test_a_shared_beginning_piles_no_more_than_its_slots_onto_one(slots: int, count: int, seed: int):
    """Forty requests with one system prompt and no end in sight: never further apart than the bound."""
    policy = PrefixAffinity(random.Random(seed))
    members = [upstream(f"u{place}", slots=slots) for place in range(count)]
    candidates = among(*members)
    for _ in range(40):
        book(policy.choose(Want(model_key=M, prompt="system " * 200), candidates))
        loads = [member.model(M).in_flight for member in members]
        assert max(loads) - min(loads) <= slots


def test_a_forgotten_upstream_attracts_nothing():
    index = PrefixIndex()
    blocks = index.blocks(M, "a" * 1000)
    index.remember(blocks, "gone")
    index.remember(blocks[:1], "kept")
    index.forget("gone")
    assert index.depths(blocks) == {"kept": 1}
    assert len(index) == 1


def test_the_index_is_bounded_and_forgets_the_longest_unused():
    index = PrefixIndex(most_remembered=4)
    old, new = index.blocks(M, "o" * 600), index.blocks(M, "n" * 1024)
    index.remember(old, "a")
    index.remember(new, "b")
    assert len(index) == 4
    assert index.depths(new) == {"b": 4}
    assert index.depths(old) == {}
