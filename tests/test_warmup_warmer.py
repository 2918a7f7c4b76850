"""The warmer on real sockets: it asks, loads, renews, and leaves as the keepers decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from embedded_server import EmbeddedServer
from memory_server import HandClock, MemoryServer
from warm_world import call

from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.errors import BadReply, ModelNotFound, UpstreamRejected
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings import WarmupSettings
from ollamalab.warmup import Preload, Totals, Warmer, list_loaded, send_preload

FAR_S = 1e9


class Bench:
    """A warmer and a server; looks when told to."""

    def __init__(self, server: MemoryServer, warmer: Warmer, upstream: Upstream) -> None:
        self.server, self.warmer, self.upstream = server, warmer, upstream
        self.clock = server.clock

    def use(self, model: str, *, load_s: float = 0.001, **fields: Any) -> None:
        """Let a request of the traffic come and go."""
        visit = self.warmer.begun("gpu1", call(model, **fields))
        assert visit is not None
        visit.answering()
        self.server.use(model)
        visit.ended(load_s)

    async def rhythm(self, model: str, gap_s: float) -> None:
        for _ in range(5):
            self.use(model, load_s=30.0)
            self.clock.now_s += gap_s
        self.use(model, load_s=30.0)
        await self.look()

    async def look(self) -> None:
        await self.warmer.look("gpu1")

    @property
    def totals(self) -> Totals:
        return self.warmer.statistics().totals

    async def until(self, is_so: Callable[[Totals], bool]) -> None:
        """Wait until the ledger says so; nothing tells when."""
        while not is_so(self.totals):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(*models: str, **settings: Any) -> AsyncIterator[Bench]:
    clock = HandClock()
    server = MemoryServer(clock, *models)
    warmer = Warmer(WarmupSettings(**settings), clock=clock, unix_clock=clock.unix_s, poll_s=FAR_S)
    async with server.serving(), OllamaConnection(server.url) as upstream, warmer:
        warmer.add("gpu1", upstream)
        await warmer.look("gpu1")
        yield Bench(server, warmer, upstream)


async def test_wanted_models_are_loaded_one_after_the_other() -> None:
    async with bench("a", "b", models=("a", "b")) as it:
        await it.until(lambda totals: totals.preloads == 1)
        await it.look()
        await it.until(lambda totals: totals.preloads == 2)
        assert {body["model"] for _path, body in it.server.asked} == {"a", "b"}
        assert all(path == "/api/generate" and set(body) == {"model"} for path, body in it.server.asked)
        await it.look()
        statistics = it.warmer.statistics()
        assert {(model.upstream, model.is_resident, model.load_s) for model in statistics.models} == {
            ("gpu1", True, 30.0)
        }


async def test_a_load_under_way_lets_no_second_begin_whatever_is_wanted() -> None:
    async with AsyncExitStack() as stack:
        clock = HandClock()
        server = await stack.enter_async_context(MemoryServer(clock, "a", "b").serving())
        server.gate.clear()
        upstream = await stack.enter_async_context(OllamaConnection(server.url))
        warmer = await stack.enter_async_context(
            Warmer(WarmupSettings(models=("a", "b")), clock=clock, unix_clock=clock.unix_s, poll_s=FAR_S)
        )
        warmer.add("gpu1", upstream)
        await server.until_asked(1)
        for _ in range(3):
            await warmer.look("gpu1")
        assert len(server.asked) == 1
        server.gate.set()


async def test_a_model_is_renewed_before_its_time_is_up_as_its_traffic_loads_it() -> None:
    async with bench("a", keep="auto") as it:
        await it.rhythm("a", gap_s=400)
        it.use("a", options={"num_ctx": 8192})
        await it.look()
        it.clock.now_s += 291
        await it.look()
        await it.until(lambda totals: totals.renewals == 1)
        assert it.server.asked == [("/api/generate", {"model": "a", "options": {"num_ctx": 8192}})]
        assert it.server.loaded["a"] == it.clock() + 300
        it.clock.now_s += 100
        it.use("a")
        assert (it.totals.avoided, it.totals.saved_s, it.totals.held_s) == (1, 30.0, 91.0)


async def test_nothing_is_renewed_unless_asked_for() -> None:
    async with bench("a", models=("a",)) as it:
        await it.until(lambda totals: totals.preloads == 1)
        await it.rhythm("a", gap_s=400)
        it.clock.now_s += 291
        await it.look()
        assert (it.totals.renewals, len(it.server.asked)) == (0, 1)


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
async def test_a_server_whose_clock_is_wrong_is_understood(ahead_s: float) -> None:
    async with bench("a", keep="auto") as it:
        it.server.ahead_s = ahead_s
        it.use("a")
        it.clock.now_s += 100
        await it.look()
        (model,) = it.warmer.statistics().models
        assert model.expires_in_s == pytest.approx(200, abs=1)


async def test_what_was_lost_is_loaded_again() -> None:
    async with bench("a", keep="auto") as it:
        await it.rhythm("a", gap_s=200)
        it.server.loaded.clear()
        await it.look()
        await it.until(lambda totals: totals.preloads == 1)
        assert "a" in it.server.loaded


async def test_a_server_that_comes_back_gets_its_models_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = HandClock()
    warmer = Warmer(WarmupSettings(models=("a",)), clock=clock, unix_clock=clock.unix_s, poll_s=FAR_S)
    server = MemoryServer(clock, "a")

    class Unsteady:
        is_up = False

        async def send(self, request: Request) -> Any:
            if not self.is_up:
                raise BadReply("it is down")
            return await connection.send(request)

    async with server.serving(), OllamaConnection(server.url) as connection, warmer:
        unsteady = Unsteady()
        warmer.add("gpu1", unsteady)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await warmer.look("gpu1")
        assert caplog.text.count("warmup_blind") == 1
        for count in (1, 2):
            unsteady.is_up = True
            await warmer.look("gpu1")
            await server.until_asked(count)
            while warmer.statistics().totals.preloads < count:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            unsteady.is_up = False
            await warmer.look("gpu1")
            server.loaded.clear()


@pytest.mark.parametrize(("model", "refuses"), [("nope", None), ("a", 500)])
async def test_a_load_that_fails_is_counted_told_and_not_repeated(
    model: str, refuses: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with AsyncExitStack() as stack:
        clock = HandClock()
        server = await stack.enter_async_context(MemoryServer(clock, "a").serving())
        server.refuses = refuses
        upstream = await stack.enter_async_context(OllamaConnection(server.url))
        warmer = await stack.enter_async_context(
            Warmer(WarmupSettings(models=(model,)), clock=clock, unix_clock=clock.unix_s, poll_s=FAR_S)
        )
        warmer.add("gpu1", upstream)
        while not warmer.statistics().totals.failures:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await warmer.look("gpu1")
        assert len(server.asked) == 1
        assert f"event=load_failed upstream=gpu1 model={model}" in caplog.text
        assert warmer.statistics().totals == Totals(failures=1)


async def test_a_removed_upstream_is_left_alone_and_its_books_are_kept() -> None:
    async with bench("a", "b", keep="auto") as it:
        await it.rhythm("a", gap_s=400)
        before = it.totals
        assert before.suffered == 6
        it.warmer.remove("gpu1")
        assert it.totals == before
        assert it.warmer.statistics().models == ()
        assert it.warmer.begun("gpu1", call("a")) is None


async def test_leaving_while_a_load_runs_ends_it() -> None:
    clock = HandClock()
    server = MemoryServer(clock, "a")
    async with server.serving(), OllamaConnection(server.url) as upstream:
        server.gate.clear()
        async with Warmer(WarmupSettings(models=("a",)), poll_s=FAR_S) as warmer:
            warmer.add("gpu1", upstream)
            await server.until_asked(1)
        await server.until_aborted()


async def test_requests_that_load_nothing_are_of_no_interest() -> None:
    async with bench("a") as it:
        assert it.warmer.begun("gpu2", call("a")) is None
        assert it.warmer.begun("gpu1", call("not a name")) is None


class TestAsking:
    async def test_a_model_that_only_makes_vectors_is_loaded_by_their_endpoint(self) -> None:
        async with bench("a") as it:
            it.server.embeds = frozenset("a")
            await send_preload(it.upstream, Preload(model="a", options={"num_ctx": 512}))
            assert it.server.asked == [
                ("/api/generate", {"model": "a", "options": {"num_ctx": 512}}),
                ("/api/embed", {"model": "a", "input": [], "options": {"num_ctx": 512}}),
            ]
            assert "a" in it.server.loaded

    async def test_a_missing_model_is_named_with_the_next_step(self) -> None:
        async with bench("a") as it:
            with pytest.raises(ModelNotFound, match=r"model 'b' not found; .*`ollama pull b`"):
                await send_preload(it.upstream, Preload(model="b"))

    async def test_a_refusal_has_its_status_and_reason(self) -> None:
        async with bench("a") as it:
            it.server.refuses = 500
            with pytest.raises(UpstreamRejected, match="answered 500 to the load of a: out of memory"):
                await send_preload(it.upstream, Preload(model="a"))

    async def test_a_server_without_times_is_taken_to_keep_for_ever(self) -> None:
        async with ScriptedServer() as scripted, OllamaConnection(scripted.url) as upstream:
            ((model,), _headers) = await list_loaded(upstream)
            assert model.expires_unix_s is None

    async def test_what_is_no_ollama_is_said_so(self) -> None:
        async with (
            ScriptedServer(Script(faults={0: Fault.NOT_HTTP})) as scripted,
            OllamaConnection(scripted.url, ConnectionSettings()) as upstream,
        ):
            request = Request(method="GET", path="/nothing")

            class Elsewhere:
                async def send(self, _request: Request) -> Any:
                    return await upstream.send(request)

            with pytest.raises(BadReply, match="is it an Ollama server"):
                await list_loaded(Elsewhere())


async def test_a_real_model_that_would_have_gone_is_there_for_the_next_request(
    server: EmbeddedServer,
) -> None:
    """It is kept for 2 s and was wanted after a little more: without us each request would load it."""
    settings = WarmupSettings(keep="auto", hold_cost=0)
    async with OllamaConnection(server.url) as upstream, Warmer(settings, poll_s=0.1) as warmer:
        warmer.add("embedded", upstream)

        async def ask(keep_alive: str) -> float:
            fields = {"stream": False, "options": {"num_predict": 1}, "keep_alive": keep_alive}
            visit = warmer.begun("embedded", call(server.model, **fields))
            assert visit is not None
            body = {"model": server.model, "prompt": "Hi", **fields}
            status, answer = await server.post("/api/generate", body)
            assert status == 200
            load_s = float(answer["load_duration"]) / 1e9
            visit.answering()
            visit.ended(load_s)
            return load_s

        async def is_gone() -> bool:
            return all(model["name"] != server.model for model in (await server.get("/api/ps"))["models"])

        def totals() -> Totals:
            return warmer.statistics().totals

        await server.post("/api/generate", {"model": server.model, "keep_alive": 0})
        assert await ask("2s") > 0.1
        await server.until(is_gone)
        load_s = await ask("2s")
        assert load_s > 0.1
        assert (totals().suffered, totals().avoided) == (2, 0)
        while not totals().avoided:  # a busy machine may come too late to one hold, not to all
            held_s = totals().held_s
            while totals().held_s == held_s:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            load_s = await ask("2s")
        assert load_s < 0.1
        assert totals().renewals + totals().preloads > 0
        assert totals().saved_s > 0.1
        await ask("5m")  # as others expect it
