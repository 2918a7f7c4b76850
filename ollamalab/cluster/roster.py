"""The roster: who is there, and who may take requests for a model. No I/O; moments are passed in.

A decision finds its candidates ready: a *pool* for each model, made anew only when something has changed
that it depends on: a member's health, its models, a breaker, or who is there at all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ollamalab.cluster.member import Member
from ollamalab.cluster.replica import UNLEARNT_PLACES, Replica
from ollamalab.cluster.usual import Usual
from ollamalab.queueing.work import Work
from ollamalab.routing import Candidates, UpstreamView

#: Models are named by clients, so what is kept by name needs a bound.
_MOST_POOLS = 1024
_MOST_UNLISTED = 256

#: A speed that is so much older than another member's is as good as unknown.
_STALE_S = 60.0


@dataclass(slots=True)
class Pool:
    """Who may take requests for one model.

    Attributes:
        candidates: For the policy; never empty unless the cluster is.
        resident: Those that have the model loaded; the same list as in ``candidates``.
        until_s: When time alone may change who belongs to it.
        places: Requests of the model that they work on at once, all together; None if not counted yet.
    """

    candidates: Candidates
    resident: list[UpstreamView]
    until_s: float
    places: int | None = None


class Roster:
    """Members and pools.

    Args:
        places: Requests of a model that one member may work on at once; None learns it.
        rng: For breakers.

    Attributes:
        members: Who may be chosen, by name, in the order of the settings.
        alone: The one member if there are no others.
        usual: What requests of each model take, once one has been answered.
        places: As given.
        on_change: Is called when a pool may have become larger.
    """

    def __init__(self, *, places: int | None, rng: random.Random) -> None:
        self.members: dict[str, Member] = {}
        self.alone: Member | None = None
        self.usual: dict[str, Usual] = {}
        self.places = places
        self.on_change: Callable[[], None] = _nothing
        self._rng = rng
        self._pools: dict[str, Pool] = {}
        self._sets: dict[tuple[UpstreamView, ...], tuple[UpstreamView, ...]] = {}

    def set_members(self, members: Iterable[Member]) -> None:
        """Take exactly these."""
        self.members = {member.name: member for member in members}
        self.alone = next(iter(self.members.values())) if len(self.members) == 1 else None
        self._sets.clear()
        self.changed()

    def changed(self) -> None:
        """Make the pools anew when they are next asked for."""
        self._pools.clear()
        self.on_change()

    def expire(self, now_s: float) -> None:
        """Drop the pools whose time is over; nobody may have asked since."""
        over = [key for key, pool in self._pools.items() if pool.until_s <= now_s]
        for key in over:
            del self._pools[key]
        if over:
            self.on_change()

    def pool(self, key: str, now_s: float) -> Pool:
        """Return who may take requests for a model."""
        pool = self._pools.get(key)
        if pool is None or pool.until_s <= now_s:
            if len(self._pools) >= _MOST_POOLS:
                self._pools.clear()
            pool = self._pools[key] = self._pool_of(key, now_s)
        return pool

    def limit(self, key: str, now_s: float) -> int:
        """Return how many requests for a model may be under way at once, at least 1."""
        pool = self.pool(key, now_s)
        if pool.places is None:
            members = [self.members[view.name] for view in pool.candidates.members]
            pool.places = sum(self._places_at(member, key) for member in members)
        return pool.places or 1

    def places_changed(self, key: str) -> None:
        """Count the places of a model anew: a member uses more or fewer than before."""
        pool = self._pools.get(key)
        if pool is not None:
            pool.places = None

    def note_answer(
        self, replica: Replica, key: str, work: Work, now_s: float, stream_s: float | None
    ) -> None:
        """Take note of what an answer took; as ``Replica.learn``."""
        usual = self.usual.get(key)
        if usual is None:
            usual = self.usual[key] = Usual()
        usual.note(work, now_s)
        replica.learn(work, usual.tokens_of(work), now_s, stream_s)

    def forget_stale(self, member: Member) -> None:
        """Forget speeds that were measured long before those of other members.

        Who was slow once is asked no more, so nobody would notice that it is slow no longer.
        """
        for key, replica in member.replicas.items():
            usual = self.usual.get(key)
            if usual is not None and usual.answered_s - replica.measured_s > _STALE_S:
                replica.view.tokens_per_s = None

    def learnt(self) -> Mapping[str, int]:
        """Return what has been learnt of each model's places, all members together, trials left out."""
        found: dict[str, int] = {}
        for member in self.members.values():
            for key, replica in member.replicas.items():
                if replica.learnt is not None and key:
                    found[key] = found.get(key, 0) + replica.learnt
        return found

    def replica(self, member: Member, key: str) -> Replica:
        """Return a model at a member; made when it is first asked for."""
        replica = member.replicas.get(key)
        if replica is None:
            self._forget_unlisted(member)
            replica = Replica(member.view.model(key), self._rng, self.places)
            member.replicas[key] = replica
        return replica

    def set_resident(self, member: Member, key: str, *, is_resident: bool) -> bool:
        """Note whether a model is loaded; return whether that is news."""
        view = self.replica(member, key).view
        if view.is_resident is is_resident:
            return False
        view.is_resident = is_resident
        pool = self._pools.get(key)
        if pool is None:
            return True
        if not is_resident:
            pool.resident[:] = [other for other in pool.resident if other is not member.view]
        elif member.view in pool.candidates.members:
            pool.resident.append(member.view)
        return True

    def loaded(self, member: Member) -> frozenset[str]:
        """Return which models are loaded, as far as is known."""
        return frozenset(key for key, replica in member.replicas.items() if replica.view.is_resident)

    def set_loaded(self, member: Member, keys: frozenset[str], *, before: frozenset[str]) -> None:
        """Note which models are loaded, and that others are no longer.

        Args:
            member: Who says so.
            keys: The models.
            before: What was taken to be loaded when that was asked. What answers have shown since stays:
                its load may have ended after the list was made.
        """
        for key in keys | before:
            self.set_resident(member, key, is_resident=key in keys)

    def set_digests(self, member: Member, digests: Mapping[str, str]) -> None:
        """Note which models a member lists."""
        known = member.digests
        member.digests = digests
        if known is None or known.keys() != digests.keys():
            self.changed()

    def others(self, key: str, tried: Sequence[Member], now_s: float) -> list[Member]:
        """Return who may take a request that some have had already; the best that are left, maybe nobody."""
        return self._best([member for member in self._holders(key) if member not in tried], key, now_s)

    def is_ready(self, member: Member, key: str, now_s: float) -> bool:
        """Return whether a member is up, not busy, and its breaker lets a request through."""
        if not member.health.is_up or member.health.is_busy(now_s):
            return False
        replica = member.replicas.get(key)
        return replica is None or replica.breaker.admits(now_s)

    def _pool_of(self, key: str, now_s: float) -> Pool:
        holders = self._holders(key)
        chosen = self._best(holders, key, now_s)
        views = self._same(tuple(member.view for member in chosen))
        models = ((view, view.models.get(key)) for view in views)
        resident = [view for view, model in models if model is not None and model.is_resident]
        unready = (member for member in holders if not self.is_ready(member, key, now_s))
        until_s = min((self._return_s(member, key, now_s) for member in unready), default=math.inf)
        return Pool(Candidates(views, resident), resident, until_s)

    def _holders(self, key: str) -> list[Member]:
        """Return who has a model; where nobody is known to, who has not said, or else everybody.

        A list may be out of date, and whether a name is a model is for the upstream to say.
        """
        members = self.members.values()
        holders = [member for member in members if member.digests is not None and key in member.digests]
        return holders or [member for member in members if member.digests is None] or list(members)

    def _best(self, members: list[Member], key: str, now_s: float) -> list[Member]:
        """Return those that are ready; if none is, those that are up; if none is, all rather than nobody."""
        return (
            [member for member in members if self.is_ready(member, key, now_s)]
            or [member for member in members if member.health.is_up]
            or members
        )

    def _return_s(self, member: Member, key: str, now_s: float) -> float:
        """Return when time alone makes a member ready again; infinite if it takes an event."""
        replica = member.replicas.get(key)
        moments = [member.health.busy_until_s, replica.breaker.retry_s if replica else -math.inf]
        return min((moment for moment in moments if moment > now_s), default=math.inf)

    def _same(self, views: tuple[UpstreamView, ...]) -> tuple[UpstreamView, ...]:
        """Return the first tuple of these views, by which policies know their turns."""
        if len(self._sets) >= _MOST_POOLS:
            self._sets.clear()
        return self._sets.setdefault(views, views)

    def _places_at(self, member: Member, key: str) -> int:
        replica = member.replicas.get(key)
        if replica is not None:
            return replica.places
        return UNLEARNT_PLACES if self.places is None else self.places

    def _forget_unlisted(self, member: Member) -> None:
        """Drop what was kept of names that the member does not list, once there are many of them."""
        listed = member.digests or {}
        if len(member.replicas) < len(listed) + _MOST_UNLISTED:
            return
        for key, replica in tuple(member.replicas.items()):
            if key not in listed and not replica.view.in_flight:
                del member.replicas[key], member.view.models[key]


def _nothing() -> None:
    pass
