"""A subject on real sockets: equal prompts for the arms of a block, fresh nonces, failures on record."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.compare import Visit
from ollamalab.errors import TargetError
from ollamalab.hosts import open_target
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import PromptShape, Subject, default_keep_alive_s, mean_of, subject
from ollamalab.lab.trials import run_visits
from ollamalab.loadgen import LoadSettings
from ollamalab.metrics import e2e_final_line_s
from ollamalab.protocol.lines import encode_line
from ollamalab.records import Outcome
from ollamalab.scripted import Fault, Script, ScriptedServer

MODEL = "scripted"
SHAPE = PromptShape(prompt_tokens=70, num_predict=3)
QUICK: dict[str, Any] = {"first_s": 0.002, "gap_s": 0.001, "tokens": 3}


class Recorder:
    """A server that keeps every chat it is asked, and says what is loaded.

    Attributes:
        chats: Bodies since ``take``.
        loaded: As ``/api/ps`` lists it.
        loads: Bodies of empty chats, which load and unload.
        keeps_models: False to unload after each request.
    """

    def __init__(self) -> None:
        self.keeps_models = True
        self.chats: list[dict[str, Any]] = []
        self.loaded: list[dict[str, Any]] = []
        self.loads: list[dict[str, Any]] = []

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        if not body["messages"]:
            self.loads.append(body)
            if body.get("keep_alive") == 0:
                self.loaded = [model for model in self.loaded if model["name"] != body["model"]]
            elif self.keeps_models:
                self.loaded.append({"name": body["model"], "expires_at": "2318-01-01T00:00:00.123456789Z"})
            return web.json_response({"done": True})
        self.chats.append(body)
        said = {"message": {"role": "assistant", "content": "word"}, "done": False}
        final = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "length"}
        return web.Response(body=encode_line(said) + encode_line(final), content_type="application/x-ndjson")

    async def ps(self, _: web.Request) -> web.Response:
        return web.json_response({"models": self.loaded})

    def take(self) -> list[dict[str, Any]]:
        """Return the chats since the last call."""
        taken, self.chats = self.chats, []
        return taken


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def recorded(recorder: Recorder) -> AsyncIterator[Subject]:
    """A subject whose server keeps what it was asked."""
    app = web.Application()
    app.add_routes([web.post("/api/chat", recorder.chat), web.get("/api/ps", recorder.ps)])
    async with TestServer(app) as server:
        target = RemoteTarget(str(server.make_url("")).rstrip("/"), "0")
        async with Subject(target, "m:1b", seed=5) as opened:
            yield opened


@asynccontextmanager
async def scripted(**script: Any) -> AsyncIterator[Subject]:
    """Give a subject on a scripted server."""
    async with (
        ScriptedServer(Script(**QUICK, **script)) as server,
        open_target(server.url) as target,
        Subject(target, MODEL, seed=0) as opened,
    ):
        yield opened


def words(chats: list[dict[str, Any]]) -> list[str]:
    return [chat["messages"][-1]["content"] for chat in chats]


def nonces(chats: list[dict[str, Any]]) -> list[str]:
    """Return the nonces; each opens its request's first message."""
    found = [re.match(r"(\d{9})\n", chat["messages"][0]["content"]) for chat in chats]
    assert all(found)
    return [match[1] for match in found if match]


async def test_equal_names_and_seeds_give_equal_words_with_different_nonces(
    recorder: Recorder, recorded: Subject
) -> None:
    settings = LoadSettings(requests=4)
    await recorded.offer(settings, SHAPE, stream="one")
    first = recorder.take()
    await recorded.offer(settings, SHAPE, stream="one")
    again = recorder.take()
    await recorded.offer(settings, SHAPE, stream="two")
    other = recorder.take()
    async with Subject(recorded.target, "m:1b", seed=6) as reseeded:
        await reseeded.offer(settings, SHAPE, stream="one")
    assert words(first) == words(again)
    assert len({*words(first), *words(other), *words(recorder.chats)}) == 12
    assert len({*nonces(first), *nonces(again), *nonces(other)}) == 12
    assert {chat["model"] for chat in first} == {"m:1b"}
    assert {chat["options"]["num_predict"] for chat in first} == {3}


async def test_its_options_go_with_every_request_and_with_the_load(
    recorder: Recorder, recorded: Subject
) -> None:
    """A load without them would be followed by a second one."""
    recorded.options = {"num_ctx": 512}
    await recorded.load()
    await recorded.offer(LoadSettings(requests=1), SHAPE)
    assert [load["options"] for load in recorder.loads] == [{"num_ctx": 512}]
    assert [chat["options"]["num_ctx"] for chat in recorder.chats] == [512]
    assert recorder.chats[0]["options"]["temperature"] == 0


async def test_the_arms_of_a_block_get_equal_prompts_and_arrivals(
    recorder: Recorder, recorded: Subject
) -> None:
    poisson = Arrivals(pattern=ArrivalPattern.POISSON, rate_rps=500.0)
    visit = recorded.loads(LoadSettings(arrivals=poisson, requests=5, seed=3), SHAPE)
    prompts, plans = [], []
    for index, block in enumerate((0, 0, 1)):
        records = list(await visit(Visit(index=index, block=block, arm=str(index))))
        prompts.append(sorted(words(recorder.take())))
        plans.append([record.intended_s - records[0].intended_s for record in records])
    assert prompts[0] == prompts[1] != prompts[2]
    assert plans[0] == pytest.approx(plans[1], abs=1e-9)
    assert plans[0] != pytest.approx(plans[2], abs=1e-9)


async def test_a_first_request_finds_the_model_unloaded_or_preloaded(
    recorder: Recorder, recorded: Subject
) -> None:
    visit = Visit(index=0, block=0, arm="a")
    await recorded.client.preload("m:1b")
    await recorded.first_request(SHAPE, is_preloaded=False)(visit)
    assert recorder.loaded == []
    await recorded.first_request(SHAPE, is_preloaded=True)(visit)
    assert [model["name"] for model in recorder.loaded] == ["m:1b"]
    one, other = words(recorder.take())
    assert one == other


async def test_only_the_subjects_own_model_counts_as_loaded(recorder: Recorder, recorded: Subject) -> None:
    """Names are compared as Ollama does: without case."""
    recorder.loaded = [{"name": "other:latest", "expires_at": "2020-01-01T00:00:00Z"}]
    assert not await recorded.is_loaded()
    assert await recorded.listing() is None
    recorder.loaded.append({"name": "M:1B", "size": 7})
    assert await recorded.is_loaded()
    assert await recorded.listing() == {"name": "M:1B", "size": 7}
    assert list(await recorded.loaded()) == ["other:latest", "M:1B"]


async def test_the_default_keep_alive_is_that_of_the_subjects_model(
    recorder: Recorder, recorded: Subject
) -> None:
    """Not that of whatever is listed first; "for ever" is a date centuries away, to the nanosecond."""
    recorder.loaded = [{"name": "other:latest", "expires_at": "2020-01-01T00:00:00Z"}]
    assert await default_keep_alive_s(recorded) > 200 * 365 * 86400


async def test_a_model_that_is_gone_at_once_has_a_keep_alive_of_0(
    recorder: Recorder, recorded: Subject
) -> None:
    recorder.keeps_models = False
    assert await default_keep_alive_s(recorded) == 0.0


async def test_a_model_that_stays_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted server lists its model for ever, as one does that another client keeps busy."""
    monkeypatch.setattr(subject, "_UNLOAD_DEADLINE_S", 0.05)
    async with scripted() as opened:
        with pytest.raises(TargetError, match=r"still has 'scripted' loaded 0\.05 s after"):
            await opened.unload()


async def test_a_visit_whose_requests_fail_is_on_record() -> None:
    faults = {1: Fault.BUSY, 2: Fault.CUT, 4: Fault.ERROR_LINE}
    async with scripted(faults=faults) as opened:
        visitor = opened.loads(LoadSettings(requests=2), SHAPE)
        visits = [Visit(index=0, block=0, arm="a"), Visit(index=1, block=0, arm="b")]
        found = await run_visits({"a": visitor, "b": visitor}, visits)
        more = await opened.offer(LoadSettings(requests=2), SHAPE)
    outcomes = [record.outcome for record in (*found.records, *more.records)]
    assert outcomes[:3] == [Outcome.OK, Outcome.HTTP_ERROR, Outcome.TRUNCATED]
    assert outcomes[3:] == [Outcome.OK, Outcome.ERROR_LINE, Outcome.OK]
    assert [record.visit for record in found.records] == [0, 0, 1, 1]
    assert mean_of(e2e_final_line_s)(found.of("a")[1:]) is None
    assert len(opened.health) == 3


async def test_a_server_that_is_gone_leaves_records_of_refusals() -> None:
    async with AsyncExitStack() as life:
        server = await life.enter_async_context(ScriptedServer(Script(**QUICK)))
        async with open_target(server.url) as target, Subject(target, MODEL, seed=0) as opened:
            await life.aclose()
            result = await opened.offer(LoadSettings(requests=3), SHAPE)
    assert [record.outcome for record in result.records] == [Outcome.REFUSED] * 3
    assert all(record.error for record in result.records)


async def test_a_server_of_somebody_else_is_not_restarted_and_closes_cleanly() -> None:
    async with scripted() as opened:
        with pytest.raises(TargetError, match="was not started by ollamalab"):
            await opened.restart()
    assert opened.name == f"scripted on {opened.target.url}"
