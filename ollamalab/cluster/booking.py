"""A booking: one request at one member, counted there from the decision until it has left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from ollamalab.cluster.interruption import Interruption
from ollamalab.cluster.verdict import Verdict, verdict_of_error
from ollamalab.errors import UpstreamError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.endpoints import Kind
from ollamalab.queueing import State, Work

if TYPE_CHECKING:
    from ollamalab.cluster.member import Member
    from ollamalab.cluster.replica import Replica
    from ollamalab.cluster.roster import Roster
    from ollamalab.cluster.visits import Visit
    from ollamalab.queueing.parallelism import Flight

_ANSWERED = Verdict.ANSWERED
_GENERATION = Kind.GENERATION


class Booking(msgspec.Struct, eq=False):
    """One request at one member, as ``book`` makes it. However it ends, it is released once and judged once.

    Attributes:
        member: Where the request goes.
        key: Its model; "" if it names none.
        tried: Members that have had it, this one included; others may join.
        wait: May end its wait for the first byte.
    """

    member: Member
    key: str
    tried: Sequence[Member]
    _roster: Roster
    _replica: Replica
    _tokens: float
    _clock: Callable[[], float]
    _visit: Visit | None
    _sent_s: float
    _flight: Flight | None
    _is_trial: bool
    wait: Interruption | None = None
    _begun_s: float | None = None
    _has_broken: bool = False
    _is_judged: bool = False
    _is_released: bool = False

    @property
    def is_resident(self) -> bool:
        """Whether the model is known to be loaded at the member."""
        return self._replica.view.is_resident

    def answering(self) -> None:
        """Say that a good answer has begun."""
        if self._visit is not None:
            self._visit.answering()

    def begun(self) -> None:
        """Say that a stream has given its first bytes."""
        self._begun_s = self._clock()
        if self._flight is not None and self._replica.first_token(self._flight, self._begun_s):
            self._roster.places_changed(self.key)

    def release(self, state: State = State.COMPLETED, work: Work | None = None) -> None:
        """Say that the request has left the member; only the first time counts.

        Args:
            state: How it ended.
            work: What it took; None if that is not known.
        """
        if self._is_released:
            return
        self._is_released = True
        now_s, replica, view = self._clock(), self._replica, self._replica.view
        self._has_broken = state is State.FAILED
        view.in_flight -= 1
        view.booked_tokens = view.booked_tokens - self._tokens if view.in_flight else 0.0
        member = self.member
        member.view.in_flight -= 1
        if member.is_leaving and not member.view.in_flight:
            member.idle.set()
        told = work if state is State.COMPLETED else None
        if self._visit is not None:
            self._visit.ended(None if told is None else told.load_s)
        if told is not None:
            stream_s = None if self._begun_s is None else now_s - self._begun_s
            self._roster.note_answer(replica, self.key, told, now_s, stream_s)
        if self._flight is not None and replica.ended(self._flight, now_s, told):
            self._roster.places_changed(self.key)

    def judge(self, verdict: Verdict | None) -> None:
        """Say how the member met the request; only the first time counts.

        Args:
            verdict: None if that is not known, since the client went away.
        """
        if self._is_judged:
            return
        self._is_judged = True
        breaker = self._replica.breaker
        if verdict is _ANSWERED:
            if breaker.succeeded(self._sent_s):
                self._roster.changed()
            return
        is_trial = self._is_trial and self._sent_s >= breaker.opened_s  # not one from before it last opened
        if verdict is None or verdict in (Verdict.BUSY, Verdict.UNREACHED):  # the member's, not the model's
            has_changed = is_trial
            if is_trial:
                breaker.undecided()
        elif verdict.is_good:
            has_changed = breaker.succeeded(self._sent_s)
        else:
            has_changed = breaker.failed(self._clock(), is_trial=is_trial)
        if has_changed:
            self._roster.changed()
        if verdict is not None and not verdict.is_good:
            kind = Verdict.FAILED if verdict is Verdict.BUSY else verdict
            self.member.failures[kind.value] += 1

    def ended(self, state: State, work: Work | None) -> None:
        """Say that an answer that came whole has left the member; takes what ``release`` takes."""
        self.release(state, work)
        self.judge(Verdict.LOST if self._has_broken else _ANSWERED)

    def left(self, error: BaseException | None) -> None:
        """Say that the reply has been left.

        Args:
            error: What ended it; None if nothing did.
        """
        if isinstance(error, UpstreamError):
            self.judge(verdict_of_error(error))
        elif self._has_broken:  # it came to an end, but not to that of an answer
            self.judge(Verdict.LOST)
        else:
            self.judge(Verdict.ANSWERED if error is None else None)
        self.release(State.COMPLETED if error is None else State.CANCELLED)


def book(
    roster: Roster,
    member: Member,
    call: Call,
    *,
    now_s: float,
    tokens: float,
    tried: Sequence[Member],
    clock: Callable[[], float],
    visit: Visit | None = None,
) -> Booking:
    """Count a request at a member.

    Args:
        roster: Hears what changes.
        member: Where the request goes.
        call: The request.
        now_s: When it is sent.
        tokens: What it will probably take.
        tried: Members that have had it, this one included; others may join.
        clock: Monotonic seconds.
        visit: Also hears how it goes on.
    """
    key, view = call.model_key, member.view
    replica = member.replicas.get(key) or roster.replica(member, key)
    member.requests += 1
    view.in_flight += 1
    model = replica.view
    model.in_flight += 1
    model.booked_tokens += tokens
    flight = replica.sent(now_s) if call.endpoint.kind is _GENERATION else None
    is_trial = replica.breaker.sent(now_s)
    if is_trial:
        roster.changed()  # nobody else goes there until it is known how this ends
    return Booking(member, key, tried, roster, replica, tokens, clock, visit, now_s, flight, is_trial)
