"""Several servers as one: what is sent, who answers, and what is said of it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from lab_samples import E2E, compared, done, failed, lab_of, trials
from ollama_standin import serving

from ollamalab import lab
from ollamalab.compare import Visit
from ollamalab.errors import NotRun, SettingsError
from ollamalab.hosts import EngineProcess, open_target
from ollamalab.lab import PromptShape, Routes, Subject, Trials, Workload
from ollamalab.lab.routes import largest_share, loads, routed
from ollamalab.protocol.upstream import Request
from ollamalab.records import ServerTimings
from ollamalab.scripted import Script, ScriptedServer
from ollamalab.settings import ServerSettings

MODEL = "scripted"
SHAPE = PromptShape(prompt_tokens=20, num_predict=4)
SCRIPT = Script(first_s=0.002, gap_s=0.001, tokens=4)
EXPERIMENT = "09_cluster_routing"
VISIT = Visit(index=3, block=1, arm="a")


@pytest.fixture
async def servers() -> AsyncIterator[tuple[ScriptedServer, ScriptedServer]]:
    async with ScriptedServer(SCRIPT) as one, ScriptedServer(SCRIPT) as other:
        yield one, other


@pytest.fixture
async def instances(servers: tuple[ScriptedServer, ScriptedServer]) -> AsyncIterator[list[Subject]]:
    one, other = servers
    async with (
        open_target(one.url) as first,
        open_target(other.url) as second,
        Subject(first, MODEL, seed=0) as a,
        Subject(second, MODEL, seed=0) as b,
    ):
        yield [a, b]


def uniform(requests: int = 4) -> Workload:
    return lab.uniform(MODEL, SHAPE, requests=requests, rate_rps=1000.0, seed=0)


def bodies(workload: Workload, block: int = 0, seed: int = 1) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in workload.requests(block, random.Random(seed))]


def told(body: dict[str, Any]) -> str:
    """Return a prompt without its nonce."""
    return str(body["prompt"].partition("Once upon")[2])


# What is sent


def test_a_block_draws_the_same_words_for_all_ways_with_new_nonces() -> None:
    one, again, other = (bodies(uniform(), block, seed) for block, seed in ((0, 1), (0, 2), (1, 1)))
    assert [told(body) for body in one] == [told(body) for body in again]
    assert [body["options"] for body in one] == [body["options"] for body in again]
    assert not {body["prompt"] for body in one} & {body["prompt"] for body in again}
    assert [told(body) for body in one] != [told(body) for body in other]


def test_answers_of_the_uniform_workload_differ_in_length() -> None:
    shape = PromptShape(prompt_tokens=20, num_predict=40)
    workload = lab.uniform(MODEL, shape, requests=30, rate_rps=1.0, seed=0)
    lengths = [body["options"]["num_predict"] for body in bodies(workload)]
    assert 20 <= min(lengths) < 40 < max(lengths) <= 60


def test_models_are_asked_for_equally_often_in_an_order_that_is_drawn() -> None:
    workload = lab.mixed_models(["a", "b"], SHAPE, requests=6)
    orders = {tuple(body["model"] for body in bodies(workload, block)) for block in range(8)}
    assert all(sorted(order) == ["a"] * 3 + ["b"] * 3 for order in orders)
    assert len(orders) > 1


def test_chats_grow_by_whole_turns_and_begin_differently() -> None:
    """Each request of a chat begins with the one before, so that an engine could go on from there."""
    sent = bodies(lab.growing_chats(MODEL, SHAPE, talks=2, turns=3))
    for talk in range(2):
        turns = [body["messages"] for body in sent[talk::2]]
        assert [len(turn) for turn in turns] == [2, 4, 6]
        for earlier, later in pairwise(turns):
            assert later[: len(earlier)] == earlier
        assert [message["role"] for message in turns[1]] == ["system", "user", "assistant", "user"]
    assert sent[0]["messages"][0] != sent[1]["messages"][0]
    fresh = bodies(lab.growing_chats(MODEL, SHAPE, talks=2, turns=3), seed=2)
    assert sent[0]["messages"][0] != fresh[0]["messages"][0]


# Who answers


async def test_a_record_says_who_answered(instances: list[Subject]) -> None:
    places = {lab.place_of(one) for one in instances}
    visitor = Routes(instances=instances).visitor(uniform(), lab.ROUND_ROBIN)
    records = list(await visitor(VISIT))
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert {record.target for record in records} == places
    assert largest_share(records) == 0.5
    assert len(instances[0].health) == 1


async def test_only_some_of_the_instances_may_be_behind_a_way(instances: list[Subject]) -> None:
    visitor = Routes(instances=instances).visitor(uniform(), "least-inflight", instances=instances[1:])
    assert {record.target for record in await visitor(VISIT)} == {lab.place_of(instances[1])}


async def test_weights_share_work_out(instances: list[Subject]) -> None:
    routes = Routes(instances=instances, weights=[3, 1])
    records = list(await routes.visitor(uniform(8), "weighted")(VISIT))
    assert largest_share(records) == 0.75


async def test_a_cluster_knows_from_its_start_what_its_members_hold(instances: list[Subject]) -> None:
    async with routed(instances, "model-aware", seed=0) as cluster:
        for member in cluster.statistics().members:
            assert [model.is_resident for model in member.models.values()] == [True]


async def test_another_balancer_can_be_the_way(instances: list[Subject]) -> None:
    """One that does not say who answered leaves its own name."""
    routes = Routes(instances=instances, fronts={"other": instances[0].upstream})
    records = await routes.visitor(uniform(), "other")(VISIT)
    assert {record.target for record in records} == {"other"}


async def test_a_neighbour_keeps_the_last_instance_busy_past_the_balancer(
    instances: list[Subject], servers: tuple[ScriptedServer, ScriptedServer]
) -> None:
    """He asks while the visit goes on, and is gone with it."""
    workload = lab.busy_neighbour(MODEL, SHAPE, requests=20, rate_rps=200.0, seed=0)
    records = list(await Routes(instances=instances).visitor(workload, lab.ROUND_ROBIN)(VISIT))
    asked = [len(server.log) for server in servers]
    assert asked[0] == sum(record.target == lab.place_of(instances[0]) for record in records)
    assert asked[1] > sum(record.target == lab.place_of(instances[1]) for record in records)


async def test_who_answered_last_is_who_answered(instances: list[Subject]) -> None:
    """As nginx does, which names everybody that it has tried."""

    class Tried:
        async def send(self, request: Request) -> Any:
            reply = await instances[0].upstream.send(request)
            reply.headers["x-ollamalab-upstream"] = "10.0.0.1:1, 10.0.0.2:2"
            return reply

    records = await Routes(instances=instances, fronts={"nginx": Tried()}).visitor(uniform(), "nginx")(VISIT)
    assert {record.target for record in records} == {"10.0.0.2:2"}


async def test_tokens_count_only_where_every_server_tells(
    instances: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the embedded server's engines were asked: chats by routes over Ollama went by response time."""
    chats = lab.growing_chats(MODEL, SHAPE, talks=1, turns=2)
    routes = Routes(instances=instances)
    await routes.visitor(chats, lab.ROUND_ROBIN)(VISIT)
    assert not routes.evaluated
    metrics = "llamacpp:prompt_tokens_total 4.44e+02\n"
    with serving({"/metrics": metrics, "/slots": []}) as engine:
        for instance in instances:
            monkeypatch.setattr(instance.target, "engines", lambda: [EngineProcess(pid=1, url=engine)])
        await routes.visitor(chats, lab.ROUND_ROBIN)(VISIT)
    assert list(routes.evaluated.values()) == [0]


async def test_what_cannot_be_opened_is_told(instances: list[Subject]) -> None:
    url = instances[0].target.url
    experiment = lab_of(EXPERIMENT)
    with pytest.raises(NotRun, match="is one server; name others in peers"):
        await lab.open_instances(experiment, url, MODEL, ServerSettings(), count=2)
    with pytest.raises(SettingsError, match="gpus"):
        await lab.open_instances(experiment, "embedded", MODEL, ServerSettings(), count=2, gpus=[[0]])
    peers = [instances[1].target.url]
    found = await lab.open_instances(experiment, url, MODEL, ServerSettings(), count=1, peers=peers)
    assert [one.target.url for one in found] == [url, *peers]
    assert list(experiment.report.server) == ["instance 1", "instance 2"]
    await experiment.close()


# What is shown


def test_a_load_is_what_a_server_says_took_long() -> None:
    took = [None, 0.004, 0.6]
    assert loads(replace(done(), server=ServerTimings(load_s=seconds)) for seconds in took) == 1
    assert loads([done()]) == 0


def test_the_table_tells_ways_apart_and_what_was_not_run() -> None:
    workload = lab.mixed_models(["a", "b"], SHAPE, requests=2)
    arms = {workload.arm(way): [1.0, 2.0] for way in (lab.ROUND_ROBIN, "model-aware")}
    measured = trials(arms)
    missing = Trials(
        arms=measured.arms,
        records=measured.records,
        not_run={"1 instance with 2 slots": "not ours", workload.arm("Caddy"): "no caddy on PATH"},
    )
    arm = workload.arm("model-aware")
    visits = [record.visit for record in measured.of(arm)]
    evaluated = {(arm, visits[0] or 0): 10, (arm, visits[1] or 0): 30, ("other", visits[0] or 0): 7}
    table = lab.routes_table("t", "T", missing, evaluated)
    rows = [list(row.values()) if isinstance(row, dict) else list(row) for row in table.rows]
    assert [row[:3] for row in rows[:2]] == [
        ["mixed models", "round-robin", 1.5],
        ["mixed models", "model-aware", 1.5],
    ]
    assert rows[0][-2] is None
    assert rows[1][-2] == 20
    assert len(rows) == 3
    assert rows[2][:2] == ["mixed models", "Caddy"]
    assert rows[2][-1] == "not run: no caddy on PATH"
    plain = lab.routes_table("t", "T", measured, {})
    assert [column.name for column in plain.columns][-2:] == ["Completed", "n"]
    statistic = lab.evaluated_per_visit(evaluated)
    assert [statistic([record]) for record in measured.of(arm)] == [10, 30]
    assert statistic([]) is None


def test_a_share_needs_an_answer() -> None:
    assert largest_share([failed()]) is None


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.5, "answer faster than"), (2.0, "more slowly"), (1.0, "not shown to beat")]
)
def test_the_title_says_what_instances_do(ratio: float, words: str) -> None:
    noise = (0.97, 0.98, 0.99, 1.01, 1.02, 1.03, 1.04, 0.96)
    found = compared(E2E, [(ratio * wobble, 1.0) for wobble in noise], arm="2 instances", baseline="slots")
    assert words in lab.instances_title(found)
    measured = trials({"slots": [1.0] * 8, "2 instances": [ratio] * 8})
    sentence = lab.instances_sentence(measured, found)
    assert "2 instances against slots" in sentence
    assert "Completed requests/s" in sentence


def test_a_policy_is_named_with_what_it_does() -> None:
    workload = lab.mixed_models(["a", "b"], SHAPE, requests=2)
    good = compared(E2E, [(0.3 + 0.01 * n, 1.0) for n in range(8)])
    none = compared(E2E, [])
    assert lab.route_title(workload, good).startswith("Model-aware routing cuts the mean response to 3")
    assert lab.route_title(workload, none) == "Responses by way, mixed models"
    assert "model-aware against round-robin, e2e_s: 0.3" in lab.route_sentence(workload, good)


def test_instances_share_the_cores_of_this_host_only_where_engines_use_them() -> None:
    assert (lab.threads_each("embedded", 1) or 0) >= (lab.threads_each("embedded", 2) or 0) >= 1
    assert lab.threads_each("embedded", 10_000) == 1
    assert lab.threads_each("ollama", 2) is None
