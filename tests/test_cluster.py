"""A cluster sends each request where it is answered, and on before the first byte if it is not."""

from __future__ import annotations

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

import pytest
from cluster_nodes import (
    KEY,
    MODEL,
    QUICK,
    STILL,
    Node,
    body_of,
    clustered,
    generate,
    get,
    is_at_rest,
    listed,
    member_of,
    running,
)

from ollamalab.cluster import Cluster, Member, MemberState
from ollamalab.connection import OllamaConnection
from ollamalab.errors import BadReply, NoUpstream, RequestRefused, SettingsError, UpstreamError
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.settings import ClusterSettings

GOOD_STATUS = 200


async def answers(cluster: Cluster, count: int, **fields: Any) -> Counter[str]:
    """Send requests one after the other; return how each ended: its upstream's name, or its failure."""
    found: Counter[str] = Counter()
    for _ in range(count):
        try:
            status, name, _ = await body_of(cluster, generate(**fields))
        except UpstreamError as error:
            found[type(error).__name__] += 1
        else:
            found[name if status == GOOD_STATUS else str(status)] += 1
    return found


class TestChoosing:
    async def test_weights_are_kept_exactly_over_every_turn(self) -> None:
        nodes = Node(), Node()
        async with running(*nodes), AsyncExitStack() as stack:
            members = [
                await member_of(node, name, stack, weight=weight)
                for node, name, weight in zip(nodes, "ab", (3, 2), strict=True)
            ]
            async with Cluster(members, route="weighted", settings=QUICK) as cluster:
                names = [(await body_of(cluster, generate()))[1] for _ in range(40)]
                for start in range(36):
                    assert Counter(names[start : start + 5]) == {"a": 3, "b": 2}

    async def test_a_request_goes_only_where_its_model_is(self) -> None:
        a, b = Node(), Node(models={"other:latest": "e" * 64})
        async with clustered(a, b) as cluster:
            await listed(cluster)
            assert await answers(cluster, 5) == {"a": 5}
            assert await answers(cluster, 5, model="OTHER") == {"b": 5}

    async def test_before_any_list_is_known_the_right_one_is_found_by_asking(self) -> None:
        """The first member says 404; then all are asked for their lists, and the request moves on."""
        a, b = Node(models={}), Node(models={})
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            b.models[MODEL] = "d" * 64  # pulled meanwhile, past us
            for member in cluster.members:
                member.listed_s -= 60.0
            assert await answers(cluster, 2) == {"b": 2}
            assert [len(node.asked) for node in (a, b)] in ([1, 2], [0, 2])

    async def test_a_model_that_is_nowhere_is_not_found_in_the_servers_own_words(self) -> None:
        a, b = Node(), Node()
        async with clustered(a, b) as cluster:
            await listed(cluster)
            status, _, body = await body_of(cluster, generate(model="nothing:7b"))
            assert (status, json.loads(body)) == (404, {"error": "model 'nothing:7b' not found"})
            assert len(a.asked) + len(b.asked) == 1
            assert cluster.statistics().failovers == 0

    async def test_a_set_number_of_places_is_kept_whatever_the_policy_prefers(self) -> None:
        """Round robin would send the third request to the first member, where one is still held."""
        a, b = Node(), Node()
        a.gate.clear()
        async with clustered(a, b, max_concurrent=1) as cluster:
            held = await cluster.send(generate())
            assert [(await body_of(cluster, generate()))[1] for _ in range(3)] == ["b", "b", "b"]
            a.gate.set()
            async with held:
                assert [chunk async for chunk in held.chunks()]
            assert {(await body_of(cluster, generate()))[1] for _ in range(2)} == {"a", "b"}

    async def test_model_aware_stays_with_the_one_that_has_it_loaded(self) -> None:
        a, b, c = Node(), Node(), Node()
        b.loaded = [MODEL]
        async with clustered(a, b, c, route="model-aware") as cluster:
            await until(lambda: cluster.members[1].view.model(KEY).is_resident)
            assert await answers(cluster, 5) == {"b": 5}

    async def test_an_answer_makes_a_model_resident_and_a_list_without_it_unloads_it(self) -> None:
        a = Node()
        async with clustered(a) as cluster:
            await body_of(cluster, generate())
            assert cluster.members[0].view.models[KEY].is_resident
            await body_of(cluster, generate())  # traffic, so that lists are looked at again
            await until(lambda: not cluster.members[0].view.models[KEY].is_resident)

    async def test_after_a_load_it_is_asked_what_had_to_go(self) -> None:
        """Both hold the first model; the second takes its place at one of them, and nobody told us."""
        models = {MODEL: "d" * 64, "other:1b": "e" * 64}
        a, b = Node(models=models), Node(models=models)
        a.loaded, b.loaded = [MODEL], [MODEL]
        async with clustered(a, b, route="model-aware", settings=STILL) as cluster:
            await until(lambda: all(member.view.model(KEY).is_resident for member in cluster.members))
            (taker,) = await answers(cluster, 1, model="other:1b")
            {"a": a, "b": b}[taker].loaded = ["other:1b"]
            (keeper,) = {"a", "b"} - {taker}
            assert await answers(cluster, 5) == {keeper: 5}
            assert await answers(cluster, 5, model="other:1b") == {taker: 5}

    async def test_a_chat_stays_where_its_beginning_is(self) -> None:
        nodes = [Node() for _ in range(3)]
        async with clustered(*nodes, route="prefix", rng=random.Random(3)) as cluster:
            system = {"role": "system", "content": "You are a lighthouse keeper. " * 20}
            chat = [system, {"role": "user", "content": "Who are you?"}]
            chosen = set()
            for turn in range(5):
                request = generate(path="/api/chat", messages=chat)
                chosen.add((await body_of(cluster, request))[1])
                chat += [{"role": "assistant", "content": "I."}, {"role": "user", "content": f"More {turn}"}]
            assert len(chosen) == 1

    def test_an_unknown_route_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="route must be one of"):
            Cluster([], route="fastest")

    async def test_bare_connections_are_members_by_their_address(self) -> None:
        a, b = Node(), Node()
        async with (
            running(a, b),
            OllamaConnection(a.url) as first,
            OllamaConnection(b.url) as second,
            Cluster([first, second]) as cluster,
        ):
            await listed(cluster)
            names = {node.url.removeprefix("http://") for node in (a, b)}
            assert set(await answers(cluster, 4)) == names

    async def test_an_empty_cluster_has_no_upstream(self) -> None:
        async with Cluster([]) as cluster:
            with pytest.raises(NoUpstream, match="there is no upstream"):
                await cluster.send(generate())


class TestFailover:
    @pytest.mark.parametrize("does", ["500", "503", "garbage", "refuse"])
    async def test_who_fails_at_once_costs_nobody_an_answer_and_attracts_nothing(self, does: str) -> None:
        """A fast failure is not idleness: it gets a few requests, then none, while the others are busy."""
        bad, *_ = nodes = Node(does), Node(), Node()
        async with clustered(*nodes, settings=STILL, route="least-inflight", rng=random.Random(1)) as cluster:
            await listed(cluster)
            if does == "refuse":
                await bad.stop()
            found = await answers(cluster, 60)
            assert found["b"] + found["c"] == 60
            assert len(bad.asked) <= 3
            failures = cluster.statistics().members[0].failures
            kind = {"500": "status", "503": "status", "garbage": "broken", "refuse": "unavailable"}[does]
            assert failures == {**dict.fromkeys(failures, 0), kind: failures[kind]}
            assert 1 <= failures[kind] <= 3
            assert cluster.statistics().failovers == failures[kind]
            assert is_at_rest(cluster)

    async def test_a_stream_that_has_begun_fails_with_its_member(self) -> None:
        """What has come stays, then the error; nothing is sent twice."""
        a, b = Node("cut"), Node()
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            chunks = []
            with pytest.raises(BadReply):
                async with await cluster.send(generate()) as reply:
                    chunks += [chunk async for chunk in reply.chunks()]
            assert cluster.statistics().failovers == 0
            assert is_at_rest(cluster)
            failures = [member.failures["broken"] for member in cluster.statistics().members]
            assert failures == [1, 0]

    @pytest.mark.parametrize("does", ["truncate", "error_line"])
    async def test_a_body_that_ends_without_its_final_line_counts_as_broken(self, does: str) -> None:
        a = Node(does)
        async with clustered(a, settings=STILL) as cluster:
            await listed(cluster)
            for count in (1, 2, 3):
                await body_of(cluster, generate())
                assert cluster.statistics().members[0].failures["broken"] == count
            assert cluster.statistics().members[0].models[KEY].breaker == "open"

    async def test_who_breaks_streams_is_soon_avoided(self) -> None:
        a, b = Node("cut"), Node()
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            found = await answers(cluster, 20)
            assert (found["BadReply"], len(a.asked)) == (3, 3)

    async def test_if_all_are_ejected_all_are_tried_rather_than_none(self) -> None:
        a, b = Node("500"), Node("500")
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            assert await answers(cluster, 20) == {"500": 20}
            a.does = b.does = "answer"
            assert set(await answers(cluster, 5)) <= {"a", "b"}

    async def test_an_error_that_all_give_is_passed_on_as_it_is(self) -> None:
        a, b = Node("500"), Node("500")
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            status, name, body = await body_of(cluster, generate())
            assert (status, json.loads(body)) == (500, {"error": "it says 500"})
            assert name in ("a", "b")
            assert len(a.asked) == len(b.asked) == 1

    async def test_no_request_is_sent_to_more_than_so_many(self) -> None:
        nodes = [Node("garbage") for _ in range(5)]
        async with clustered(*nodes, settings=STILL) as cluster:
            with pytest.raises(BadReply):
                await body_of(cluster, generate())
            assert sum(len(node.asked) for node in nodes) == 3

    async def test_bad_answers_are_not_asked_for_twice_without_end(self) -> None:
        """Of forty requests that every server answers 500, at most a fifth and ten go to a second one."""
        nodes = [Node("500"), Node("500")]
        async with clustered(*nodes, settings=STILL) as cluster:
            await listed(cluster)
            assert await answers(cluster, 40) == {"500": 40}
            statistics = cluster.statistics()
            assert statistics.failovers <= 10 + 0.2 * 40
            assert statistics.retries_denied >= 40 - statistics.failovers
            assert sum(len(node.asked) for node in nodes) == 40 + statistics.failovers

    async def test_who_dies_with_many_waiting_costs_none_of_them_an_answer(self) -> None:
        """The requests only move: no budget holds them back, however many they are."""
        a, b = Node("hang"), Node()
        async with clustered(a, b, settings=STILL) as cluster:
            await listed(cluster)
            tasks = [asyncio.create_task(body_of(cluster, generate())) for _ in range(60)]
            await a.called(30)
            await a.stop()
            assert [(await task)[:2] for task in tasks] == [(200, "b")] * 60
            assert is_at_rest(cluster)

    async def test_what_waits_at_a_silent_server_moves_when_probes_find_it_so(self) -> None:
        a, b = Node(), Node()
        quick = ClusterSettings(probe_interval_s=0.02, probe_timeout_s=0.05, list_interval_s=0.02)
        async with clustered(a, b, settings=quick) as cluster:
            await listed(cluster)
            a.is_silent = True
            found = [body_of(cluster, generate()) for _ in range(6)]
            assert {name for _, name, _ in await asyncio.gather(*found)} == {"b"}
            assert cluster.statistics().members[0].state is MemberState.DOWN
            a.is_silent = False
            await until(lambda: cluster.statistics().members[0].state is MemberState.UP)
            assert set(await answers(cluster, 4)) == {"a", "b"}

    async def test_what_waits_at_the_only_server_goes_on_waiting(self) -> None:
        a = Node("hang")
        quick = ClusterSettings(probe_interval_s=0.01, probe_timeout_s=0.03)
        async with clustered(a, settings=quick) as cluster:
            task = asyncio.create_task(body_of(cluster, generate()))
            await a.called(1)
            a.is_silent = True
            await until(lambda: cluster.statistics().members[0].state is MemberState.DOWN)
            looks = cluster.statistics().members[0].probes
            await until(lambda: cluster.statistics().members[0].probes > looks + 2)
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert is_at_rest(cluster)

    async def test_a_client_that_goes_away_leaves_nothing_booked(self) -> None:
        a = Node("hang")
        async with clustered(a) as cluster:
            task = asyncio.create_task(body_of(cluster, generate()))
            await a.called(1)
            assert cluster.members[0].view.in_flight == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert is_at_rest(cluster)
            await a.until(lambda: a.hung_up == 1)
            assert cluster.statistics().members[0].models[KEY].breaker == "closed"

    async def test_a_busy_one_gets_nothing_until_its_time_is_over(self) -> None:
        now_s = 0.0
        a, b = Node("503"), Node()
        async with clustered(a, b, settings=STILL, clock=lambda: now_s) as cluster:
            await listed(cluster)
            await answers(cluster, 10)
            assert (len(a.asked), cluster.statistics().members[0].state) == (1, MemberState.BUSY)
            a.does, now_s = "answer", 1.5
            await answers(cluster, 10)
            assert len(a.asked) == 6

    async def test_a_breaker_lets_one_request_through_on_trial(self) -> None:
        now_s = 0.0
        a, b = Node("500"), Node()
        async with clustered(a, b, settings=STILL, clock=lambda: now_s) as cluster:
            await listed(cluster)
            await answers(cluster, 10)
            assert len(a.asked) == 3
            now_s = 3.0
            await answers(cluster, 10)
            assert len(a.asked) == 4  # the trial failed: closed to all others
            a.does, now_s = "answer", 20.0
            a.gate.clear()
            trial = None
            for _ in range(2):
                reply = await cluster.send(generate())
                if reply.headers["x-ollamalab-upstream"] == "a":
                    trial = reply
                else:
                    async with reply:
                        assert [chunk async for chunk in reply.chunks()]
            assert trial is not None
            assert await answers(cluster, 4) == {"b": 4}  # as long as nobody knows how it ends
            a.gate.set()
            async with trial:
                assert [chunk async for chunk in trial.chunks()]
            assert set(await answers(cluster, 4)) == {"a", "b"}


class TestStart:
    async def test_all_down_is_a_503_that_says_when_to_come_back_and_passes(self) -> None:
        a, b = Node(), Node()
        async with clustered(a, b) as cluster:
            await a.stop()
            await b.stop()
            with pytest.raises(NoUpstream, match=r"none of a, b could be reached|cannot connect") as raised:
                await cluster.send(generate())
            assert raised.value.retry_after_s == QUICK.probe_interval_s
            await b.start()
            await until(lambda: cluster.members[1].health.is_up)
            assert await answers(cluster, 3) == {"b": 3}

    async def test_one_that_comes_back_is_asked_again_by_itself(self) -> None:
        a, b = Node(), Node()
        async with clustered(a, b) as cluster:
            await listed(cluster)
            await a.stop()
            assert await answers(cluster, 4) == {"b": 4}
            await a.start()
            await until(lambda: cluster.members[0].health.is_up)
            assert set(await answers(cluster, 4)) == {"a", "b"}


class TestMembership:
    async def test_members_join_and_leave_and_no_stream_notices(self) -> None:
        a, b = Node(), Node()
        a.gate.clear()
        async with running(a, b), AsyncExitStack() as stack:
            closed = asyncio.Event()

            async def close() -> None:
                closed.set()

            first = await member_of(a, "a", stack)
            first.close = close
            second = await member_of(b, "b", stack)
            async with Cluster([first], settings=QUICK) as cluster:
                held = await cluster.send(generate())
                cluster.set_members([second])
                assert {member.name: member.state for member in cluster.statistics().members} == {
                    "b": MemberState.UP,
                    "a": MemberState.LEAVING,
                }
                assert await answers(cluster, 5) == {"b": 5}
                assert not closed.is_set()
                a.gate.set()
                async with held:
                    body = b"".join([chunk async for chunk in held.chunks()])
                assert json.loads(body.splitlines()[-1])["done"]
                await closed.wait()
                assert [member.name for member in cluster.statistics().members] == ["b"]

    async def test_a_member_that_stays_keeps_all_that_is_known_of_it(self) -> None:
        a, b = Node(), Node()
        async with running(a, b), AsyncExitStack() as stack:
            first, second = await member_of(a, "a", stack), await member_of(b, "b", stack)
            async with Cluster([first], settings=QUICK) as cluster:
                await answers(cluster, 3)
                cluster.set_members([first, second])
                await listed(cluster)
                (kept, _) = cluster.statistics().members
                assert kept.requests == 3
                assert set(await answers(cluster, 4)) == {"a", "b"}

    async def test_who_leaves_while_a_refusal_is_left_is_not_asked_next(self) -> None:
        """The next one had been found by then; a reload in between took it away."""
        a, b, c = Node("500"), Node(), Node()
        async with clustered(a, b, c, settings=STILL) as cluster:
            await listed(cluster)
            first, _, third = cluster.members
            first.upstream = Leaving(first.upstream, lambda: cluster.set_members([first, third]))
            assert (await body_of(cluster, generate()))[:2] == (200, "c")
            assert (len(a.asked), len(b.asked), len(c.asked)) == (1, 0, 1)

    async def test_a_reason_to_look_that_comes_during_a_look_is_not_lost(self) -> None:
        a, b = Node(), Node()
        a.is_silent = True
        slow = ClusterSettings(probe_interval_s=3600.0, probe_timeout_s=0.1)
        async with clustered(a, b, settings=slow) as cluster:
            await a.until(lambda: len(a.looks) == 1)
            cluster.members[0].look.set()
            await a.until(lambda: len(a.looks) == 2)


class Leaving:
    """An upstream that has something happen while the answer to an inference is left."""

    def __init__(self, upstream: Upstream, happens: Callable[[], None]) -> None:
        self._upstream = upstream
        self._happens = happens

    async def send(self, request: Request) -> Reply:
        reply = await self._upstream.send(request)
        return LeftReply(reply, self._happens) if request.method == "POST" else reply


class LeftReply:
    """A reply of such an upstream."""

    def __init__(self, reply: Reply, happens: Callable[[], None]) -> None:
        self.status, self.headers, self.chunks = reply.status, reply.headers, reply.chunks
        self._reply = reply
        self._happens = happens

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *failure: Any) -> None:
        self._happens()
        await self._reply.__aexit__(*failure)


class TestLists:
    async def test_lists_are_merged_each_name_once(self) -> None:
        a = Node(models={"one:1b": "a" * 64, "both:1b": "b" * 64})
        b = Node(models={"both:1b": "b" * 64, "two:1b": "c" * 64})
        a.loaded, b.loaded = ["one:1b"], ["two:1b", "both:1b"]
        async with clustered(a, b) as cluster:
            _, _, body = await body_of(cluster, get("/api/tags"))
            assert sorted(model["name"] for model in json.loads(body)["models"]) == [
                "both:1b",
                "one:1b",
                "two:1b",
            ]
            _, _, body = await body_of(cluster, get("/api/ps"))
            assert len(json.loads(body)["models"]) == 3
            _, _, body = await body_of(cluster, get("/v1/models"))
            assert {model["id"] for model in json.loads(body)["data"]} == {"both:1b", "one:1b", "two:1b"}

    async def test_who_does_not_answer_is_left_out_of_a_list(self) -> None:
        a, b = Node(models={"one:1b": "a" * 64}), Node(models={"two:1b": "b" * 64})
        async with clustered(a, b) as cluster:
            await a.stop()
            _, _, body = await body_of(cluster, get("/api/tags"))
            assert [model["name"] for model in json.loads(body)["models"]] == ["two:1b"]
            await b.stop()
            with pytest.raises(NoUpstream, match="no upstream answers"):
                await cluster.send(get("/api/tags"))

    async def test_a_description_comes_from_who_has_the_model(self) -> None:
        a, b = Node(models={"one:1b": "a" * 64}), Node(models={"two:1b": "b" * 64})
        async with clustered(a, b) as cluster:
            await listed(cluster)
            for node, model in ((a, "one:1b"), (b, "two:1b")):
                _, _, body = await body_of(cluster, generate(path="/api/show", model=model))
                assert json.loads(body) == {"of": node.url}

    async def test_one_server_alone_says_everything_itself(self) -> None:
        a = Node(models={"z:1b": "a" * 64, "a:1b": "b" * 64})
        async with clustered(a) as cluster:
            _, name, body = await body_of(cluster, get("/api/tags"))
            assert name == "a"
            assert [model["name"] for model in json.loads(body)["models"]] == ["z:1b", "a:1b"]

    async def test_models_are_not_changed_on_several_servers_at_once(self) -> None:
        async with clustered(Node(), Node()) as cluster:
            with pytest.raises(RequestRefused, match=r"this one has several \(a, b\)") as raised:
                await cluster.send(generate(path="/api/pull"))
            assert raised.value.status == 400

    async def test_a_digest_is_one_that_all_agree_on(self) -> None:
        a = Node(models={"same:1b": "a" * 64, "other:1b": "b" * 64, "here:1b": "d" * 64})
        b = Node(models={"same:1b": "a" * 64, "other:1b": "c" * 64})
        async with clustered(a, b) as cluster:
            await listed(cluster)
            keys = {name: f"registry.ollama.ai/library/{name}:1b" for name in ("same", "other", "here", "no")}
            found = {name: await cluster.digest_of(key) for name, key in keys.items()}
            assert found == {"same": "a" * 64, "other": None, "here": "d" * 64, "no": None}
            assert cluster.statistics().disagreements == {keys["other"]: {"a": "b" * 64, "b": "c" * 64}}


# CPython's asyncio.Server drops transports that it accepts while it closes, unclosed; ours are counted below.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_storm_leaves_nothing_booked() -> None:
    """Clients come, read a bit or all, hang up at any time; servers fail in every way and come back."""
    rng = random.Random(11)
    nodes = [Node() for _ in range(4)]
    async with clustered(*nodes, route="predicted", rng=rng) as cluster:
        await listed(cluster)

        async def client(number: int) -> None:
            try:
                async with await cluster.send(generate(f"{number}", stream=number % 3 > 0)) as reply:
                    async for _ in reply.chunks():
                        if number % 7 == 0:
                            return
            except UpstreamError:
                pass

        tasks: list[asyncio.Task[None]] = []
        for number in range(600):
            tasks.append(asyncio.create_task(client(number)))
            node = rng.choice(nodes)
            if number % 10 == 0:
                node.does = rng.choice(
                    ["answer", "answer", "500", "503", "cut", "garbage", "hang", "truncate"]
                )
            if number % 5 == 0:
                rng.choice(tasks).cancel()
            if number % 3 == 0:
                await asyncio.sleep(0)
        for node in nodes:
            node.does = "answer"
        for task in tasks[::2]:
            task.cancel()
        for node in nodes:  # what hangs there must end too
            await node.stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        gc.collect()  # so that those transports are told of here
        assert is_at_rest(cluster)
        statistics = cluster.statistics()
        assert sum(member.requests for member in statistics.members) >= 600 * 0.5
        assert all(member.in_flight == 0 for member in statistics.members)


async def until(fact: object) -> None:
    """Turn the loop until something is so."""
    assert callable(fact)
    while not fact():  # noqa: ASYNC110 - looks send no event
        await asyncio.sleep(0.002)


def test_a_member_needs_no_loop() -> None:
    async def nowhere(_request: object) -> None:
        raise AssertionError

    class Nobody:
        send = nowhere

    assert Member("a", Nobody()).view.name == "a"  # type: ignore[arg-type]
