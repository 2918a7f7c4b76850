"""Looks at members: whether they answer, which models they have, and which of them are loaded."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable

from ollamalab.cluster.member import Member
from ollamalab.cluster.roster import Roster
from ollamalab.errors import BadReply, OllamaLabError
from ollamalab.protocol.listed import listed_digests
from ollamalab.protocol.loaded import loaded_models
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.settings.cluster import ClusterSettings

logger = logging.getLogger(__name__)

_JITTER = 0.2  # so that members are not all looked at together
_SUSPECT_RATIO = 0.25  # of the interval: who has not answered once is soon asked again

#: A list that does not come within this is done without; the old one serves.
_PATIENCE_S = 1.0
_RETRY_S = 5.0

#: Of a list; thousands of models have less.
_MOST_BYTES = 64 * 1024 * 1024

_OK = 200


class Watch:
    """One task for each member, which looks at it again and again; probes never pile up.

    Args:
        roster: Hears what is found.
        settings: How often.
        rng: For jitter.
        clock: Monotonic seconds.
        traffic: Returns how many requests there have been, since lists are only kept for traffic.
        on_silence: Is called with a member that is down, after each look that found it so.
        on_return: Is called with a member that is back.

    Attributes:
        doubtful: Members of which it is not known any more what they have loaded; loads there so far.
    """

    def __init__(
        self,
        roster: Roster,
        settings: ClusterSettings,
        *,
        rng: random.Random,
        clock: Callable[[], float],
        traffic: Callable[[], int],
        on_silence: Callable[[Member], None],
        on_return: Callable[[Member], None],
    ) -> None:
        self.doubtful: dict[Member, int] = {}
        self._roster = roster
        self._settings = settings
        self._rng = rng
        self._clock = clock
        self._traffic = traffic
        self._on_silence = on_silence
        self._on_return = on_return

    async def run(self, member: Member) -> None:
        """Look at a member until cancelled."""
        seen, due_s = -1, -math.inf
        while True:
            member.look.clear()  # before the look: what gives a reason for one meanwhile gets another
            try:
                was_up = member.health.is_up
                if await self._probe(member):
                    is_news = self._traffic() != seen or member.digests is None
                    is_due = self._clock() >= due_s and is_news
                    if is_due or not was_up:
                        seen, due_s = self._traffic(), self._clock() + self._settings.list_interval_s
                        await self.list_models(member, 0.0)
                        await self._list_loaded(member)
                        self._roster.forget_stale(member)
            except Exception:  # a gateway does without, rather than fall
                logger.exception("event=look_failed upstream=%s", member.name)
            self._roster.expire(self._clock())
            await self._pause(member)

    def unreachable(self, member: Member) -> None:
        """Note that nobody listens there, and look again at once."""
        if member.health.unreachable():
            logger.warning("event=upstream_down upstream=%s reason=unreachable", member.name)
            member.look.set()
            self._roster.changed()
            self._on_silence(member)

    async def list_all(self, members: Iterable[Member], max_age_s: float) -> None:
        """Bring the lists of all members that are up to an age of no more than this."""
        due = [member for member in members if member.health.is_up and self._is_older(member, max_age_s)]
        if due:
            await asyncio.gather(*(self.list_models(member, max_age_s) for member in due))

    def loaded(self, member: Member) -> None:
        """Note that a model was loaded there, for which others may have had to go."""
        if sum(replica.view.is_resident for replica in member.replicas.values()) > 1:
            self.doubtful[member] = self.doubtful.get(member, 0) + 1

    async def end_doubts(self) -> None:
        """Ask where models were loaded what is left of the others; it may fail to say."""
        await asyncio.gather(*(self._end_doubt(member) for member in tuple(self.doubtful)))

    async def _end_doubt(self, member: Member) -> None:
        async with member.listing:
            loads = self.doubtful.get(member)
            if loads is not None:  # else somebody else has asked meanwhile
                await self._list_loaded(member)
                if self.doubtful[member] == loads:
                    del self.doubtful[member]

    async def list_models(self, member: Member, max_age_s: float) -> None:
        """Ask which models a member has, unless that is known well enough; it may fail to say."""
        async with member.listing:
            if not self._is_older(member, max_age_s):
                return
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    digests = listed_digests(await body_of(member.upstream, "/api/tags"))
            except (TimeoutError, OllamaLabError) as error:
                logger.warning("event=list_failed upstream=%s error=%s", member.name, _shown(error))
                # As if it had said so then; while nothing is known, ask again soon.
                member.listed_s = self._clock() + (0.0 if member.digests is None else _RETRY_S)
            else:
                member.listed_s = self._clock()
                self._roster.set_digests(member, digests)

    def _is_older(self, member: Member, max_age_s: float) -> bool:
        return self._clock() - member.listed_s >= max_age_s

    async def _probe(self, member: Member) -> bool:
        """Ask for the version; return whether it came in time."""
        member.probes += 1
        try:
            async with asyncio.timeout(self._settings.probe_timeout_s):
                await body_of(member.upstream, "/api/version")
        except (TimeoutError, OllamaLabError) as error:
            member.failed_probes += 1
            if member.health.unanswered():
                logger.warning("event=upstream_down upstream=%s reason=%s", member.name, _shown(error))
                self._roster.changed()
            if not member.health.is_up:
                self._on_silence(member)
            return False
        if member.health.answered():
            self._returned(member)
        return True

    def _returned(self, member: Member) -> None:
        """Forget what an upstream that was restarted has forgotten."""
        logger.info("event=upstream_up upstream=%s", member.name)
        self._roster.set_loaded(member, frozenset(), before=self._roster.loaded(member))
        for replica in member.replicas.values():
            replica.breaker.knock()
        self._on_return(member)
        self._roster.changed()

    async def _list_loaded(self, member: Member) -> None:
        """Ask which models are loaded; the question may wait for an unload, and then does without."""
        before = self._roster.loaded(member)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                loaded = loaded_models(await body_of(member.upstream, "/api/ps"))
        except (TimeoutError, OllamaLabError) as error:
            logger.info("event=list_failed upstream=%s error=%s", member.name, _shown(error))
        else:
            keys = frozenset(model.key for model in loaded)
            self._roster.set_loaded(member, keys, before=before)

    async def _pause(self, member: Member) -> None:
        """Wait until it is time for the next look, or there is a reason for one."""
        pause_s = self._settings.probe_interval_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
        if member.health.is_suspect:
            pause_s *= _SUSPECT_RATIO
        try:
            async with asyncio.timeout(pause_s):
                await member.look.wait()
        except TimeoutError:
            pass


async def body_of(upstream: Upstream, path: str) -> bytes:
    """Return the answer to a GET.

    Raises:
        UpstreamError: None came, or not a good one.
    """
    async with await upstream.send(Request(method="GET", path=path)) as reply:
        body = bytearray()
        async for chunk in reply.chunks():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise BadReply(f"{path} was answered with more than {_MOST_BYTES} bytes")
        if reply.status != _OK:
            raise BadReply(f"{path} was answered with status {reply.status}")
        return bytes(body)


def _shown(error: Exception) -> str:
    return str(error) or type(error).__name__
