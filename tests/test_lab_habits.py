"""What clients do round their requests, seen from the server's side."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from lab_samples import compared, done

from ollamalab.compare import Comparison, Metric, Visit, design
from ollamalab.hosts import open_target
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import PromptShape, Subject, Trials, habits
from ollamalab.lab.habits import ANEW, AT_ONCE, NO_CHECK, ONCE, ONE_BY_ONE, ROOT_FIRST, TAGS_FIRST
from ollamalab.lab.stages import Bodies
from ollamalab.lab.trials import run_visits
from ollamalab.metrics import run_s, send_lag_s, stages
from ollamalab.protocol.lines import encode_line
from ollamalab.records import Outcome
from ollamalab.scripted import Script, ScriptedServer

VISIT = Visit(index=0, block=0, arm="")
SHAPE = PromptShape(prompt_tokens=12, num_predict=2)
CONNECT = Metric(name="connect_s", unit="s", better="lower", kind="difference")


class Listener:
    """A server that keeps what it was asked, with the connection it came over."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.connections: list[Any] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.read()))
        if request.transport not in self.connections:
            self.connections.append(request.transport)
        final = {"response": "", "done": True, "done_reason": "length", "eval_count": 1}
        return web.Response(body=encode_line({"response": "word", "done": False}) + encode_line(final))


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Listener, Subject]]:
    """Give a server that keeps what it was asked, and a subject on it."""
    listener, app = Listener(), web.Application()
    app.router.add_route("*", "/{tail:.*}", listener.answer)
    async with TestServer(app) as server:
        target = RemoteTarget(str(server.make_url("")).rstrip("/"), "0")
        async with Subject(target, "m", seed=0) as subject:
            listener.asked.clear()
            listener.connections.clear()
            yield listener, subject


def bodies() -> Bodies:
    return Bodies("m", SHAPE, seed=0)


@pytest.mark.parametrize(("arm", "paths"), [(NO_CHECK, []), (ROOT_FIRST, ["/"]), (TAGS_FIRST, ["/api/tags"])])
async def test_a_check_is_asked_first_over_its_own_connection_and_counts_in_the_response(
    arm: str, paths: list[str]
) -> None:
    async with listening() as (listener, subject):
        (record,) = await habits.checks(subject, bodies())[arm](VISIT)
    assert [path for path, _ in listener.asked] == [*paths, "/api/generate"]
    assert len(listener.connections) == len(listener.asked)
    assert record.outcome is Outcome.OK
    assert (send_lag_s(record) or 0.0) > 0.0
    assert habits.connect_s([record]) == stages(record).connect_s is not None


async def test_a_prepared_request_is_the_same_request() -> None:
    body = bodies().draw(0)
    async with listening() as (listener, subject):
        visitors = habits.preparations(subject, body, requests=3)
        records = [record for arm in (ANEW, ONCE) for record in await visitors[arm](VISIT)]
    assert [json.loads(sent) for _, sent in listener.asked] == [body] * 8, "one of each visit does not count"
    assert len(records) == 6
    assert len(listener.connections) == 2
    assert {record.outcome for record in records} == {Outcome.OK}


async def test_requests_at_once_are_all_there_before_one_is_answered_and_one_by_one_none_is() -> None:
    async with (
        ScriptedServer(Script(first_s=0.05, gap_s=0.0, tokens=2, slots=3)) as server,
        open_target(server.url) as target,
        Subject(target, "scripted", seed=0) as subject,
    ):
        drawn = Bodies("scripted", SHAPE, seed=0)
        visitors = habits.batches("3 slots", subject, drawn, requests=3)
        visits = design(tuple(visitors), 1, random.Random(0))
        trials = await run_visits(visitors, visits)
        log = {served.prompt: served for served in server.log}
    assert len(log) == len(trials.records) == 3 * len(visits), "every prompt is a new one"
    assert len(subject.health) == len(visits)
    by_start = sorted(server.log, key=lambda served: served.arrived_s)
    groups = [by_start[place : place + 3] for place in range(0, len(by_start), 3)]
    for visit, group in zip(visits, groups, strict=True):
        overlap = [later.arrived_s < (earlier.ended_s or 0.0) for earlier, later in pairwise(group)]
        assert overlap == [visit.arm == habits.batch_arm("3 slots", AT_ONCE)] * 2, visit.arm
    assert trials.arms == (habits.batch_arm("3 slots", ONE_BY_ONE), habits.batch_arm("3 slots", AT_ONCE))
    assert trials.per_visit(trials.arms[0], run_s)


def checked(own_s: float) -> Trials:
    """Trials whose check took so long."""
    record = done(ROOT_FIRST, sent_s=1.0, end_s=2.0)
    return Trials(arms=(NO_CHECK, ROOT_FIRST), records=(replace(record, intended_s=1.0 - own_s),))


def later(by_s: float, *, spread_s: float = 0.0001) -> Comparison:
    """Connecting takes so much longer after a check, give or take."""
    pairs = [(0.001 + by_s + spread_s * (place % 3 - 1), 0.001) for place in range(12)]
    return compared(CONNECT, pairs, arm=ROOT_FIRST, baseline=NO_CHECK, is_primary=False)


@pytest.mark.parametrize(
    ("by_s", "spread_s", "holds"), [(0.0, 0.0001, False), (0.0019, 0.0001, True), (0.001, 0.0004, None)]
)
def test_a_check_delays_the_connection_if_most_of_its_time_is_there(
    by_s: float, spread_s: float, holds: bool | None
) -> None:
    seen = habits.observe_checks(checked(0.002), later(by_s, spread_s=spread_s), [])
    assert seen.holds is holds
    assert seen.n == 12
    assert "the check takes 2.00 ms" in seen.evidence


def test_without_pairs_nothing_is_observed() -> None:
    none = compared(CONNECT, [(None, None)], arm=ROOT_FIRST, baseline=NO_CHECK, is_primary=False)
    seen = habits.observe_checks(checked(0.002), none, [])
    assert (seen.holds, seen.evidence) == (None, "0 pairs cannot carry an interval")
    empty = Trials(arms=(NO_CHECK, ROOT_FIRST), records=())
    assert habits.observe_checks(empty, later(0.0), []).holds is None, "nobody knows how long the check took"


def test_sentences_and_tables_say_what_was_set_against_what() -> None:
    ratio = Metric(name="until_all_s", unit="s", better="lower")
    found = compared(ratio, [(0.5, 1.0)] * 8, arm="4 slots, at once", baseline="4 slots, one by one")
    assert habits.batch_sentence(found).startswith(
        "Until all are answered, 4 slots, at once against 4 slots, one"
    )
    (row,) = habits.batches_table({"4 slots": found}, requests=3).rows
    assert row[:3] == ("4 slots", 1.0, 0.5)
    spared = compared(ratio, [(0.5, 1.0)] * 8, arm=NO_CHECK, baseline=ROOT_FIRST)
    (row,) = habits.checks_table([spared]).rows
    assert row[:3] == (ROOT_FIRST, 1.0, 0.5)
    assert "with no check against one with GET / first: 0.50×" in habits.check_sentence(spared)
    empty = Trials(arms=(ANEW, ONCE), records=())
    assert "takes n/a; encoded once: 0.50×" in habits.preparation_sentence(empty, spared)
