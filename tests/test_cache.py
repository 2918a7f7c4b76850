"""The cache as a whole: what is answered from it, what is kept, who waits for whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from held_upstream import FINAL, MODEL, STREAM, HeldUpstream, body_of, chat, line, timeless
from hypothesis import given
from hypothesis import strategies as st

from ollamalab import CacheSettings, ResponseCache
from ollamalab.cache import Answer, MemoryStore
from ollamalab.cache.key import cache_key
from ollamalab.connection import OllamaConnection
from ollamalab.errors import (
    BadReply,
    QueueFull,
    RequestRefused,
    ShareExceeded,
    UpstreamTimeout,
    UpstreamUnavailable,
    WaitTimeout,
)
from ollamalab.protocol.calls import call_of, named
from ollamalab.protocol.upstream import Request
from ollamalab.scripted import Fault, Script, ScriptedServer

MARK = "x-ollamalab-cache"
WHOLE = line("Hello", done=True, done_reason="stop")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_795_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def upstream() -> HeldUpstream:
    return HeldUpstream()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(upstream: HeldUpstream, clock: Clock) -> AsyncIterator[ResponseCache]:
    async with ResponseCache(upstream, clock=clock) as running:
        yield running
    assert running.statistics().flights == 0


def soon(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


async def asked(cache: ResponseCache, request: Request) -> tuple[str, int, bytes]:
    """Return how a request was answered: mark, status, body."""
    reply = await cache.send(request)
    return reply.headers[MARK], reply.status, await body_of(reply)


async def fill(cache: ResponseCache, upstream: HeldUpstream, request: Request, *pieces: bytes) -> str:
    """Ask what is not there, let the upstream answer; return the mark of the reply."""
    running = soon(asked(cache, request))
    call = await upstream.called(len(upstream.calls) + 1)
    call.open().give(*(pieces or STREAM)).end()
    mark, status, body = await running
    assert (status, body) == (200, b"".join(pieces or STREAM))
    return str(mark)


def counts(cache: ResponseCache) -> dict[str, int]:
    told = cache.statistics()
    names = ("hits", "misses", "coalesced", "stale", "bypassed")
    found = {name: getattr(told, name) for name in names if getattr(told, name)}
    assert told.lookups == sum(found.values()) - told.bypassed
    return found


def said(body: bytes) -> str | None:
    """Return the text of an answer; None if it is none."""
    try:
        lines = timeless(body)
        return "".join(text["message"]["content"] for text in lines) if lines[-1]["done"] else None
    except (ValueError, KeyError, IndexError):
        return None


class TestHits:
    async def test_a_repeated_question_is_answered_without_the_upstream(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        assert await fill(cache, upstream, chat()) == "miss"
        mark, status, body = await asked(cache, chat())
        assert (mark, status, timeless(body)) == ("hit", 200, timeless(b"".join(STREAM)))
        assert len(upstream.calls) == 1
        assert counts(cache) == {"hits": 1, "misses": 1}

    async def test_a_hit_comes_at_once_in_one_piece_with_its_age_and_the_time_it_took(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 42.5
        request = named(chat())
        reply = await cache.send(request)
        assert reply.headers == {"content-type": "application/x-ndjson", "age": "42", MARK: "hit"}
        assert len([chunk async for chunk in reply.chunks()]) == 1
        assert call_of(request).ledger["cache"] > 0

    async def test_one_answer_serves_both_forms_whichever_came_first(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        await fill(cache, upstream, chat())
        mark, _, whole = await asked(cache, chat(stream=False))
        assert (mark, json.loads(whole)["message"]["content"]) == ("hit", "Hello")

        await fill(cache, upstream, chat("b", stream=False), whole)
        mark, _, stream = await asked(cache, chat("b"))
        assert mark == "hit"
        assert [text["message"]["content"] for text in timeless(stream)] == ["Hello", ""]
        assert len(upstream.calls) == 2

    async def test_each_asker_reads_its_own_spelling(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        await fill(cache, upstream, chat())
        mark, _, body = await asked(cache, chat(model="SmolLM2:135M"))
        assert mark == "hit"
        assert {text["model"] for text in timeless(body)} == {"SmolLM2:135M"}

    async def test_recorded_pacing_keeps_lines_apart(self, upstream: HeldUpstream) -> None:
        """Not how long it takes is asserted, which belongs to benchmarks, but that lines come one by one."""
        async with ResponseCache(upstream, CacheSettings(pacing="recorded")) as cache:
            await fill(cache, upstream, chat())
            reply = await cache.send(chat())
            chunks = [chunk async for chunk in reply.chunks()]
        assert [timeless(chunk) for chunk in chunks] == [timeless(piece) for piece in STREAM]

    async def test_an_answer_expires(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 299
        assert (await asked(cache, chat()))[0] == "hit"
        clock.now_s += 1
        assert await fill(cache, upstream, chat()) == "miss"

    async def test_tenants_do_not_read_each_others_answers(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        await fill(cache, upstream, named(chat(), tenant="a"))
        assert await fill(cache, upstream, named(chat(), tenant="b")) == "miss"
        assert (await asked(cache, named(chat(), tenant="a")))[0] == "hit"

    async def test_an_upstream_second_is_counted_as_saved_once_for_each_hit(
        self, upstream: HeldUpstream, clock: Clock
    ) -> None:
        store = MemoryStore(max_entries=5, max_bytes=10**6, clock=clock)
        async with ResponseCache(upstream, store=store, clock=clock) as cache:
            await fill(cache, upstream, chat())
            [answer] = store._answers.values()
            await asked(cache, chat())
            await asked(cache, chat())
        assert cache.statistics().upstream_s_saved == pytest.approx(2 * answer.upstream_s)


class TestDigests:
    async def test_after_a_pull_hits_end(
        self, upstream: HeldUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ollamalab.cache.digests._FRESH_S", 0.0)
        async with ResponseCache(upstream) as cache:
            await fill(cache, upstream, chat())
            assert (await asked(cache, chat()))[0] == "hit"
            upstream.digests[MODEL] = "b" * 64
            assert await fill(cache, upstream, chat()) == "miss"

    async def test_what_may_come_from_a_model_pulled_meanwhile_is_no_answer_of_the_old_ones_other_names(
        self, upstream: HeldUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ollamalab.cache.digests._FRESH_S", 0.0)
        upstream.digests["smollm2:latest"] = upstream.digests[MODEL]
        async with ResponseCache(upstream) as cache:
            running = soon(asked(cache, chat()))
            call = await upstream.called(1)
            upstream.digests[MODEL] = "b" * 64
            call.open().give(*STREAM).end()
            assert (await running)[0] == "miss"
            assert await fill(cache, upstream, chat(model="smollm2:latest")) == "miss"

    async def test_a_model_that_the_upstream_does_not_list_is_passed_on(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        for _ in range(2):
            assert await fill(cache, upstream, chat(model="other")) == "bypass"
        assert cache.statistics().entries == 0

    async def test_no_list_no_cache(self, cache: ResponseCache, upstream: HeldUpstream) -> None:
        upstream.lists_failing = UpstreamUnavailable("refused")
        assert await fill(cache, upstream, chat()) == "bypass"
        assert await fill(cache, upstream, chat()) == "bypass"
        assert upstream.lists_served == 1  # not asked again for each request


class TestCacheControl:
    async def test_no_cache_asks_anew_and_keeps_the_answer(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        await fill(cache, upstream, chat())
        again = chat(headers={"cache-control": "no-cache"})
        assert await fill(cache, upstream, again, line("New"), FINAL) == "bypass"
        _, _, body = await asked(cache, chat())
        assert timeless(body)[0]["message"]["content"] == "New"
        assert counts(cache) == {"hits": 1, "misses": 1, "bypassed": 1}

    async def test_no_store_leaves_nothing(self, cache: ResponseCache, upstream: HeldUpstream) -> None:
        once = chat(headers={"cache-control": "no-store"})
        assert await fill(cache, upstream, once) == "bypass"
        assert await fill(cache, upstream, chat()) == "miss"
        assert await fill(cache, upstream, once) == "bypass"

    async def test_max_age_wants_a_younger_answer(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 60
        assert (await asked(cache, chat(headers={"cache-control": "max-age=60"})))[0] == "hit"
        assert await fill(cache, upstream, chat(headers={"cache-control": "max-age=59"})) == "miss"

    @pytest.mark.parametrize("more", ["", ", no-cache", ", no-store", ", max-age=0"])
    async def test_only_if_cached_never_asks_the_upstream(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock, more: str
    ) -> None:
        request = chat(headers={"cache-control": f"only-if-cached{more}"})
        with pytest.raises(RequestRefused) as refused:
            await cache.send(request)
        assert refused.value.status == 504
        await fill(cache, upstream, chat())
        clock.now_s += 1
        if more:
            with pytest.raises(RequestRefused):
                await cache.send(request)
        else:
            assert (await asked(cache, request))[0] == "hit"
        assert len(upstream.calls) == 1

    async def test_deterministic_passes_on_what_samples(self, upstream: HeldUpstream) -> None:
        async with ResponseCache(upstream, CacheSettings(policy="deterministic")) as cache:
            for _ in range(2):
                assert await fill(cache, upstream, chat()) == "bypass"
            assert await fill(cache, upstream, chat(options={"temperature": 0})) == "miss"
            assert (await asked(cache, chat(options={"temperature": 0.0})))[0] == "hit"


class TestPassingOn:
    async def test_what_needs_no_model_goes_by_unmarked_and_uncounted(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        reply = await cache.send(Request(method="GET", path="/api/tags"))
        assert MARK not in reply.headers
        assert counts(cache) == {}

    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            ("/api/embed", {"input": "hi"}),
            ("/v1/responses", {"input": "hi"}),
            ("/v1/messages", {"max_tokens": 9}),
            ("/api/generate", {"prompt": ""}),
            ("/api/chat", {"messages": []}),
        ],
    )
    async def test_embeddings_and_loads_are_passed_on(
        self, cache: ResponseCache, upstream: HeldUpstream, path: str, fields: dict[str, Any]
    ) -> None:
        for _ in range(2):
            assert await fill(cache, upstream, chat(path=path, **fields)) == "bypass"

    async def test_a_miss_is_passed_on_byte_for_byte_as_it_comes(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        running = soon(cache.send(chat()))
        call = (await upstream.called(1)).open(**{"x-ollamalab-upstream": "a"})
        call.give(STREAM[0][:7])
        reply = await running
        assert reply.headers["x-ollamalab-upstream"] == "a"
        chunks = reply.chunks()
        assert await anext(chunks) == STREAM[0][:7]
        call.give(STREAM[0][7:] + STREAM[1])
        assert await anext(chunks) == STREAM[0][7:] + STREAM[1]
        call.give(FINAL).end()
        assert [chunk async for chunk in chunks] == [FINAL]
        hit = await cache.send(chat())
        assert "x-ollamalab-upstream" not in hit.headers


class TestWhatIsKept:
    @pytest.mark.parametrize(
        "body",
        [
            (STREAM[0],),
            (STREAM[0], b'{"error":"model runner has unexpectedly stopped"}\n'),
            (STREAM[0], b"<html>502 Bad Gateway</html>\n", FINAL),
            (line("", done=True, done_reason="stop"),),
            (b"",),
        ],
        ids=["silent end", "error line", "garbage", "empty", "nothing"],
    )
    async def test_no_incomplete_answer(
        self, cache: ResponseCache, upstream: HeldUpstream, body: tuple[bytes, ...]
    ) -> None:
        for _ in range(2):
            running = soon(asked(cache, chat()))
            call = await upstream.called(len(upstream.calls) + 1)
            call.open().give(*filter(None, body)).end()
            assert await running == ("miss", 200, b"".join(body))
        assert cache.statistics().stored == 0

    @pytest.mark.parametrize("status", [400, 404, 500, 503])
    async def test_no_error_status(self, cache: ResponseCache, upstream: HeldUpstream, status: int) -> None:
        for _ in range(2):
            running = soon(asked(cache, chat()))
            call = await upstream.called(len(upstream.calls) + 1)
            call.open(status).give(line("x", done=True)).end()
            assert await running == ("miss", status, line("x", done=True))
        assert cache.statistics().stored == 0

    async def test_no_stream_that_was_cut(self, cache: ResponseCache, upstream: HeldUpstream) -> None:
        running = soon(asked(cache, chat()))
        (await upstream.called(1)).open().give(STREAM[0], FINAL).break_off(BadReply("cut"))
        with pytest.raises(BadReply):
            await running
        assert cache.statistics().stored == 0

    async def test_an_answer_that_is_too_long_passes_through_unkept(self, upstream: HeldUpstream) -> None:
        settings = CacheSettings(max_answer_bytes=1_000)
        pieces = (*(line(f"{number} ") for number in range(50)), FINAL)
        async with ResponseCache(upstream, settings) as cache:
            for _ in range(2):
                assert await fill(cache, upstream, chat(), *pieces) == "miss"
            assert cache.statistics().stored == 0

    async def test_whoever_has_read_an_answer_finds_it_however_slow_the_store(
        self, upstream: HeldUpstream
    ) -> None:
        class Slow(MemoryStore):
            def __init__(self) -> None:
                super().__init__(max_entries=5, max_bytes=10**6)
                self.may_write, self.has_written = asyncio.Event(), asyncio.Event()

            async def put(self, key: bytes, answer: Answer) -> None:
                await self.may_write.wait()
                await super().put(key, answer)
                self.has_written.set()

        store = Slow()
        async with ResponseCache(upstream, store=store) as cache:
            await fill(cache, upstream, chat())
            assert (await asked(cache, chat()))[0] == "hit"
            store.may_write.set()
            await store.has_written.wait()
            assert (await asked(cache, chat()))[0] == "hit"

    async def test_at_the_start_and_while_it_runs_the_store_is_swept(
        self, upstream: HeldUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Swept(MemoryStore):
            sweeps: asyncio.Queue[None] = asyncio.Queue()

            async def sweep(self) -> int:
                self.sweeps.put_nowait(None)
                return await super().sweep()

        store = Swept(max_entries=5, max_bytes=10**6)
        async with ResponseCache(upstream, store=store):
            await store.sweeps.get()
        monkeypatch.setattr("ollamalab.cache.response_cache._SWEEP_INTERVAL_S", 0.0)
        async with ResponseCache(upstream, store=store):
            for _ in range(3):
                await store.sweeps.get()


class TestWhatIsAsked:
    @pytest.mark.parametrize(
        ("twice", "once"),
        [
            (b'"system":"Be rude.","system":"","system":null', b'"system":""'),
            (b'"options":{"num_predict":1},"options":{}', b'"options":{"num_predict":1}'),
            (b'"options":{"num_predict":1},"OPTIONS":{},"options":null', b'"options":{}'),
        ],
    )
    async def test_nobody_has_another_answer_kept_for_a_question_by_saying_a_field_twice(
        self, cache: ResponseCache, upstream: HeldUpstream, twice: bytes, once: bytes
    ) -> None:
        """What is sent is what the key is made of, and both are what Go makes of the fields."""
        head = b'{"model":"%b","prompt":"Hi",' % MODEL.encode()
        request, meant = (
            Request(method="POST", path="/api/generate", body=head + fields + b"}")
            for fields in (twice, once)
        )
        await fill(cache, upstream, request)
        sent = upstream.calls[0].request
        assert b"rude" not in sent.body
        assert sent.body.count(b'"options"') <= 1
        again = Request(method="POST", path="/api/generate", body=sent.body)
        keys = {cache_key(call_of(one), "d" * 64) for one in (request, meant, again)}
        assert len(keys) == 1

    async def test_half_a_character_beside_the_question_is_not_sent_on(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        request = chat(stream_options={"x": "\ud800"})
        await fill(cache, upstream, request)
        assert json.loads(upstream.calls[0].request.body).keys() == {"model", "messages"}


class TestFlights:
    async def test_sixteen_who_ask_together_make_one_call_and_read_each_line_as_it_comes(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        sending = [soon(cache.send(chat())) for _ in range(16)]
        call = (await upstream.called(1)).open()
        call.give(STREAM[0])
        replies = [await task for task in sending]
        assert [reply.headers[MARK] for reply in replies] == ["miss"] + ["coalesced"] * 15
        streams = [reply.chunks() for reply in replies]
        for piece in STREAM[1:]:
            assert {await anext(stream) for stream in streams} == {STREAM[STREAM.index(piece) - 1]}
            call.give(piece)
        call.end()
        assert [[chunk async for chunk in stream] for stream in streams] == [[FINAL]] * 16
        assert len(upstream.calls) == 1
        assert counts(cache) == {"misses": 1, "coalesced": 15}

    async def test_who_comes_late_reads_what_was_said_and_then_what_comes(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        first = soon(cache.send(chat()))
        call = (await upstream.called(1)).open().give(STREAM[0], STREAM[1])
        leader = (await first).chunks()
        read = b""
        while read != STREAM[0] + STREAM[1]:
            read += await anext(leader)
        late = await cache.send(chat())
        chunks = late.chunks()
        assert await anext(chunks) == STREAM[0] + STREAM[1]
        call.give(FINAL).end()
        assert await anext(chunks) == FINAL
        assert late.headers[MARK] == "coalesced"

    async def test_a_slow_reader_does_not_slow_the_others(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        slow, fast = soon(cache.send(chat())), soon(asked(cache, chat()))
        (await upstream.called(1)).open().give(*STREAM).end()
        assert (await fast)[2] == b"".join(STREAM)
        assert await body_of(await slow) == b"".join(STREAM)

    async def test_each_form_has_a_flight_of_its_own(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        stream, whole = soon(asked(cache, chat())), soon(asked(cache, chat(stream=False)))
        await upstream.called(2)
        answered = line("Hello", done=True, done_reason="stop")
        by_form = {call_of(call.request).is_stream: call for call in upstream.calls}
        by_form[True].open().give(*STREAM).end()
        by_form[False].open().give(answered).end()
        assert [(await task)[0] for task in (stream, whole)] == ["miss", "miss"]

    async def test_the_leader_leaving_does_not_cut_the_others(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        leader, follower = soon(asked(cache, chat())), soon(asked(cache, chat()))
        call = await upstream.called(1)
        leader.cancel()
        await asyncio.wait([leader])
        call.open().give(*STREAM).end()
        assert await follower == ("coalesced", 200, b"".join(STREAM))
        assert not call.is_hung_up
        assert counts(cache) == {"misses": 1, "coalesced": 1}
        assert (await asked(cache, chat()))[0] == "hit"

    async def test_the_leader_leaving_in_mid_stream_does_not_cut_the_others(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        leader, follower = soon(cache.send(chat())), soon(cache.send(chat()))
        call = (await upstream.called(1)).open().give(STREAM[0])
        async with await leader:
            pass
        call.give(*STREAM[1:]).end()
        assert await body_of(await follower) == b"".join(STREAM)

    @pytest.mark.parametrize("has_begun", [False, True])
    async def test_the_last_one_leaving_hangs_up_and_nobody_joins_what_is_ending(
        self, cache: ResponseCache, upstream: HeldUpstream, has_begun: bool
    ) -> None:
        members = [soon(asked(cache, chat())) for _ in range(3)]
        call = await upstream.called(1)
        if has_begun:
            call.open().give(STREAM[0])
            await asyncio.sleep(0)
        for member in members:
            member.cancel()
        await asyncio.wait(members)
        again = soon(asked(cache, chat()))
        await upstream.hung_up(0)
        (await upstream.called(2)).open().give(*STREAM).end()
        assert (await again)[0] == "miss"

    async def test_an_error_before_the_first_byte_frees_the_others_to_ask_again_together(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        """One new call for all of them, not one for each."""
        members = [soon(asked(cache, chat())) for _ in range(5)]
        (await upstream.called(1)).refuse(BadReply("reset"))
        (await upstream.called(2)).open().give(*STREAM).end()
        leader, *others = await asyncio.gather(*members, return_exceptions=True)
        assert isinstance(leader, BadReply)
        assert [other[0] for other in others] == ["miss"] + ["coalesced"] * 3  # type: ignore[index]
        assert len(upstream.calls) == 2
        assert counts(cache) == {"misses": 2, "coalesced": 3}

    async def test_a_second_failure_is_everybodys(self, cache: ResponseCache, upstream: HeldUpstream) -> None:
        """A hanging upstream is not asked as often as there are members, one timeout after the other."""
        members = [soon(asked(cache, chat())) for _ in range(5)]
        (await upstream.called(1)).refuse(UpstreamTimeout("first"))
        (await upstream.called(2)).refuse(UpstreamTimeout("second"))
        failed = await asyncio.gather(*members, return_exceptions=True)
        assert [str(error) for error in failed] == ["first"] + ["second"] * 4
        assert len(upstream.calls) == 2

    @pytest.mark.parametrize("status", [429, 500, 503])
    async def test_a_failing_status_frees_the_others_as_well(
        self, cache: ResponseCache, upstream: HeldUpstream, status: int
    ) -> None:
        members = [soon(asked(cache, chat())) for _ in range(3)]
        (await upstream.called(1)).open(status).give(b"busy").end()
        (await upstream.called(2)).open().give(*STREAM).end()
        assert [(await member)[1] for member in members] == [status, 200, 200]

    async def test_a_status_that_the_question_earned_is_everybodys_at_once(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        members = [soon(asked(cache, chat())) for _ in range(3)]
        (await upstream.called(1)).open(400).give(b"bad option").end()
        assert [await member for member in members] == [
            ("miss", 400, b"bad option"),
            ("coalesced", 400, b"bad option"),
            ("coalesced", 400, b"bad option"),
        ]

    @pytest.mark.parametrize("error", [ShareExceeded("over its share"), WaitTimeout("past its deadline")])
    async def test_nobody_bears_what_only_the_leader_is_to_blame_for(
        self, cache: ResponseCache, upstream: HeldUpstream, error: Exception
    ) -> None:
        members = [soon(asked(cache, chat())) for _ in range(4)]
        for number in (1, 2, 3):
            (await upstream.called(number)).refuse(error)
        (await upstream.called(4)).open().give(*STREAM).end()
        *failed, last = await asyncio.gather(*members, return_exceptions=True)
        assert failed == [error] * 3
        assert last[:2] == ("miss", 200)  # type: ignore[index]

    async def test_after_the_first_byte_all_get_what_the_leader_gets(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        replies = [soon(cache.send(chat())) for _ in range(3)]
        call = (await upstream.called(1)).open().give(STREAM[0])
        streams = [(await reply).chunks() for reply in replies]
        assert [await anext(stream) for stream in streams] == [STREAM[0]] * 3
        call.break_off(BadReply("cut"))
        for stream in streams:
            with pytest.raises(BadReply, match="cut"):
                await anext(stream)
        assert len(upstream.calls) == 1

    async def test_each_deadline_is_its_own(self, cache: ResponseCache, upstream: HeldUpstream) -> None:
        patient = soon(asked(cache, chat()))
        call = await upstream.called(1)
        hurried = named(chat())
        call_of(hurried).deadline_s = 0.0
        with pytest.raises(WaitTimeout, match="deadline"):
            await cache.send(hurried)
        call.open().give(*STREAM).end()
        assert (await patient)[0] == "miss"

    async def test_no_cache_joins_no_call_that_began_before_it(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        first = soon(asked(cache, chat()))
        await upstream.called(1)
        anew = soon(asked(cache, chat(headers={"cache-control": "no-cache"})))
        (await upstream.called(2)).open().give(*STREAM).end()
        assert (await anew)[0] == "bypass"
        upstream.calls[0].open().give(*STREAM).end()
        assert (await first)[0] == "miss"

    async def test_one_whose_answer_is_too_long_is_held_back_by_its_slowest_reader(
        self, upstream: HeldUpstream
    ) -> None:
        """And nobody joins it: what was read is let go, so that memory stays bounded."""
        pieces = [line(f"{number} ") for number in range(100)]
        async with ResponseCache(upstream, CacheSettings(max_answer_bytes=2_000)) as cache:
            slow, fast = soon(cache.send(chat())), soon(cache.send(chat()))
            call = (await upstream.called(1)).open().give(*pieces)
            read = (await fast).chunks()
            size = 0
            while size <= 2_000:
                size += len(await anext(read))
            stuck = soon(anext(read))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not stuck.done()
            late = soon(asked(cache, chat()))
            await upstream.called(2)
            late.cancel()
            call.give(FINAL).end()
            whole = soon(body_of(await slow))
            size += len(await stuck)
            size += sum([len(chunk) async for chunk in read])
            assert size == len(await whole) == sum(map(len, pieces)) + len(FINAL)

    async def test_closing_tells_those_who_wait(self, upstream: HeldUpstream) -> None:
        async with ResponseCache(upstream) as cache:
            waiting = soon(cache.send(chat()))
            await upstream.called(1)
        with pytest.raises(UpstreamUnavailable, match="given up"):
            await waiting
        assert upstream.calls[0].is_hung_up
        assert cache.statistics().flights == 0

    @given(
        st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), min_size=1, max_size=8),
        st.lists(st.sampled_from(["good", "refuse", "503", "cut", "silent"]), max_size=3),
    )
    def test_whoever_stays_gets_an_answer_and_nothing_is_left(
        self, members: list[tuple[int, bool, bool]], fates: list[str]
    ) -> None:
        """Members of two forms leave at any moment; calls end in any way."""

        async def run() -> None:
            upstream = HeldUpstream()
            async with ResponseCache(upstream) as cache:
                serving = soon(serve(upstream, fates))
                tasks = [soon(asked(cache, chat(stream=is_stream))) for _, is_stream, _ in members]
                for turn in range(13):
                    for task, (moment, _, leaves) in zip(tasks, members, strict=True):
                        if leaves and moment == turn:
                            task.cancel()
                    await asyncio.sleep(0)
                done = await asyncio.gather(*tasks, return_exceptions=True)
                serving.cancel()
                await asyncio.wait([serving])
                told = cache.statistics()
                assert told.lookups == told.hits + told.misses + told.coalesced <= len(members)
            for outcome, (_, is_stream, leaves) in zip(done, members, strict=True):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, UpstreamUnavailable | BadReply) or leaves
                else:
                    assert outcome[2] in (b"busy", STREAM[0], b"".join(STREAM) if is_stream else WHOLE)
            assert cache.statistics().flights == 0
            assert asyncio.all_tasks() == {asyncio.current_task()}

        async def serve(upstream: HeldUpstream, fates: list[str]) -> None:
            number = 0
            while True:
                number += 1
                call = await upstream.called(number)
                await asyncio.sleep(0)
                match fates[number - 1] if number <= len(fates) else "good":
                    case "refuse":
                        call.refuse(UpstreamUnavailable("refused"))
                    case "503":
                        call.open(503).give(b"busy").end()
                    case "cut":
                        call.open().give(STREAM[0]).break_off(BadReply("cut"))
                    case "silent":
                        call.open().give(STREAM[0]).end()
                    case _:
                        call.open().give(*(STREAM if call_of(call.request).is_stream else (WHOLE,))).end()

        asyncio.run(run())


class TestStale:
    @pytest.mark.parametrize(
        "error",
        [UpstreamUnavailable("x"), UpstreamTimeout("x"), BadReply("x"), QueueFull("x"), WaitTimeout("x")],
    )
    async def test_an_old_answer_serves_if_the_upstream_fails(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock, error: Exception
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 400
        members = [soon(asked(cache, chat())) for _ in range(3)]
        (await upstream.called(2)).refuse(error)
        for member in members:
            mark, status, body = await member
            assert (mark, status, timeless(body)) == ("stale", 200, timeless(b"".join(STREAM)))
        assert len(upstream.calls) == 2
        assert counts(cache) == {"misses": 1, "stale": 3}

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_and_if_it_says_so_by_its_status(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock, status: int
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 400
        running = soon(asked(cache, chat()))
        (await upstream.called(2)).open(status).give(b"broken").end()
        assert (await running)[0] == "stale"

    async def test_not_for_what_the_client_itself_did_wrong(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 400
        running = soon(asked(cache, chat()))
        (await upstream.called(2)).refuse(ShareExceeded("over its share"))
        with pytest.raises(ShareExceeded):
            await running
        running = soon(asked(cache, chat()))
        (await upstream.called(3)).open(404).give(b"gone").end()
        assert await running == ("miss", 404, b"gone")

    async def test_not_past_its_window_nor_for_who_wants_a_younger_one(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        for wait_s, headers in ((400, {"cache-control": "max-age=300"}), (3_500, {})):
            clock.now_s += wait_s
            running = soon(asked(cache, chat(headers=headers)))
            (await upstream.called(len(upstream.calls) + 1)).refuse(UpstreamUnavailable("x"))
            with pytest.raises(UpstreamUnavailable):
                await running

    async def test_a_good_answer_takes_its_place(
        self, cache: ResponseCache, upstream: HeldUpstream, clock: Clock
    ) -> None:
        await fill(cache, upstream, chat())
        clock.now_s += 400
        assert await fill(cache, upstream, chat(), line("New"), FINAL) == "miss"
        _, _, body = await asked(cache, chat())
        assert timeless(body)[0]["message"]["content"] == "New"


class TestOpenAI:
    HEAD = b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"smollm2:135m",'
    CONTENT = (
        b"data: " + HEAD + b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"},'
        b'"finish_reason":null}]}\n\n'
    )
    END = b"data: " + HEAD + b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    USAGE = (
        b"data: "
        + HEAD
        + b'"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
    )
    DONE = b"data: [DONE]\n\n"

    async def test_a_stream_without_usage_serves_a_whole_answer_that_has_it(
        self, cache: ResponseCache, upstream: HeldUpstream
    ) -> None:
        """The upstream is asked for the usage, and the client who did not ask does not see it."""
        path = "/v1/chat/completions"
        running = soon(asked(cache, chat(path=path, stream=True)))
        call = await upstream.called(1)
        sent = json.loads(call.request.body)
        assert sent["stream_options"] == {"include_usage": True}
        assert sent["messages"] == [{"role": "user", "content": "hi"}]
        call.open(content_type="text/event-stream").give(
            self.CONTENT + self.END + self.USAGE + self.DONE
        ).end()
        assert await running == ("miss", 200, self.CONTENT + self.END + self.DONE)

        _, _, whole = await asked(cache, chat(path=path))
        assert json.loads(whole)["usage"]["total_tokens"] == 3
        _, _, bare = await asked(cache, chat(path=path, stream=True))
        assert bare == self.CONTENT + self.END + self.DONE
        with_usage = chat(path=path, stream=True, stream_options={"include_usage": True})
        assert (await asked(cache, with_usage))[2] == self.CONTENT + self.END + self.USAGE + self.DONE
        assert counts(cache) == {"misses": 1, "hits": 3}


class TestScripted:
    """Against a real socket that fails in every way."""

    @pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in (Fault.HANG, Fault.STUCK)])
    @pytest.mark.parametrize("is_stream", [True, False])
    async def test_nothing_wrong_is_kept(self, fault: Fault, is_stream: bool) -> None:
        script = Script(first_s=0.0, gap_s=0.0, tokens=6, faults={0: fault})
        async with (
            ScriptedServer(script) as server,
            OllamaConnection(server.url) as connection,
            ResponseCache(connection) as cache,
        ):
            request = chat(model="scripted", stream=is_stream)
            first = await asyncio.gather(asked(cache, request), return_exceptions=True)
            marks = [(await asked(cache, request))[0] for _ in range(2)]
            _, _, body = await asked(cache, request)
        assert said(body) == "0 1 2 3 4 5 "
        # Faults of the middle concern streams, and a connection may bridge a reset: then it was a good one.
        was_good = not isinstance(first[0], BaseException) and said(first[0][2]) == said(body)
        assert marks == ["hit" if was_good else "miss", "hit"]
        assert cache.statistics().flights == 0

    @pytest.mark.parametrize(
        ("fault", "is_stream"), [(Fault.HANG, True), (Fault.HANG, False), (Fault.STUCK, True)]
    )
    async def test_a_hang_up_closes_the_upstream_call(self, fault: Fault, is_stream: bool) -> None:
        script = Script(first_s=0.0, gap_s=0.0, tokens=6, faults={0: fault})
        async with (
            ScriptedServer(script) as server,
            OllamaConnection(server.url) as connection,
            ResponseCache(connection) as cache,
        ):
            running = soon(asked(cache, chat(model="scripted", stream=is_stream)))
            await server.received(1)
            running.cancel()
            await asyncio.wait([running])
            await server.ended(1)
            assert not server.log[0].is_complete
        assert cache.statistics().flights == 0

    async def test_a_whole_answer_hits_and_a_stream_is_given_from_it(self) -> None:
        async with (
            ScriptedServer(Script(first_s=0.0, gap_s=0.0, tokens=3)) as server,
            OllamaConnection(server.url) as connection,
            ResponseCache(connection) as cache,
        ):
            request = chat(model="scripted", stream=False)
            _, _, first = await asked(cache, request)
            mark, _, again = await asked(cache, request)
            assert (mark, timeless(again)) == ("hit", timeless(first))
            assert len(server.log) == 1
