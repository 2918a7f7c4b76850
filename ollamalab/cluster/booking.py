"""A booking: one request at one member, counted there from the decision until it has left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ollamalab.cluster.interruption import Interruption
from ollamalab.cluster.verdict import Verdict, verdict_of_error
from ollamalab.errors import UpstreamError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.endpoints import Kind
from ollamalab.queueing import State, Work

if TYPE_CHECKING:
    from ollamalab.cluster.member import Member
    from ollamalab.cluster.roster import Roster
    from ollamalab.cluster.visits import Visit


class Booking:
    """One request at one member. However it ends, it is released once and judged at most once.

    Args:
        roster: Hears what changes.
        member: Where the request goes.
        call: The request.
        tokens: What it will probably take.
        tried: Members that have had it, this one included; others may join.
        clock: Monotonic seconds.
        visit: Also hears how it goes on.

    Attributes:
        member: Where the request goes.
        key: Its model; "" if it names none.
        tried: As given.
        wait: May end its wait for the first byte.
    """

    __slots__ = (
        "_begun_s",
        "_clock",
        "_flight",
        "_has_broken",
        "_is_judged",
        "_is_released",
        "_is_trial",
        "_replica",
        "_roster",
        "_sent_s",
        "_tokens",
        "_visit",
        "key",
        "member",
        "tried",
        "wait",
    )

    def __init__(
        self,
        roster: Roster,
        member: Member,
        call: Call,
        *,
        tokens: float,
        tried: Sequence[Member],
        clock: Callable[[], float],
        visit: Visit | None = None,
    ) -> None:
        self.key = key = call.model_key
        self.member = member
        self.tried = tried
        self.wait: Interruption | None = None
        self._roster = roster
        self._replica = replica = roster.replica(member, key)
        self._tokens = tokens
        self._clock = clock
        self._visit = visit
        self._sent_s = now_s = clock()
        self._begun_s: float | None = None
        self._has_broken = self._is_judged = self._is_released = False
        member.requests += 1
        member.view.in_flight += 1
        replica.view.in_flight += 1
        replica.view.booked_tokens += tokens
        self._flight = replica.sent(now_s) if call.endpoint.kind is Kind.GENERATION else None
        self._is_trial = replica.breaker.sent(now_s)
        if self._is_trial:
            roster.changed()  # nobody else goes there until it is known how this ends

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
        if verdict is Verdict.ANSWERED:
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
