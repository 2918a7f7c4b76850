"""Warm-up beside a cluster: it hears of every request where that goes, and of its end exactly once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from embedded_server import EmbeddedServer
from held_upstream import MODEL, STREAM, HeldUpstream, ReadyReply, body_of, chat

from ollamalab.cluster import Cluster, Member
from ollamalab.connection import OllamaConnection
from ollamalab.errors import UpstreamUnavailable
from ollamalab.protocol.calls import Call, call_of
from ollamalab.protocol.upstream import Reply, Request
from ollamalab.settings import WarmupSettings
from ollamalab.warmup import Totals, Warmer

FAR_S = 1e9


class Note:
    """One visit, written down."""

    def __init__(self, name: str, call: Call) -> None:
        self.name, self.model, self.has_answered = name, call.model, False
        self.ends: list[float | None] = []

    def answering(self) -> None:
        assert not self.ends
        self.has_answered = True

    def ended(self, load_s: float | None) -> None:
        self.ends.append(load_s)


class Notebook:
    def __init__(self) -> None:
        self.notes: list[Note] = []

    def begun(self, name: str, call: Call) -> Note:
        self.notes.append(Note(name, call))
        return self.notes[-1]

    @property
    def story(self) -> list[tuple[str, bool, int]]:
        return [(note.name, note.has_answered, len(note.ends)) for note in self.notes]


class Server(HeldUpstream):
    """A held upstream that answers probes."""

    async def send(self, request: Request) -> Reply:
        if request.path in ("/api/version", "/api/ps"):
            return ReadyReply(b'{"version":"0.33.0","models":[]}')
        return await super().send(request)


@asynccontextmanager
async def cluster(count: int = 1) -> AsyncIterator[tuple[Cluster, list[Server], Notebook]]:
    servers, notebook = [Server() for _ in range(count)], Notebook()
    members = [Member(f"gpu{index}", server) for index, server in enumerate(servers)]
    async with Cluster(members, visits=notebook) as them:
        yield them, servers, notebook


async def test_an_answer_is_heard_of_with_what_it_waited_for_its_load() -> None:
    async with cluster() as (them, (server,), notebook):
        asked = asyncio.create_task(them.send(chat()))
        (await server.called(1)).open().give(*STREAM).end()
        await body_of(await asked)
    (note,) = notebook.notes
    assert (note.name, note.model, note.has_answered) == ("gpu0", MODEL, True)
    assert note.ends == [pytest.approx(0.0008, abs=1e-4)]


async def test_a_request_that_moves_on_is_heard_of_at_both() -> None:
    async with cluster(2) as (them, servers, notebook):
        asked = asyncio.create_task(them.send(chat()))
        while not any(server.calls for server in servers):  # noqa: ASYNC110
            await asyncio.sleep(0)
        first, second = sorted(servers, key=lambda server: -len(server.calls))
        first.calls[0].refuse(UpstreamUnavailable("it is gone"))
        (await second.called(1)).open().give(*STREAM).end()
        await body_of(await asked)
    assert sorted(notebook.story, key=lambda note: note[1]) == [
        (f"gpu{servers.index(first)}", False, 1),
        (f"gpu{servers.index(second)}", True, 1),
    ]


async def test_an_error_status_is_no_answer_of_the_model() -> None:
    async with cluster() as (them, (server,), notebook):
        asked = asyncio.create_task(them.send(chat()))
        (await server.called(1)).open(500).give(b'{"error":"out of memory"}').end()
        await body_of(await asked)
    assert notebook.story == [("gpu0", False, 1)]


async def test_a_client_that_goes_away_ends_its_visit() -> None:
    async with cluster() as (them, (server,), notebook):
        waiting = asyncio.create_task(them.send(chat()))
        await server.called(1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        asked = asyncio.create_task(them.send(chat()))
        (await server.called(2)).open().give(STREAM[0])
        async with await asked:
            pass
    assert notebook.story == [("gpu0", False, 1), ("gpu0", True, 1)]


async def test_the_ledger_of_real_requests(server: EmbeddedServer) -> None:
    """Each cold start counts once, whichever path it comes by; nothing else does."""
    async with (
        OllamaConnection(server.url) as connection,
        Warmer(WarmupSettings(keep="auto"), poll_s=FAR_S) as warmer,
        Cluster([Member("one", connection)], visits=warmer) as them,
    ):
        warmer.set_upstreams({"one": connection})

        async def ask(path: str, **fields: object) -> None:
            body = json.dumps({"model": server.model, **fields}).encode()
            reply = await them.send(Request(method="POST", path=path, body=body))
            assert reply.status == 200
            await body_of(reply)

        async def unload() -> None:
            await server.post("/api/generate", {"model": server.model, "keep_alive": 0})
            await warmer.look("one")

        def totals() -> Totals:
            return warmer.statistics().totals

        await unload()
        await ask("/api/generate", prompt="Hi", options={"num_predict": 1})
        assert (totals().suffered, totals().avoided) == (1, 0)
        (model,) = warmer.statistics().models
        assert model.load_s is not None
        assert totals().suffered_s == model.load_s > 0.1
        await ask("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
        await ask("/api/chat", messages=[{"role": "user", "content": "Hi"}], options={"num_predict": 1})
        assert totals().suffered == 1
        await unload()
        await ask("/api/embed", input="Hi")
        assert totals().suffered == 2
        assert totals().held_s == 0


async def test_upstreams_come_and_go() -> None:
    server = Server()
    async with Warmer(WarmupSettings(keep="auto"), poll_s=FAR_S) as warmer:
        warmer.set_upstreams({"a": server, "b": server})
        kept = warmer.begun("a", call_of(chat()))
        assert kept is not None
        warmer.set_upstreams({"a": server})
        assert warmer.begun("b", call_of(chat())) is None
        assert len(warmer.statistics().models) == 1  # a stays as it is, its request included
        warmer.set_upstreams({"a": Server()})
        assert warmer.statistics().models == ()
        kept.ended()  # what was under way at the former one may still end
