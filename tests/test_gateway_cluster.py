"""Several servers behind one address: what clients see when some of them fail, differ, or are not there."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from cluster_nodes import KEY, MODEL, Node, is_at_rest, running
from embedded_server import EmbeddedServer
from gateway_service import Reply, Service, gateway

from ollamalab.routing import POLICIES

REQUESTS = 60
CLIENTS = 8  # so many may be on their way to a bad server before it is known as one


async def generate(service: Service, **fields: Any) -> Reply:
    return await service.post("/api/generate", {"model": MODEL, "prompt": "hi", **fields})


async def listed(service: Service, *names: str) -> None:
    """Wait until the models of these upstreams are known: their first request shows in the status."""
    members = {member.name: member for member in service.running.pipeline.cluster.members}
    while any(members[name].digests is None for name in names):  # noqa: ASYNC110 - a look sends no event
        await asyncio.sleep(0.002)


def is_good(reply: Reply) -> bool:
    return reply.status == 200 and bool(reply.lines[-1].get("done"))


@pytest.mark.parametrize(
    ("does", "least_good", "most_sent"),
    [
        ("refuse", REQUESTS, 0),
        ("500", REQUESTS, CLIENTS),
        ("503", REQUESTS, CLIENTS),
        ("garbage", REQUESTS, CLIENTS),
        ("hang", REQUESTS, CLIENTS),
        ("cut", REQUESTS - CLIENTS, CLIENTS),
        ("truncate", REQUESTS - CLIENTS, CLIENTS),
        ("error_line", REQUESTS - CLIENTS, CLIENTS),
    ],
)
async def test_one_bad_server_of_three_costs_no_request_that_had_not_begun(
    does: str, least_good: int, most_sent: int
) -> None:
    """Who fails at once attracts nothing, and broken streams end with an error line."""
    bad, *good = nodes = [Node(does), Node(), Node()]
    async with (
        running(*nodes),
        gateway(
            *(f"{node.url},name={name}" for name, node in zip("abc", nodes, strict=True)),
            route="least-inflight",
            request_timeout="0.3",
            load_timeout="0.3",
        ) as service,
    ):
        await listed(service, "a", "b", "c")
        if does == "refuse":
            await bad.stop()
        left = iter(range(REQUESTS))
        replies: list[Reply] = []

        async def client() -> None:
            for _ in left:
                replies.append(await generate(service))

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(client())
        assert len(replies) == REQUESTS
        assert sum(map(is_good, replies)) >= least_good
        for reply in replies:
            if not is_good(reply):
                assert (reply.status, reply.headers["X-Ollamalab-Upstream"]) == (200, "a")
                assert "error" in reply.lines[-1]
        assert len(bad.asked) <= most_sent
        assert all(len(node.asked) > REQUESTS // 4 for node in good)
        status = await service.at_rest()
        names = Counter(reply.headers["X-Ollamalab-Upstream"] for reply in replies)
        moved = {upstream["name"]: upstream["moved"] for upstream in status["upstreams"]}
        for upstream in status["upstreams"]:
            name = upstream["name"]
            assert upstream["requests"] == names[name] + moved[name]
        assert status["failovers"] == sum(moved.values())


async def test_a_server_that_goes_silent_loses_nobody_and_is_used_again_once_it_speaks() -> None:
    """It accepts connections and says nothing, as a stopped process: what waits there moves, by probes."""
    silent, *good = nodes = [Node(), Node(), Node()]
    async with (
        running(*nodes),
        gateway(
            *(f"{node.url},name={name}" for name, node in zip("abc", nodes, strict=True)),
            probe_interval="0.02",
            probe_timeout="0.2",
        ) as service,
    ):
        await listed(service, "a", "b", "c")
        silent.is_silent = True
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(generate(service)) for _ in range(REQUESTS)]
        replies = [task.result() for task in asked]
        assert all(map(is_good, replies))
        assert {reply.headers["X-Ollamalab-Upstream"] for reply in replies} == {"b", "c"}
        assert sum(len(node.asked) for node in good) == REQUESTS
        silent.is_silent = False
        await service.until(lambda now: now["upstreams"][0]["state"] == "up")
        names = {(await generate(service)).headers["X-Ollamalab-Upstream"] for _ in range(6)}
        assert names == {"a", "b", "c"}
        assert is_at_rest(service.running.pipeline.cluster)


@pytest.mark.parametrize("route", sorted(POLICIES))
@pytest.mark.parametrize("does", ["500", "503", "garbage"])
async def test_who_fails_at_once_attracts_nothing_whatever_the_policy(route: str, does: str) -> None:
    """Quick to be done with a request is not quick to answer it: three failures, or one that says why."""
    bad, *good = nodes = [Node(does), Node(), Node()]
    async with (
        running(*nodes),
        gateway(
            *(f"{node.url},name={name}" for name, node in zip("abc", nodes, strict=True)), route=route
        ) as service,
    ):
        await listed(service, "a", "b", "c")
        for number in range(REQUESTS):
            reply = await generate(service, prompt=f"chat {number % 7}")
            assert is_good(reply)
            assert reply.headers["X-Ollamalab-Upstream"] != "a"
        assert len(bad.asked) <= 3 + 1  # another on trial, should the breaker's time have passed
        assert sum(len(node.asked) for node in good) == REQUESTS


@pytest.mark.parametrize(
    ("does", "status", "words", "asked"),
    [
        ("500", 500, "it says 500", 3),
        ("503", 503, "it says 503", 3),
        ("garbage", 503, "not HTTP", 3),
        ("hang", 504, "sent nothing in 0.1 s", 3),
        ("cut", 200, "error", 1),
    ],
)
async def test_if_all_servers_fail_the_client_is_told_how(
    does: str, status: int, words: str, asked: int
) -> None:
    """What nobody answers has been asked of each server once; a stream that began, of nobody else."""
    nodes = [Node(does) for _ in range(3)]
    async with (
        running(*nodes),
        gateway(*(node.url for node in nodes), request_timeout="0.1", load_timeout="0.1") as service,
    ):
        await listed(service, *(member.name for member in service.running.pipeline.cluster.members))
        reply = await generate(service)
        assert reply.status == status
        assert words in str(reply.lines[-1])
        assert sum(len(node.asked) for node in nodes) == asked


async def test_weights_of_3_and_2_serve_exactly_3_and_2_of_every_5() -> None:
    a, b = Node(), Node()
    async with (
        running(a, b),
        gateway(f"{a.url},name=a,weight=3", f"{b.url},name=b,weight=2", route="weighted") as service,
    ):
        await listed(service, "a", "b")
        names = [(await generate(service)).headers["X-Ollamalab-Upstream"] for _ in range(40)]
        for start in range(len(names) - 5):
            assert Counter(names[start : start + 5]) == {"a": 3, "b": 2}
        assert (len(a.asked), len(b.asked)) == (24, 16)


async def test_failures_are_counted_once_each_by_kind() -> None:
    node = Node()
    async with (
        running(node),
        gateway(f"{node.url},name=a", request_timeout="0.05", load_timeout="0.05") as service,
    ):
        await listed(service, "a")
        for does in ("answer", "500", "503", "cut", "truncate", "error_line", "garbage", "hang"):
            node.does = does
            await generate(service)
        await node.stop()
        await generate(service)
        (upstream,) = (await service.at_rest())["upstreams"]
        assert upstream["failures"] == {"timeout": 1, "unavailable": 1, "broken": 4, "status": 2}
        assert upstream["requests"] == 9


async def test_no_server_at_start_is_a_503_with_retry_after_until_one_comes() -> None:
    a, b = Node(), Node()
    async with running(a, b):
        urls = a.url, b.url
        await a.stop()
        await b.stop()
        async with gateway(*urls, probe_interval="0.05") as service:
            for path in ("/api/generate", "/api/chat", "/v1/completions"):
                reply = await service.post(path, {"model": MODEL, "prompt": "hi"})
                assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
                assert "cannot connect" in str(reply.lines[0]["error"])
            async with service.http.get("/api/tags") as lists:
                assert (lists.status, lists.headers["Retry-After"]) == (503, "1")
            await b.start()
            await service.until(lambda now: "up" in [upstream["state"] for upstream in now["upstreams"]])
            assert is_good(await generate(service))
            async with service.http.get("/api/tags") as lists:
                assert [model["name"] for model in (await lists.json())["models"]] == [MODEL]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/generate", "model 'nothing' not found"),
        ("/api/chat", "model 'nothing' not found"),
        ("/api/embed", 'model "nothing" not found, try pulling it first'),
        ("/api/embeddings", 'model "nothing" not found, try pulling it first'),
        ("/api/show", "model 'nothing:latest' not found"),
        ("/v1/chat/completions", "model 'nothing' not found"),
        ("/v1/completions", "model 'nothing' not found"),
        ("/v1/embeddings", 'model "nothing" not found, try pulling it first'),
    ],
)
async def test_a_model_that_exists_nowhere_is_a_404_in_ollamas_words(
    server: EmbeddedServer, path: str, words: str
) -> None:
    """A server that answers at two addresses is two upstreams; neither has it."""
    urls = server.url, server.url.replace("127.0.0.1", "localhost")
    body = {
        "model": "nothing",
        "prompt": "hi",
        "input": "hi",
        "messages": [{"role": "user", "content": "hi"}],
    }
    async with gateway(*urls) as service:
        await listed(service, *(member.name for member in service.running.pipeline.cluster.members))
        reply = await service.post(path, body)
        error = reply.lines[0]["error"]
        assert (reply.status, error["message"] if path.startswith("/v1/") else error) == (404, words)
        status = await service.at_rest()
        assert status["failovers"] == 0
        assert sum(sum(upstream["failures"].values()) for upstream in status["upstreams"]) == 0


async def test_upstreams_that_disagree_on_a_model_are_not_cached_and_shown() -> None:
    a, b = Node(models={MODEL: "a" * 64}), Node(models={MODEL: "b" * 64})
    async with (
        running(a, b),
        gateway(f"{a.url},name=a", f"{b.url},name=b", cache="memory") as service,
    ):
        await listed(service, "a", "b")
        found = [(await generate(service)).headers["X-Ollamalab-Cache"] for _ in range(3)]
        assert found == ["bypass"] * 3
        assert (await service.status())["disagreements"] == {KEY: {"a": "a" * 64, "b": "b" * 64}}


async def test_upstreams_that_agree_share_their_cached_answers() -> None:
    a, b = Node(), Node()
    async with running(a, b), gateway(a.url, b.url, cache="memory") as service:
        await listed(service, *(member.name for member in service.running.pipeline.cluster.members))
        found = [(await generate(service)).headers["X-Ollamalab-Cache"] for _ in range(3)]
        assert found == ["miss", "hit", "hit"]
        assert len(a.asked) + len(b.asked) == 1


async def test_the_small_routes_are_answered_for_all() -> None:
    a, b = Node(models={"one:1b": "a" * 64}), Node(models={"two:1b": "b" * 64})
    async with running(a, b), gateway(a.url, b.url, admin=True) as service:
        await listed(service, *(member.name for member in service.running.pipeline.cluster.members))
        for path in ("/", "/api/version", "/api/tags"):
            async with service.http.get(path) as got, service.http.head(path) as headed:
                assert (got.status, headed.status, await headed.read()) == (200, 200, b"")
                assert headed.headers["Content-Length"] == got.headers["Content-Length"]
        async with service.http.get("/v1/models/two:1b") as reply:
            assert reply.status == 200
        refused = await service.post("/api/pull", {"model": "three:1b"})
        assert refused.status == 400
        assert "ask the server itself" in refused.lines[0]["error"]
