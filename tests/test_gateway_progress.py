"""An upstream without progress is given up; one that loads a model gets longer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from held_upstream import FINAL, MODEL, STREAM, HeldUpstream, ReadyReply, body_of, chat, line
from raw_server import Peer, raw

from ollamalab.connection import OllamaConnection
from ollamalab.errors import SettingsError, UpstreamTimeout, UpstreamUnavailable
from ollamalab.gateway.progress import Progress, Residents
from ollamalab.protocol.calls import call_of
from ollamalab.protocol.upstream import Reply, Request

ANSWER_S, LOAD_S = 0.04, 0.12
NAME = f"registry.ollama.ai/library/{MODEL}"


class Server(HeldUpstream):
    """A held upstream that says which models are loaded."""

    def __init__(self, *loaded: str) -> None:
        super().__init__()
        self.loaded: tuple[str, ...] = loaded
        self.listing_fails: Exception | None = None
        self.asked = 0
        self.is_asked = asyncio.Event()

    async def send(self, request: Request) -> Reply:
        if request.path != "/api/ps":
            return await super().send(request)
        self.asked += 1
        self.is_asked.set()
        if self.listing_fails:
            raise self.listing_fails
        return ReadyReply(json.dumps({"models": [{"name": name} for name in self.loaded]}).encode())


def watched(server: Server, **settings: Any) -> Progress:
    return Progress(server, name="gpu2", request_timeout_s=ANSWER_S, load_timeout_s=LOAD_S, **settings)


async def answer(server: Server, progress: Progress, request: Request) -> bytes:
    """Let a request be answered as it should be."""
    before = len(server.calls)
    task = asyncio.create_task(progress.send(request))
    (await server.called(before + 1)).open().give(*STREAM).end()
    return await body_of(await task)


class TestResidents:
    def loading(self, residents: Residents, *listed: str, **fields: Any) -> bool:
        return residents.is_loading(call_of(chat(**fields)), frozenset(listed))

    def served(self, **fields: Any) -> Residents:
        residents = Residents()
        residents.note_answer(call_of(chat(**fields)))
        return residents

    def test_a_model_that_is_not_listed_loads(self) -> None:
        assert self.loading(self.served())

    def test_a_listed_model_that_never_answered_may_be_loading(self) -> None:
        """Ollama before v0.30 lists a model from the beginning of its load."""
        assert self.loading(Residents(), NAME)

    def test_a_listed_model_that_has_answered_does_not_load(self) -> None:
        assert not self.loading(self.served(), NAME)

    @pytest.mark.parametrize(
        "fields", [{"options": {"num_ctx": 8192}}, {"options": {"num_gpu": 0}}, {"shift": False}]
    )
    def test_other_load_time_options_are_another_load(self, fields: dict[str, Any]) -> None:
        residents = self.served()
        assert self.loading(residents, NAME, **fields)
        residents.note_answer(call_of(chat(**fields)))
        assert not self.loading(residents, NAME, **fields)
        assert self.loading(residents, NAME), "and going back is one again"

    def test_options_of_the_request_alone_load_nothing(self) -> None:
        assert not self.loading(self.served(), NAME, options={"temperature": 0, "num_predict": 3})

    def test_a_model_that_was_missing_loads_until_it_answers(self) -> None:
        residents = self.served()
        assert self.loading(residents)
        assert self.loading(residents, NAME)


class TestFirstByte:
    async def test_a_loaded_model_gets_the_limit_of_answers(self) -> None:
        server = Server(MODEL)
        progress = watched(server)
        assert await answer(server, progress, chat()) == b"".join(STREAM)
        with pytest.raises(UpstreamTimeout, match=r"gpu2 .* 0\.04 s") as caught:
            await progress.send(chat())
        assert caught.value.after_s == ANSWER_S
        assert server.calls[1].is_hung_up
        assert server.asked == 1

    @pytest.mark.parametrize("loaded", [(), ("other:latest",)])
    async def test_a_model_that_loads_gets_the_limit_of_loads(self, loaded: tuple[str, ...]) -> None:
        server = Server(*loaded)
        progress = watched(server)
        await answer(server, progress, chat())
        with pytest.raises(UpstreamTimeout, match=f"still loads {MODEL}") as caught:
            await progress.send(chat())
        assert caught.value.after_s == LOAD_S
        assert server.calls[1].is_hung_up
        assert server.asked == 1

    async def test_an_answer_after_a_long_load_passes(self) -> None:
        server = Server()
        progress = watched(server)
        task = asyncio.create_task(progress.send(chat()))
        held = await server.called(1)
        await server.is_asked.wait()
        held.open().give(*STREAM).end()
        assert await body_of(await task) == b"".join(STREAM)

    @pytest.mark.parametrize("failure", [UpstreamUnavailable("gone"), None])
    async def test_a_server_that_does_not_say_what_it_loads_is_stuck(self, failure: Exception | None) -> None:
        server = Server()
        server.listing_fails = failure
        if failure is None:
            server.loaded = (7,)  # type: ignore[assignment]
        with pytest.raises(UpstreamTimeout) as caught:
            await watched(server).send(chat())
        assert caught.value.after_s == ANSWER_S

    async def test_a_load_timeout_below_the_other_holds_for_loads_only(self) -> None:
        server = Server()
        progress = Progress(server, request_timeout_s=60.0, load_timeout_s=0.02)
        with pytest.raises(UpstreamTimeout) as caught:
            await progress.send(chat())
        assert caught.value.after_s == 0.02

    async def test_a_request_that_loads_nothing_is_given_up_without_a_question(self) -> None:
        server = Server()
        with pytest.raises(UpstreamTimeout):
            await watched(server).send(Request(method="POST", path="/api/show", body=b"{}"))
        assert server.asked == 0


class TestBody:
    async def test_a_stream_that_stops_is_given_up(self) -> None:
        server = Server()
        progress = watched(server)
        task = asyncio.create_task(progress.send(chat()))
        (await server.called(1)).open().give(STREAM[0])
        came: list[bytes] = []
        with pytest.raises(UpstreamTimeout):
            await read(await task, came)
        assert came == [STREAM[0]]
        assert server.calls[0].is_hung_up
        assert server.asked == 0, "what has begun to answer does not load"

    async def test_a_download_in_small_steps_goes_on_for_ever(self) -> None:
        now_s, looks = 0.0, 0

        def clock() -> float:
            nonlocal looks
            looks += 1
            return now_s

        server = Server()
        progress = watched(server, clock=clock)
        task = asyncio.create_task(progress.send(Request(method="POST", path="/api/pull", body=b"{}")))
        held = (await server.called(1)).open()
        reply = await task

        async def give() -> None:
            nonlocal now_s
            for _ in range(8):
                seen = looks
                held.give(b"{}\n")
                await looked(seen)  # it is taken, and the next awaited since now
                now_s += 0.9 * ANSWER_S
                await looked(looks)  # nobody thinks that too long
            held.end()

        async def looked(seen: int) -> None:
            while looks == seen:  # noqa: ASYNC110 - a look at the clock sends no event
                await asyncio.sleep(0.001)

        async with reply, asyncio.TaskGroup() as group:
            group.create_task(give())
            assert len([chunk async for chunk in reply.chunks()]) == 8
        assert now_s > 2 * ANSWER_S

    async def test_a_slow_reader_is_not_the_upstreams_fault(self) -> None:
        now_s = 0.0
        server = Server()
        progress = watched(server, clock=lambda: now_s)
        task = asyncio.create_task(progress.send(chat()))
        held = (await server.called(1)).open().give(STREAM[0])
        reply, came = await task, []
        async with reply:
            async for chunk in reply.chunks():
                came.append(chunk)
                now_s += 1000.0
                await asyncio.sleep(ANSWER_S)  # several looks pass
                held.give(FINAL)
                if len(came) == 3:
                    break
        assert came == [STREAM[0], FINAL, FINAL]


class TestCancellation:
    async def cancelled(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def test_a_client_that_leaves_is_no_timeout(self) -> None:
        server = Server()
        task = asyncio.create_task(watched(server).send(chat()))
        await server.called(1)
        await self.cancelled(task)
        assert server.calls[0].is_hung_up

    async def test_nor_while_the_upstream_is_being_asked(self) -> None:
        server = Server()
        progress = watched(server)
        task = asyncio.create_task(progress.send(chat()))
        await server.is_asked.wait()
        await self.cancelled(task)
        assert [other for other in asyncio.all_tasks() if other.get_coro().__name__ == "_ask"] == []

    async def test_nor_inside_a_stream(self) -> None:
        server = Server()
        sending = asyncio.create_task(watched(server).send(chat()))
        held = (await server.called(1)).open()
        reply, came = await sending, Came()
        task = asyncio.create_task(read(reply, came))
        held.give(line("a"))
        await came.one.wait()
        await self.cancelled(task)
        assert held.is_hung_up

    async def test_the_task_goes_on_after_a_timeout(self) -> None:
        """A cancellation left standing would end the handler at its next wait, without an answer."""
        server = Server(MODEL)
        progress = watched(server)
        await answer(server, progress, chat())
        with pytest.raises(UpstreamTimeout):
            await progress.send(chat())
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        await asyncio.sleep(0)


class Came(list[bytes]):
    """Chunks that came, and the news of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one = asyncio.Event()

    def append(self, chunk: bytes) -> None:
        super().append(chunk)
        self.one.set()


async def read(reply: Reply, came: list[bytes]) -> None:
    """Read a reply to its end."""
    async with reply:
        async for chunk in reply.chunks():
            came.append(chunk)


async def test_timeouts_must_be_positive() -> None:
    with pytest.raises(SettingsError, match="> 0"):
        Progress(Server(), request_timeout_s=0)


async def test_giving_up_closes_the_connection() -> None:
    async def hang(peer: Peer) -> None:
        await peer.request()
        await peer.hung_up()

    async with raw(hang) as server, OllamaConnection(server.url) as connection:
        progress = Progress(connection, name="hung", request_timeout_s=ANSWER_S, load_timeout_s=ANSWER_S)
        with pytest.raises(UpstreamTimeout, match="hung"):
            await progress.send(Request(method="GET", path="/api/version"))


async def test_a_client_that_goes_as_a_long_load_ends_leaves_no_reply_behind() -> None:
    """Its call went on at the server, and its connection was never used again."""

    class Stubborn(Server):
        """Takes a while to let go of a question."""

        async def send(self, request: Request) -> Reply:
            if request.path == "/api/ps":
                self.is_asked.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    is_let_go.set()
                    await may_end.wait()
            return await super().send(request)

    is_let_go, may_end = asyncio.Event(), asyncio.Event()
    server = Stubborn()
    task = asyncio.create_task(watched(server).send(chat()))
    held = await server.called(1)
    await server.is_asked.wait()
    held.open().give(*STREAM)
    await is_let_go.wait()
    task.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held.is_hung_up
