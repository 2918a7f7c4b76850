"""The cluster: several upstreams as one."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from ollamalab.cluster.booking import Booking, book
from ollamalab.cluster.budget import RetryBudget
from ollamalab.cluster.capacity import ClusterCapacity, Journey
from ollamalab.cluster.interruption import Interruption
from ollamalab.cluster.listing import is_merged, merged_list, model_described, refuse_change
from ollamalab.cluster.member import Member, as_member
from ollamalab.cluster.prompts import prompt_of
from ollamalab.cluster.reply import RoutedReply
from ollamalab.cluster.roster import Roster
from ollamalab.cluster.statistics import ClusterStatistics, disagreements, member_statistics
from ollamalab.cluster.usual import Usual
from ollamalab.cluster.verdict import Verdict, retry_after_s, verdict_of_error, verdict_of_status
from ollamalab.cluster.visits import Visits
from ollamalab.cluster.watch import Watch
from ollamalab.errors import NoUpstream, UpstreamError, UpstreamUnavailable
from ollamalab.protocol.calls import UPSTREAM_HEADER, Call, named
from ollamalab.protocol.endpoints import Kind
from ollamalab.protocol.upstream import Reply, Request, Upstream, whole_of
from ollamalab.queueing import MeteredReply, State, metered
from ollamalab.routing import (
    Candidates,
    ModelAware,
    Policy,
    Predicted,
    PrefixAffinity,
    UpstreamView,
    Want,
    make_policy,
)
from ollamalab.settings.cluster import ClusterSettings

_OK = 200
_ANSWERED = Verdict.ANSWERED
_UNKNOWN = Usual()
_NOBODY = Candidates((), [])

#: Age of a list of models that the cache relies on: an old answer may be given so long after a ``pull``.
_FRESH_S = 2.0

#: Age of the lists when a model is not found: somebody who asks for nothing in a loop costs no more.
_RECENT_S = 1.0


class Cluster:
    """Several upstreams as one Upstream; used with ``async with``. One event loop, no threads.

    A request goes to a member that has its model, as the policy says; if that member does not answer it,
    to another, as long as no byte of an answer has come. With a queue in front, which asks ``capacity``
    and tells it how answers go on, nothing is metered twice.

    Args:
        members: Who answers; none may have another's name. An upstream that is no ``Member`` becomes one,
            named by its address.
        route: How members are chosen, one of ``routing.POLICIES``.
        settings: How members are watched.
        max_concurrent: Requests of a model that one member works on at once; None learns it.
        visits: Also hears of every request at every member.
        rng: For draws and jitter.
        clock: Monotonic seconds.

    Attributes:
        capacity: For a queue in front.

    Raises:
        SettingsError: There is no such route.
    """

    def __init__(
        self,
        members: Iterable[Member | Upstream],
        *,
        route: str = "round-robin",
        settings: ClusterSettings | None = None,
        max_concurrent: int | None = None,
        visits: Visits | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._settings = settings or ClusterSettings()
        self._route = route
        self._visits = visits
        self._clock = clock
        rng = rng or random.Random()
        self._policy: Policy = make_policy(route, rng)
        self._reads_prompts = isinstance(self._policy, PrefixAffinity)
        self._predicts = isinstance(self._policy, Predicted)
        self._minds_loads = isinstance(self._policy, ModelAware | Predicted)
        self._roster = Roster(places=max_concurrent, rng=rng)
        self._roster.set_members(map(as_member, members))
        self._budget = RetryBudget()
        self._watch = Watch(
            self._roster,
            self._settings,
            rng=rng,
            clock=clock,
            traffic=lambda: self._requests,
            on_silence=self._move_waiting,
            on_return=self._forget_prompts,
        )
        self._watchers: dict[Member, asyncio.Task[None]] = {}
        self._farewells: dict[Member, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._requests = 0
        self._failovers = 0
        self.capacity = ClusterCapacity(self._roster, clock)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for member in self._roster.members.values():
            self._begin_to_watch(member)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [*self._watchers.values(), *self._farewells.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for member in (*self._roster.members.values(), *self._farewells):
            if member.close is not None:
                await member.close()

    @property
    def members(self) -> tuple[Member, ...]:
        """Who may be chosen, in order."""
        return tuple(self._roster.members.values())

    def on_more_room(self, look: Callable[[], None]) -> None:
        """Have this called when more requests may have become possible at once."""
        self._roster.on_change = look

    def set_members(self, members: Iterable[Member]) -> None:
        """Take exactly these from now on; the others finish what is under way, then they are closed.

        Args:
            members: Old ones stay as they are, new ones join. At least one.
        """
        wanted = list(members)
        gone = [member for member in self._roster.members.values() if member not in wanted]
        self._roster.set_members(wanted)
        for member in wanted:
            if member not in self._watchers:
                self._begin_to_watch(member)
        for member in gone:
            member.leave()
            self._watchers.pop(member).cancel()
            self._farewells[member] = asyncio.get_running_loop().create_task(self._see_off(member))

    def send(self, request: Request) -> Coroutine[Any, Any, Reply]:
        """Send one request to whom the policy chooses, and on to others if it must.

        Raises:
            NoUpstream: Nobody could be reached.
            UpstreamError: As the last one that was asked raised it.
            RequestRefused: 400 for a change of models with several members; what ``named`` refuses.
        """
        self._requests += 1
        call = request.call
        if call is None or not call.endpoint.names_model:
            return self._send_any(request)
        return self._send(request, call, call.model_key)

    async def _send_any(self, request: Request) -> Reply:
        """Send a request that nobody has read yet, or that names no model."""
        request = named(request)
        call = request.call
        assert call is not None
        if call.endpoint.names_model:
            return await self._send(request, call, call.model_key)
        members = self.members
        if len(members) > 1:
            if call.endpoint.kind is Kind.CHANGE:
                raise refuse_change(members)
            if is_merged(call.endpoint.path):
                path, retry_s = call.endpoint.path, self._settings.probe_interval_s
                return await merged_list(members, path, retry_after_s=retry_s)
        return await self._send(request, call, model_described(request))

    async def digest_of(self, model_key: str) -> str | None:
        """Return a model's digest; None if nobody lists it, or members disagree: for ``cache.Digests``."""
        members = self._roster.members.values()
        await self._watch.list_all(members, _FRESH_S)
        listed = ((member.digests or {}).get(model_key) for member in members)
        digests = {digest for digest in listed if digest}
        return digests.pop() if len(digests) == 1 else None

    def statistics(self) -> ClusterStatistics:
        """Return what happened so far."""
        now_s = self._clock()
        return ClusterStatistics(
            route=self._route,
            failovers=self._failovers,
            retries_denied=self._budget.denied,
            disagreements=disagreements(self._roster.members.values()),
            members=tuple(
                member_statistics(member, now_s)
                for member in (*self._roster.members.values(), *self._farewells)
            ),
        )

    async def _send(self, request: Request, call: Call, key: str) -> Reply:
        """Send a request to one member after the other until there is an answer worth passing on.

        Args:
            request: As it came.
            call: What it means.
            key: The model that its member must have; "" for any member.
        """
        began_s, passage = self._clock(), call.passage
        journey = passage if isinstance(passage, Journey) else None
        tokens = self._expected_tokens(call) if self._predicts else 0.0
        tried: list[Member] = []
        self._budget.note_request()
        if self._watch.doubtful and self._minds_loads:  # milliseconds, against the seconds of a load
            await self._watch.end_doubts()
        alone = self._roster.alone
        candidates = _NOBODY if alone is not None else self._roster.pool(key, began_s).candidates
        while True:
            member = alone or self._choose(call, key, tokens, candidates)
            tried.append(member)
            visit = None if self._visits is None else self._visits.begun(member.name, call)
            now_s = self._clock()
            booking = book(
                self._roster,
                member,
                call,
                now_s=now_s,
                tokens=tokens,
                tried=tried,
                clock=self._clock,
                visit=visit,
            )
            if journey is not None:
                journey.booking = booking
            call.ledger["route"] = now_s - began_s
            try:
                if self._roster.alone is not None:  # nowhere else to wait
                    reply = await member.upstream.send(request)
                else:
                    reply = await self._send_while_up(booking, request)
            except UpstreamError as error:
                booking.release(State.FAILED)
                verdict = verdict_of_error(error)
                self._note_failure(verdict, booking)
                others = await self._others(verdict, key, tried)
                if not others:
                    raise self._final(error, tried) from error
            except BaseException as error:
                is_gone = isinstance(error, asyncio.CancelledError)
                booking.release(State.CANCELLED if is_gone else State.FAILED)
                booking.judge(None)
                raise
            else:
                verdict = _ANSWERED if reply.status == _OK else verdict_of_status(reply.status)
                if verdict is _ANSWERED:
                    return self._answer(reply, call, booking, journey)
                refusal = RoutedReply(reply, booking)
                async with _left_on_error(refusal):
                    self._note_refusal(verdict, booking, reply)
                    others = await self._others(verdict, key, tried)
                if not others:
                    return refusal
                await refusal.__aexit__(None, None, None)
                if any(other.is_leaving for other in others):  # since the refusal was left
                    others = self._roster.others(key, tried, self._clock())
            member.moved += 1
            self._failovers += 1
            alone, candidates = None, Candidates.among((other.view for other in others), key)

    async def _send_while_up(self, booking: Booking, request: Request) -> Reply:
        """Send a request to the member where it is booked, but do not wait there once it goes silent."""
        member = booking.member
        booking.wait = Interruption()
        booking.wait.guard(self._loop)
        member.waiting.add(booking)
        try:
            return await member.upstream.send(request)
        except asyncio.CancelledError as error:
            if not booking.wait.is_given_up_by(error):
                raise
            text = f"{member.name} has gone silent with a request waiting there"
            raise UpstreamUnavailable(text) from error
        finally:
            member.waiting.discard(booking)

    def _choose(self, call: Call, key: str, tokens: float, candidates: Candidates) -> Member:
        """Return the member that a request goes to."""
        members, views = self._roster.members, candidates.members
        if not views:
            raise self._nobody()
        if len(views) == 1 or not call.endpoint.names_model:
            return members[views[0].name]
        prompt = prompt_of(call) if self._reads_prompts else ""
        want = Want(model_key=key, tokens=tokens, prompt=prompt)
        view = self._policy.choose(want, candidates)
        places = self._roster.places
        if places is not None and _in_flight(view, key) >= places:
            free = [view for view in views if _in_flight(view, key) < places]
            if free:  # a number that somebody set is kept, whatever the policy prefers
                view = self._policy.choose(want, Candidates.among(free, key))
        return members[view.name]

    async def _others(self, verdict: Verdict, key: str, tried: list[Member]) -> list[Member]:
        """Return who may have a request next that was not answered well; nobody if it ends here."""
        roster = self._roster
        if roster.alone is not None or len(tried) >= self._settings.max_attempts:
            return []
        if verdict is Verdict.MISSING:
            if key:
                await self._watch.list_all(roster.members.values(), _RECENT_S)
            return [
                other
                for other in roster.others(key, tried, self._clock())
                if other.digests is not None and key in other.digests
            ]
        others = roster.others(key, tried, self._clock())
        if verdict.costs_budget:  # only for somebody who probably answers, and only so often
            others = [other for other in others if other.health.is_up]
            if others and not self._budget.take():
                return []
        return others

    def _answer(self, reply: Reply, call: Call, booking: Booking, journey: Journey | None) -> Reply:
        """Return an answer on its way to the client.

        One that has come whole needs nobody to watch it: its booking ends now, or with its place in the
        queue.
        """
        member, endpoint = booking.member, call.endpoint
        is_good = reply.status == _OK
        if not is_good:
            booking.judge(_ANSWERED)
        else:
            if member.health.has_refused:
                member.health.accepted(self._clock())
            if endpoint.names_model:
                if not booking.is_resident:
                    self._roster.set_resident(member, booking.key, is_resident=True)
                    self._watch.loaded(member)
                booking.answering()
        is_whole = not call.is_stream and whole_of(reply) is not None
        if is_whole and journey is not None:
            reply.headers[UPSTREAM_HEADER] = member.name
            journey.is_answered = True
            return reply
        is_metered = is_good and journey is None and endpoint.kind is Kind.GENERATION
        if not is_whole:
            routed = RoutedReply(reply, booking)
            return MeteredReply(routed, call, booking) if is_metered else routed
        reply.headers[UPSTREAM_HEADER] = member.name
        if is_metered:
            metered(reply, call, booking)
        booking.left(None)
        return reply

    def _note_failure(self, verdict: Verdict, booking: Booking) -> None:
        booking.judge(verdict)
        if verdict is Verdict.UNREACHED:
            self._watch.unreachable(booking.member)

    def _note_refusal(self, verdict: Verdict, booking: Booking, reply: Reply) -> None:
        booking.judge(verdict)
        if verdict is Verdict.BUSY:
            booking.member.health.refused(self._clock(), retry_after_s(reply.headers))
            self._roster.changed()

    def _move_waiting(self, member: Member) -> None:
        """Send what waits at a silent member elsewhere, if there is somewhere better to wait."""
        for booking in tuple(member.waiting):
            others = self._roster.others(booking.key, booking.tried, self._clock())
            may_move = len(booking.tried) < self._settings.max_attempts
            if may_move and booking.wait is not None and any(other.health.is_up for other in others):
                member.waiting.discard(booking)
                booking.wait.give_up()

    def _forget_prompts(self, member: Member) -> None:
        """A member that was restarted holds no beginnings of prompts any more."""
        if isinstance(self._policy, PrefixAffinity):
            self._policy.index.forget(member.name)

    def _expected_tokens(self, call: Call) -> float:
        if call.endpoint.kind is not Kind.GENERATION:
            return 0.0
        return (self._roster.usual.get(call.model_key) or _UNKNOWN).expected_tokens(call)

    def _final(self, error: UpstreamError, tried: list[Member]) -> UpstreamError:
        """Return what to raise when nobody is left to ask."""
        if not isinstance(error, UpstreamUnavailable):
            return error
        names = ", ".join(member.name for member in tried)
        text = str(error) if len(tried) == 1 else f"none of {names} could be reached; the last: {error}"
        return NoUpstream(text, url=error.url, retry_after_s=self._settings.probe_interval_s)

    def _nobody(self) -> NoUpstream:
        return NoUpstream("there is no upstream", retry_after_s=self._settings.probe_interval_s)

    def _begin_to_watch(self, member: Member) -> None:
        self._watchers[member] = asyncio.get_running_loop().create_task(self._watch.run(member))

    async def _see_off(self, member: Member) -> None:
        """Close a member once nothing is under way there any more."""
        await member.idle.wait()
        if member.close is not None:
            await member.close()
        del self._farewells[member]


@asynccontextmanager
async def _left_on_error(reply: RoutedReply) -> AsyncIterator[None]:
    """Leave a reply if the block does not end well."""
    try:
        yield
    except BaseException as error:
        await reply.__aexit__(type(error), error, error.__traceback__)
        raise


def _in_flight(view: UpstreamView, key: str) -> int:
    model = view.models.get(key)
    return model.in_flight if model is not None else 0
