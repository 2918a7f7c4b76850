"""Learning how many requests a server uses at once, on simulated servers whose slots are known."""

from __future__ import annotations

import pytest
from slot_simulation import Answers, SlotSimulation

from ollamalab.queueing.capacity import LearntCapacity, capacity_of
from ollamalab.queueing.parallelism import MOST, Parallelism
from ollamalab.queueing.ticket import State
from ollamalab.queueing.work import Work
from ollamalab.settings import QueueSettings

SEEDS = range(5)
SLOTS = (1, 2, 4, 8)
TELLING = (Answers.OLLAMA_STREAM, Answers.OLLAMA_WHOLE, Answers.OPENAI_STREAM)

IN_TIME = Work(output_tokens=10, slot_wait_s=0.004, busy_s=2.0)
WAITED = Work(output_tokens=10, slot_wait_s=1.4, busy_s=2.0)


def near(values: list[int], slots: int) -> float:
    """The share of values that are at most one off."""
    return sum(abs(value - slots) <= 1 for value in values) / len(values)


@pytest.mark.parametrize("answers", TELLING, ids=lambda answers: answers.name.lower())
@pytest.mark.parametrize("slots", SLOTS)
def test_the_slots_are_found_within_tens_of_answers_and_kept(answers: Answers, slots: int) -> None:
    for seed in SEEDS:
        simulation = SlotSimulation(slots, answers, seed=seed)
        simulation.answer(60)
        assert near(simulation.answer(140), slots) >= 0.95, f"seed {seed}: {simulation.learnt}"


@pytest.mark.parametrize("exponent", [1.0, 0.4, 0.0])
def test_the_slots_are_found_whatever_batching_brings(exponent: float) -> None:
    for seed in SEEDS:
        simulation = SlotSimulation(4, Answers.OLLAMA_STREAM, seed=seed, exponent=exponent, noise=0.3)
        simulation.answer(60)
        assert near(simulation.answer(140), 4) >= 0.95


def test_equal_answers_that_end_together_are_not_taken_for_waiting() -> None:
    """Benchmarks ask for one length; then all slots come free at once, again and again."""
    for answers in TELLING:
        simulation = SlotSimulation(4, answers, noise=0.0, tokens=(100, 100))
        simulation.answer(60)
        assert near(simulation.answer(100), 4) == 1.0


@pytest.mark.parametrize("slots", SLOTS)
def test_streams_reach_the_slots_before_the_first_answers_are_complete(slots: int) -> None:
    """Each first token opens the next place, so a low start costs a prompt or so per slot."""
    simulation = SlotSimulation(slots, Answers.OLLAMA_STREAM, tokens=(300, 300))
    assert abs(simulation.answer(1)[0] - slots) <= 1


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_answers_that_tell_nothing_are_compared_by_tokens_per_second(slots: int) -> None:
    for seed in SEEDS:
        simulation = SlotSimulation(slots, Answers.OPENAI_WHOLE, seed=seed)
        simulation.answer(100)
        assert near(simulation.answer(100), slots) >= 0.9, f"seed {seed}: {simulation.learnt}"


def test_eight_slots_are_found_roughly_by_tokens_per_second() -> None:
    """From 8 to 9 the tokens/s of a batch change by less than they scatter: such answers tell no better."""
    for seed in SEEDS:
        simulation = SlotSimulation(8, Answers.OPENAI_WHOLE, seed=seed)
        simulation.answer(200)
        assert set(simulation.answer(200)) <= set(range(6, 12)), f"seed {seed}: {simulation.learnt}"


@pytest.mark.parametrize("answers", TELLING, ids=lambda answers: answers.name.lower())
def test_a_server_started_anew_with_other_slots_is_followed(answers: Answers) -> None:
    for seed in SEEDS:
        simulation = SlotSimulation(4, answers, seed=seed)
        simulation.answer(100)
        simulation.slots = 1
        simulation.answer(60)
        assert near(simulation.answer(40), 1) == 1.0
        simulation.slots = 8
        simulation.answer(150)
        assert near(simulation.answer(50), 8) >= 0.95, f"seed {seed}: {simulation.learnt}"


@pytest.mark.parametrize("slots", SLOTS)
def test_trying_for_more_costs_few_requests_a_wait_inside_the_server(slots: int) -> None:
    simulation = SlotSimulation(slots, Answers.OLLAMA_STREAM)
    simulation.answer(100)
    before = simulation.hidden
    simulation.answer(400)
    assert simulation.hidden - before <= 0.12 * 400


def fill(parallelism: Parallelism, count: int, *, waiting: int = 0, at_s: float = 0.0) -> None:
    """So many requests together; the last ones waited for the end of the first."""
    flights = [parallelism.sent(at_s) for _ in range(count)]
    for flight in flights[: count - waiting]:
        parallelism.ended(flight, at_s + 1.4, IN_TIME)
    for flight in flights[count - waiting :]:
        parallelism.ended(flight, at_s + 3.5, WAITED)


def test_one_bad_answer_does_not_take_a_place_away() -> None:
    parallelism = Parallelism()
    for round_number in range(10):
        fill(parallelism, 4, at_s=10.0 * round_number)
    assert parallelism.learnt == 4
    fill(parallelism, 4, waiting=1, at_s=200.0)
    assert parallelism.learnt == 4
    for round_number in range(3):
        fill(parallelism, 4, waiting=1, at_s=300.0 + 10 * round_number)
    assert parallelism.learnt == 3


def test_an_engine_that_is_slow_to_begin_is_not_taken_for_a_full_one() -> None:
    """llama.cpp finishes a batch first; that shows as a wait, but no end goes with it."""
    parallelism = Parallelism()
    for round_number in range(10):
        flights = [parallelism.sent(10.0 * round_number) for _ in range(4)]
        for flight in flights:
            parallelism.ended(
                flight,
                10.0 * round_number + 2.5,
                Work(output_tokens=10, slot_wait_s=0.15, busy_s=2.0, load_s=0.001),
            )
    assert parallelism.learnt == 4


def test_the_wait_for_a_load_is_not_one_for_a_slot() -> None:
    parallelism = Parallelism()
    for round_number in range(10):
        flights = [parallelism.sent(20.0 * round_number) for _ in range(3)]
        for number, flight in enumerate(flights):
            work = Work(output_tokens=10, slot_wait_s=0.05, busy_s=1.0 + number, load_s=10.0)
            parallelism.ended(flight, 20.0 * round_number + 11.05 + number, work)
    assert parallelism.learnt == 3


def test_there_is_always_one_place_and_never_more_than_the_most() -> None:
    parallelism = Parallelism()
    assert (parallelism.learnt, parallelism.limit) == (1, 2)
    for round_number in range(20):
        fill(parallelism, 3, waiting=2, at_s=10.0 * round_number)
    assert parallelism.learnt == 1
    parallelism = Parallelism()
    for round_number in range(5):
        fill(parallelism, 2 * MOST, at_s=10.0 * round_number)
    assert parallelism.limit == MOST


def test_requests_that_fail_or_tell_nothing_teach_nothing() -> None:
    parallelism = Parallelism()
    for round_number in range(20):
        flights = [parallelism.sent(10.0 * round_number) for _ in range(3)]
        for flight in flights:
            parallelism.ended(flight, 10.0 * round_number + 1, None)
    parallelism.ended(parallelism.sent(500.0), 501.0, Work())
    assert (parallelism.learnt, parallelism.limit, parallelism.active) == (1, 2, 0)


def test_lanes_learn_apart_and_their_number_is_bounded() -> None:
    capacity = LearntCapacity()
    for at_s in (0.0, 10.0, 20.0):
        passages = [capacity.begin("large", at_s) for _ in range(3)]
        for passage in passages:
            passage.begun(at_s + 1)
        for passage in passages:
            passage.ended(at_s + 3, State.COMPLETED, IN_TIME)
    assert capacity.limits() == {"large": 3}
    assert (capacity.limit("large"), capacity.limit("small")) == (4, 2)
    for number in range(1000):
        capacity.begin(f"model {number}", 0.0).ended(1.0, State.FAILED, None)
    assert len(capacity.limits()) == 256


def test_a_number_in_the_settings_is_the_limit_of_every_model() -> None:
    capacity = capacity_of(QueueSettings(max_concurrent=3))
    capacity.begin("model", 0.0).ended(1.0, State.COMPLETED, WAITED)
    assert (capacity.limit("model"), capacity.limits()) == (3, {})
