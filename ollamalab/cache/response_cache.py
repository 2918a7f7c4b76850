"""The cache as an Upstream: repeats answers, joins those who ask the same, passes on the rest."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from ollamalab.cache import sse
from ollamalab.cache.capture import complete_pieces, piece_offsets_s
from ollamalab.cache.digests import Digests, UpstreamDigests
from ollamalab.cache.entry import Answer
from ollamalab.cache.flight import Flight, Member
from ollamalab.cache.key import cache_key
from ollamalab.cache.memory import MemoryStore
from ollamalab.cache.policy import may_cache, parse_cache_control, refuse_if_only_cached
from ollamalab.cache.replay import Form, Prepared, Replay, form_of, prepared
from ollamalab.cache.statistics import CacheStatistics
from ollamalab.cache.stores import Store
from ollamalab.errors import QueueFull, ShareExceeded, UpstreamError, WaitTimeout
from ollamalab.protocol.calls import CACHE_HEADER, Call, call_of, named
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.settings import CacheSettings

_log = logging.getLogger(__name__)

_TOO_MANY = 429
_SWEEP_INTERVAL_S = 30.0

#: Instead of these a stale answer will do (RFC 5861 §4).
_FAILED_STATUSES = frozenset((500, 502, 503, 504))
_FAILURES = (UpstreamError, QueueFull, WaitTimeout)

#: About the one who led, not about the question: nobody else has to bear them.
_PERSONAL = (ShareExceeded, WaitTimeout)


@dataclass(slots=True)
class _Question:
    """What is looked up for a call, and in which form it is wanted."""

    call: Call
    key: bytes
    digest: str
    form: Form


class ResponseCache:
    """A cache in front of an upstream; used with ``async with``, which also sweeps its store.

    Replies say in ``X-Ollamalab-Cache`` what happened: hit, miss, coalesced, stale or bypass.

    Args:
        upstream: Who answers what is not there.
        settings: What is kept, for how long, and how it is given back.
        store: Where answers are kept, and closed by whoever made it; None = in memory.
        digests: Who knows the models' digests; None = the upstream's own list.
        clock: Seconds since 1970; answers may outlive the process.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: CacheSettings | None = None,
        *,
        store: Store | None = None,
        digests: Digests | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or CacheSettings()
        self._upstream = upstream
        if store is None:
            store = MemoryStore(
                max_entries=self.settings.max_entries, max_bytes=self.settings.max_bytes, clock=clock
            )
        self._store = store
        self._digests = UpstreamDigests(upstream) if digests is None else digests
        self._clock = clock
        self._outcomes = dict.fromkeys(("hit", "miss", "coalesced", "stale", "bypass"), 0)
        self._stored = 0
        self._saved_s = 0.0
        self._arriving: dict[bytes, Answer] = {}  # on their way into the store
        self._flights: dict[tuple[bytes, Form], Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End what is running: upstream calls are hung up, and who waits for them is told."""
        tasks = [*self._tasks, *((self._sweeper,) if self._sweeper else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, request: Request) -> Reply:
        """Answer from the cache, or let the upstream answer.

        Raises:
            RequestRefused: 504 if ``only-if-cached`` asks for what is not there, and what ``named`` refuses.
            WaitTimeout: The call's deadline passed before the answer began.
            OllamaLabError: What the upstream raises.
        """
        started_s = time.perf_counter()
        request = named(request)
        call = call_of(request)
        if not call.endpoint.names_model:
            return await self._upstream.send(request)
        control = parse_cache_control(call.cache_control)
        question = None if control.no_store else await self._question(call)
        if question is None or control.no_cache:
            refuse_if_only_cached(call)
            return await self._bypass(request, question)
        kept = self._arriving.get(question.key) or await self._store.get(question.key)
        answer = prepared(kept, question.form) if kept else None
        call.ledger["cache"] = time.perf_counter() - started_s
        spare = None
        if kept and answer:
            now_s = self._clock()
            is_young_enough = control.max_age_s is None or now_s - kept.stored_s <= control.max_age_s
            if is_young_enough and now_s < kept.expires_s:
                self._outcomes["hit"] += 1
                self._saved_s += kept.upstream_s
                return self._replay("hit", kept, answer, call)
            if is_young_enough and now_s < kept.worthless_s:
                spare = kept, answer
        if control.only_if_cached:
            call.cache_outcome = "miss"
            self._outcomes["miss"] += 1
            refuse_if_only_cached(call)
        return await self._ask(request, question, spare)

    def statistics(self) -> CacheStatistics:
        """Return what has been counted, and what the store holds."""
        outcomes, store = self._outcomes, self._store.statistics()
        return CacheStatistics(
            lookups=sum(outcomes.values()) - outcomes["bypass"],
            hits=outcomes["hit"],
            misses=outcomes["miss"],
            coalesced=outcomes["coalesced"],
            stale=outcomes["stale"],
            bypassed=outcomes["bypass"],
            stored=self._stored,
            upstream_s_saved=self._saved_s,
            flights=len(self._tasks),
            entries=store.entries,
            bytes=store.bytes,
            evicted=store.evicted,
            expired=store.expired,
            errors=store.errors,
        )

    async def _question(self, call: Call) -> _Question | None:
        """Return what to look up; None for a call in which the cache has no part."""
        if not may_cache(call, self.settings.policy):
            return None
        digest = await self._digests.digest_of(call.model_key)
        key = cache_key(call, digest) if digest else None
        return _Question(call, key, digest, form_of(call)) if digest and key else None

    async def _bypass(self, request: Request, question: _Question | None) -> Reply:
        """Ask the upstream for this request alone; keep the answer if there is a question to keep it for."""
        self._outcomes["bypass"] += 1
        if question is None:
            reply = await self._upstream.send(request)
        else:
            reply = await _aboard(self._launch(request, question), question.call)
        reply.headers[CACHE_HEADER] = "bypass"
        return reply

    async def _ask(
        self, request: Request, question: _Question, spare: tuple[Answer, Prepared] | None
    ) -> Reply:
        """Ask the upstream, together with everybody who asks the same now.

        What fails before its first byte is for the leader to bear. The others ask once more, together
        again; a second failure is theirs too, or a slow upstream would be asked as often as they are
        many, one time after the other.
        """
        call, started_s, retries_left = question.call, time.perf_counter(), 1
        outcome = "miss"
        try:
            while True:
                flight, leads = self._flight_for(request, question)
                outcome = "miss" if leads else "coalesced"
                is_last_try = leads or retries_left == 0
                try:
                    member = await _aboard(flight, call)
                except Exception as error:
                    if spare and isinstance(error, _FAILURES) and not isinstance(error, ShareExceeded):
                        outcome = "stale"
                        return self._replay(outcome, *spare, call)
                    is_personal = isinstance(error, _PERSONAL) and not leads
                    if _is_past(call.deadline_s) or (is_last_try and not is_personal):
                        raise
                    retries_left -= not is_personal
                    continue
                if spare and member.status in _FAILED_STATUSES:
                    member.leave()
                    outcome = "stale"
                    return self._replay(outcome, *spare, call)
                if member.status < _TOO_MANY or is_last_try:
                    member.headers[CACHE_HEADER] = outcome
                    if not leads:
                        call.ledger["cache"] += time.perf_counter() - started_s
                    return member
                member.leave()
                retries_left -= 1
        finally:
            call.cache_outcome = outcome
            self._outcomes[outcome] += 1

    def _flight_for(self, request: Request, question: _Question) -> tuple[Flight, bool]:
        """Return a flight to join, and whether it was begun for this request."""
        place = question.key, question.form
        flight = self._flights.get(place)
        if flight is not None and flight.is_open_to(question.call):
            return flight, False
        flight = self._launch(request, question)
        self._flights[place] = flight
        return flight, True

    def _launch(self, request: Request, question: _Question) -> Flight:
        """Begin an upstream call whose answer will be kept if it is complete.

        What is asked is what the key was made of. The body as it came may mean something else to Go, which
        merges the objects of a field sent twice: its sender could have his answer kept as that to another
        question.
        """
        fields, is_openai = question.call.fields, question.call.endpoint.is_openai
        asked = sse.asking(fields, has_usage=is_openai and question.form is not Form.WHOLE)
        flight = Flight(
            self._upstream,
            replace(request, body=asked),
            keep_bytes=self.settings.max_answer_bytes,
            hides_usage=is_openai and question.form is Form.STREAM,
        )
        task = flight.start(self._fly(flight, question))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._landed(done, flight, question))
        return flight

    async def _fly(self, flight: Flight, question: _Question) -> None:
        await flight.run()
        if flight.is_complete:
            self._saved_s += flight.upstream_s * (flight.passengers - 1)
            if answer := self._answer_of(flight, question):
                await self._keep(flight, question, answer)

    async def _keep(self, flight: Flight, question: _Question, answer: Answer) -> None:
        """Store an answer. Whoever has read it finds it, however long the store takes.

        Unless its model was pulled meanwhile: then another digest may have answered, and the one that was
        looked up may have further names.
        """
        key = question.key
        self._arriving[key] = answer
        flight.end()
        try:
            if await self._digests.digest_of(question.call.model_key) == question.digest:
                await self._store.put(key, answer)
                self._stored += 1
        finally:
            if self._arriving.get(key) is answer:
                del self._arriving[key]

    def _landed(self, task: asyncio.Task[None], flight: Flight, question: _Question) -> None:
        self._tasks.discard(task)
        flight.end()
        place = question.key, question.form
        if self._flights.get(place) is flight:
            del self._flights[place]
        if not task.cancelled() and (error := task.exception()):
            _log.error("answer not kept: %s: %s", type(error).__name__, error, exc_info=error)

    def _answer_of(self, flight: Flight, question: _Question) -> Answer | None:
        """Return what to keep of a flight; None if its answer is not complete."""
        call, settings = question.call, self.settings
        is_openai = call.endpoint.is_openai
        pieces = complete_pieces(b"".join(flight.chunks), is_stream=call.is_stream, is_openai=is_openai)
        if pieces is None:
            return None
        return Answer(
            status=200,
            headers={name: flight.headers[name] for name in ("content-type",) if name in flight.headers},
            pieces=pieces,
            offsets_s=piece_offsets_s(pieces, flight.chunks, flight.offsets_s),
            is_stream=call.is_stream,
            is_openai=is_openai,
            stored_s=self._clock(),
            ttl_s=settings.ttl_s,
            stale_s=settings.stale_if_error_s,
            upstream_s=flight.upstream_s,
            model_key=call.model_key,
            digest=question.digest,
        )

    def _replay(self, outcome: str, kept: Answer, answer: Prepared, call: Call) -> Replay:
        now_s = self._clock()
        is_recorded = self.settings.pacing == "recorded"
        reply = Replay(answer, call.model, now_s, is_recorded=is_recorded, age_s=now_s - kept.stored_s)
        reply.headers[CACHE_HEADER] = outcome
        return reply

    async def _sweep(self) -> None:
        while True:
            await self._store.sweep()
            await asyncio.sleep(_SWEEP_INTERVAL_S)


async def _aboard(flight: Flight, call: Call) -> Member:
    """Return a member of a flight once its answer has begun.

    Raises:
        WaitTimeout: The call's deadline passed before.
        OllamaLabError: What ended the flight before.
    """
    member = flight.join()
    try:
        if call.deadline_s is None:
            await member.opened()
        else:
            async with asyncio.timeout(max(0.0, call.deadline_s - time.perf_counter())):
                await member.opened()
    except TimeoutError as error:
        member.leave()
        raise WaitTimeout("the request's deadline passed before its answer began") from error
    except BaseException:
        member.leave()
        raise
    return member


def _is_past(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.perf_counter() >= deadline_s
