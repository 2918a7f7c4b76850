"""Prompts that begin alike: what is sent, what engines say they evaluated, and what is told of it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from lab_samples import compared, done

from ollamalab import lab
from ollamalab.compare import Metric, Visit
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.hosts import open_target
from ollamalab.lab import ChatShape, PromptMeter, Subject, Texts, Trials
from ollamalab.lab.prefixes import question
from ollamalab.lab.prompt_meter import Way
from ollamalab.lab.prompt_work import (
    EngineCount,
    PromptWork,
    count_engines,
    parse_engine,
    tokens_between,
    work_between,
)
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import ServerSettings

SCRIPT = Script(first_s=0.001, gap_s=0.0, tokens=2)
TTFT = Metric(name="TTFT", unit="s", better="lower")
METRICS = """# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {}
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total 99
"""


class Listener:
    """An upstream that notes what is said to another one."""

    def __init__(self, upstream: Upstream) -> None:
        self.talks: list[list[dict[str, Any]]] = []
        self._upstream = upstream

    async def send(self, request: Request) -> Reply:
        self.talks.append(json.loads(request.body)["messages"])
        return await self._upstream.send(request)


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(SCRIPT) as scripted:
        yield scripted


@pytest.fixture
async def subject(server: ScriptedServer) -> AsyncIterator[Subject]:
    async with open_target(server.url) as target, Subject(target, "scripted", seed=0) as opened:
        yield opened


@pytest.fixture
def listener(subject: Subject) -> Listener:
    return Listener(subject.upstream)


@pytest.fixture
def way(subject: Subject, listener: Listener) -> Way:
    return replace(lab.straight_way(subject, 2), upstream=listener)


def visit(block: int = 0, index: int = 0) -> Visit:
    return Visit(index=index, block=block, arm="a")


def first_lines(talks: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    return [talk[0]["content"].splitlines()[0] for talk in talks]


# What is sent


def test_equal_names_give_equal_words_and_no_two_stamps_are_alike() -> None:
    one, other = Texts(1), Texts(1)
    assert one.rules("A", 40) == other.rules("A", 40) != one.rules("B", 40)
    assert len(one.rules("A", 40).split()) == 43
    assert one.stamp() != other.stamp()
    assert len(one.stamp()) == len(other.stamp())


def test_a_system_prompt_of_48_words_is_long_enough_for_prefix_routing() -> None:
    """The default of the notebook: routing compares blocks of 256 characters."""
    texts = Texts(10)
    for name in range(50):
        assert len(f"{texts.stamp()}\n{texts.rules(name, 48)}") > 256


async def test_a_stamp_opens_or_closes_the_system_prompt(way: Way, listener: Listener) -> None:
    texts, meter = Texts(1), PromptMeter()
    for is_first in (True, False):
        (record,) = await lab.stamped(meter, way, texts, "the rules", is_first=is_first)(visit())
        assert record.outcome is Outcome.OK
    (before, asked), (after, asked_again) = listener.talks
    assert before["content"].endswith("\nthe rules")
    assert after["content"].startswith("the rules\n")
    assert asked == asked_again  # arms of one block ask the same


async def test_a_chat_sends_all_that_was_said_and_a_new_stamp_only_if_told(
    way: Way, listener: Listener
) -> None:
    shape = ChatShape(chats=1, turns=3, system_tokens=5)
    records = await lab.conversations(PromptMeter(), way, Texts(1), shape)(visit())
    assert [record.index for record in records] == [0, 1, 2]
    assert [len(talk) for talk in listener.talks] == [2, 4, 6]
    assert listener.talks[2][:4] == listener.talks[1]
    assert listener.talks[2][4] == {"role": "assistant", "content": "0 1 "}
    assert len(set(first_lines(listener.talks))) == 1
    kept = [talk[1:] for talk in listener.talks]
    listener.talks.clear()
    await lab.conversations(PromptMeter(), way, Texts(1), shape, is_restamped=True)(visit())
    assert [talk[1:] for talk in listener.talks] == kept  # nothing else differs
    assert len(set(first_lines(listener.talks))) == 3


async def test_chats_side_by_side_keep_their_own_system_prompts(way: Way, listener: Listener) -> None:
    shape = ChatShape(chats=3, turns=2, system_tokens=5)
    records = await lab.conversations(PromptMeter(), way, Texts(1), shape)(visit())
    assert [record.index for record in records] == [0, 0, 0, 1, 1, 1]
    firsts, seconds = listener.talks[:3], listener.talks[3:]
    assert len(set(first_lines(firsts))) == 3
    assert set(first_lines(firsts)) == set(first_lines(seconds))


async def test_prompts_asked_in_turn_are_named_by_their_place(way: Way, listener: Listener) -> None:
    systems = {name: lab.system_message(name) for name in "AB"}
    asked = await lab.ask_in_turn(PromptMeter(), way, Texts(1), systems, "ABA", label="1 slot")
    assert [record.arm for record in asked] == ["1 slot, 1. A", "1 slot, 2. B", "1 slot, 3. A"]
    assert first_lines(listener.talks) == ["A", "B", "A"]
    assert listener.talks[0][1] != listener.talks[2][1]


async def test_no_visit_by_turns_repeats_a_question(way: Way, listener: Listener) -> None:
    """Blocks visit an arm twice: a question asked again would be remembered whole."""
    by_turns = lab.by_turns(PromptMeter(), way, Texts(1), [lab.system_message("A")])
    for index in range(4):
        await by_turns(visit(block=0, index=index))
    assert len({talk[1]["content"] for talk in listener.talks}) == 4


async def test_a_failed_request_is_a_record(subject: Subject, server: ScriptedServer) -> None:
    server.script = replace(SCRIPT, faults={0: Fault.BUSY})
    meter = PromptMeter()
    record, text = await meter.ask(lab.straight_way(subject, 2), [question(random.Random(1))])
    assert record.outcome is Outcome.HTTP_ERROR
    assert text == ""
    assert meter.total_evaluated([record]) is None


# What engines tell


def test_the_engines_counter_and_the_last_task_of_each_slot_are_read() -> None:
    slots = [{"id": 0, "id_task": 12}, {"id": 1}]
    assert parse_engine(METRICS.format(444), slots) == EngineCount(evaluated_tokens=444, tasks={0: 12, 1: -1})
    assert parse_engine(METRICS.format("4.44e+02"), []).evaluated_tokens == 444
    assert parse_engine("", []) == EngineCount(evaluated_tokens=None, tasks={})


def counts(**engines: tuple[int | None, dict[int, int]]) -> dict[str, EngineCount]:
    return {
        url: EngineCount(evaluated_tokens=tokens, tasks=tasks) for url, (tokens, tasks) in engines.items()
    }


@pytest.mark.parametrize(
    ("before", "after", "work"),
    [
        ({"a": (10, {0: 1, 1: 2})}, {"a": (17, {0: 1, 1: 5})}, (7, 1)),
        ({"a": (10, {0: 1}), "b": (3, {0: 9})}, {"a": (10, {0: 1}), "b": (8, {0: 11})}, (5, 0)),
        ({}, {"a": (17, {0: 3, 1: -1})}, (17, 0)),  # loaded for this request
        ({"a": (90, {0: 1})}, {"b": (17, {0: 3})}, (17, 0)),  # loaded anew
        ({"a": (None, {0: 1})}, {"a": (None, {0: 4})}, (None, 0)),
        ({"a": (5, {}), "b": (None, {})}, {"a": (6, {}), "b": (None, {})}, (None, None)),
        ({}, {}, (None, None)),
    ],
)
def test_work_is_what_the_counters_grew_by(before: Any, after: Any, work: tuple[Any, Any]) -> None:
    found = work_between(counts(**before), counts(**after))
    assert found == PromptWork(evaluated_tokens=work[0], slot=work[1])


def test_tokens_of_an_engine_that_has_gone_are_not_known() -> None:
    before = counts(a=(90, {}), b=(5, {}))
    assert tokens_between(before, counts(a=(95, {}), b=(6, {}), c=(4, {}))) == 10
    assert tokens_between(before, counts(a=(95, {}))) is None
    assert tokens_between({}, {}) is None


async def test_a_server_that_lets_nobody_ask_its_engines_makes_the_sum_unknown(subject: Subject) -> None:
    """Behind one router with a server that tells, the sum of that one alone passed for all."""
    untold = await count_engines([subject.target])
    assert tokens_between(untold, untold) is None
    assert tokens_between({**untold, **counts(a=(1, {}))}, {**untold, **counts(a=(9, {}))}) is None


async def test_an_engine_evaluates_only_what_follows_the_beginning_that_prompts_share() -> None:
    """With a real model, straight and through routers: one that knows where a chat went lets less be read."""
    settings = ServerSettings(context_length=1024, num_threads=1)
    await lab.have_models("embedded", DEFAULT_MODEL)
    async with (
        open_target("embedded", settings, models=[DEFAULT_MODEL]) as target,
        open_target("embedded", settings, models=[DEFAULT_MODEL]) as other,
        Subject(target, DEFAULT_MODEL, seed=1) as subject,
        Subject(other, DEFAULT_MODEL, seed=1) as second,
    ):
        meter, texts, way = PromptMeter(), Texts(1), lab.straight_way(subject, 2)
        rules = f"{texts.stamp()}\n{texts.rules('rules', 48)}"
        systems = {
            "new": lab.system_message(rules),
            "same": lab.system_message(rules),
            "other": lab.system_message(rules.replace("It", "So", 1)),
        }
        new, same, changed = await lab.ask_in_turn(meter, way, texts, systems, systems)
        evaluated = [meter.evaluated(record) or 0 for record in (new, same, changed)]
        assert new.prompt_tokens == same.prompt_tokens == changed.prompt_tokens
        assert evaluated[0] == new.prompt_tokens  # the first prompt of all
        assert evaluated[1] < 20 < 60 < evaluated[2] < (new.prompt_tokens or 0)
        assert meter.work(same).slot == 0
        shape, trials = ChatShape(chats=1, turns=3, system_tokens=48), {}
        await lab.preload([second])
        for route in ("round-robin", "prefix"):
            async with lab.routed_way([subject, second], route, 2, seed=1) as routed:
                trials[route] = await lab.conversations(meter, routed, texts, shape)(visit())
        totals = {route: meter.total_evaluated(records) or 0 for route, records in trials.items()}
        assert 0 < totals["prefix"] < 0.7 * totals["round-robin"]


# What is shown


def told(
    meter: PromptMeter,
    at_s: float,
    evaluated: int | None,
    *,
    arm: str = "a",
    visit: int = 0,
    index: int = 0,
    ttft_s: float = 0.1,
) -> RequestRecord:
    """Return a record of 100 prompt tokens, of which so many were evaluated in half a second."""
    record = done(arm, sent_s=at_s, first_s=at_s + ttft_s, visit=visit, block=visit)
    timings = ServerTimings(prompt_tokens=100, prompt_eval_s=0.5)
    meter.works[at_s] = PromptWork(evaluated_tokens=evaluated, slot=1)
    return replace(record, index=index, prompt_tokens=100, server=timings)


def test_the_rate_of_the_engine_counts_only_what_it_evaluated() -> None:
    meter = PromptMeter()
    record = told(meter, 1.0, 10)
    assert meter.prefill_tokens_per_s(record) == 20.0
    assert meter.prefill_tokens_per_s(replace(record, server=None)) is None
    assert meter.prefill_tokens_per_s(told(meter, 2.0, None)) is None


def test_a_visit_has_a_total_only_if_every_request_was_counted() -> None:
    meter = PromptMeter()
    records = [told(meter, 1.0, 10), told(meter, 2.0, 15)]
    assert meter.total_evaluated(records) == 25.0
    assert meter.total_evaluated([*records, told(meter, 3.0, None)]) is None
    assert meter.total_evaluated([]) is None


def test_a_row_tells_both_rates_and_what_is_not_known_is_absent() -> None:
    meter = PromptMeter()
    groups = {"kept": [told(meter, 1.0, 10)], "untold": [told(meter, 2.0, None)], "never": []}
    table = lab.prompts_table("t", "T", groups, meter)
    kept, untold, never = table.rows
    assert kept[:4] == ("kept", "1", 100.0, 10.0)
    assert kept[5:] == (200.0, 20.0, 1)
    assert untold[3] is None
    assert untold[6] is None
    assert never[1:] == (None, None, None, None, None, None, 0)
    assert "engine's own counter; n/a where it cannot be read" in table.caption
    told_of_all = lab.prompts_table("t", "T", {**groups, "untold": []}, meter)
    assert "counter. Time" in told_of_all.caption
    shares = lab.token_shares(groups, meter)
    assert shares.to_dict("records") == [{"label": "kept", "sent": 100.0, "evaluated": 10.0, "n": 1}]


def test_a_curve_has_a_line_per_arm_and_a_point_per_turn() -> None:
    meter = PromptMeter()
    records = [
        told(meter, 10.0 * visit + turn, 5, arm=arm, visit=visit, index=turn, ttft_s=first_s * (1 + turn))
        for visit, (arm, first_s) in enumerate((("kept", 0.1), ("changed", 0.2)))
        for turn in range(2)
    ]
    trials = Trials(arms=("changed", "kept"), records=tuple(records))
    points = lab.turn_points(trials, 2)
    assert list(zip(points["series"], points["x"], strict=True)) == [
        ("changed", 1.0),
        ("changed", 2.0),
        ("kept", 1.0),
        ("kept", 2.0),
    ]
    assert points["value"].tolist() == pytest.approx([0.2, 0.4, 0.1, 0.2])
    assert lab.later_turns(trials.of("kept")) == pytest.approx(0.2)
    title = lab.turns_title(points, arm="kept", baseline="changed")
    assert title == "With kept, turn 2 takes 2.00× the time of turn 1; with changed, 2.0×"
    assert lab.turns_title(points.iloc[:1], arm="kept", baseline="changed") == "Time to first token by turn"


def test_titles_and_sentences_tell_the_numbers_or_only_the_question() -> None:
    found = compared(TTFT, [(0.3 + 0.001 * n, 1.0) for n in range(8)], arm="a clock last", baseline="first")
    assert lab.placement_title(found) == "With a clock last, the first token takes 30% of its time with first"
    said = lab.prefix_sentence("in a chat", found)
    assert said.startswith("Time to first token in a chat, a clock last against first: 0.30× (95 % interval")
    none = compared(TTFT, [])
    assert lab.placement_title(none) == "Time to first token, with old and with new"
    meter = PromptMeter()
    shares = lab.token_shares({"last": [told(meter, 1.0, 10)], "first": [told(meter, 2.0, 90)]}, meter)
    assert lab.tokens_title(shares, "first", "last") == (
        "With first, 90% of a prompt is evaluated; with last, 10%"
    )
    assert lab.tokens_title(shares, "first", "elsewhere") == "Prompt tokens sent and evaluated"


def test_a_prompt_that_comes_back_is_told_by_its_tokens() -> None:
    meter = PromptMeter()
    pushed_out, unloaded, untold = told(meter, 1.0, 10), told(meter, 2.0, 100), told(meter, 3.0, None)
    sentence = lab.return_sentence("1 slot", [pushed_out], [unloaded], meter)
    assert sentence.endswith(
        "1 slot: 10 of 100 after others took its place, 100 of 100 after the model was unloaded."
    )
    assert lab.return_sentence("1 slot", [untold], [], meter).endswith(
        "1 slot: n/a; the engine's counter cannot be read."
    )
